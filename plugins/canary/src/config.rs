//! The operator's configuration.

use pointsman_sdk::{PolicyError, config};

#[derive(Debug, Clone)]
pub(crate) struct Config {
    /// The lane on trial; empty where nothing is configured.
    pub(crate) canary: String,
    /// Its share of the traffic, in thousandths.
    pub(crate) share: u16,
    /// What is drawn by.
    pub(crate) by: By,
    /// Changing it draws anew.
    pub(crate) salt: String,
    /// Tenants that are always in it.
    pub(crate) always: Vec<String>,
    /// Tenants that are never in it.
    pub(crate) never: Vec<String>,
    /// More failed requests than this, in thousandths, and it gets no more.
    pub(crate) max_errors: u16,
    /// So does a median time to the first token of more than this.
    pub(crate) max_first_token_ms: Option<u32>,
    /// For how long.
    pub(crate) hold_ms: u32,
    /// May it be loaded for this?
    pub(crate) cold: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum By {
    /// All requests of a tenant go one way; those without one are drawn one by one.
    Tenant,
    /// By the request's id, so that a client that sends its id again gets the same.
    Request,
    /// By the seed: by chance.
    Seed,
}

impl Config {
    pub(crate) fn parse(json: &str) -> Result<Self, PolicyError> {
        let mut config = Self {
            canary: String::new(),
            share: 50,
            by: By::Tenant,
            salt: String::new(),
            always: Vec::new(),
            never: Vec::new(),
            max_errors: 100,
            max_first_token_ms: None,
            hold_ms: 300_000,
            cold: false,
        };
        let mut keys = 0;
        config::read(json, |key, value| {
            keys += 1;
            match key {
                "canary" => config.canary = value.text()?,
                "share-permille" => config.share = value.number(0..=1000)?,
                "by" => {
                    config.by = value.word(&[
                        ("tenant", By::Tenant),
                        ("request", By::Request),
                        ("seed", By::Seed),
                    ])?;
                }
                "salt" => config.salt = value.text()?,
                "always" => config.always = value.texts()?,
                "never" => config.never = value.texts()?,
                "max-errors-permille" => config.max_errors = value.number(0..=1000)?,
                "max-first-token-ms" => {
                    config.max_first_token_ms = Some(value.number(1..=u32::MAX)?)
                }
                "hold-s" => config.hold_ms = value.number(1..=24 * 60 * 60u32)? * 1000,
                "cold" => config.cold = value.flag()?,
                _ => return Err(value.unknown()),
            }
            Ok(())
        })?;
        // With no configuration at all it does nothing; with some of it, the lane was forgotten.
        if config.canary.is_empty() && keys > 0 {
            return Err(PolicyError::InvalidConfig(
                "canary: is missing; it names the lane on trial".into(),
            ));
        }
        if let Some(both) = config.always.iter().find(|tenant| config.never.contains(tenant)) {
            return Err(PolicyError::InvalidConfig(format!("never: `{both}` is in `always` too")));
        }
        Ok(config)
    }
}
