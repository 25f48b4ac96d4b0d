//! The configuration of the policy.

use pointsman_sdk::{PolicyError, config};

#[derive(Debug, Clone)]
pub(crate) struct Config {
    /// Name of the canary lane; empty if the policy is not configured.
    pub(crate) canary: String,
    /// Share of the traffic for the canary, in thousandths.
    pub(crate) share: u16,
    /// The key by which requests are selected.
    pub(crate) by: SelectBy,
    /// Salt of the selection hash. A different salt selects a different set.
    pub(crate) salt: String,
    /// Tenants that are always selected.
    pub(crate) always: Vec<String>,
    /// Tenants that are never selected.
    pub(crate) never: Vec<String>,
    /// Maximum fraction of failed requests, in thousandths, before the canary trips.
    pub(crate) max_errors: u16,
    /// Maximum median time to first token before the canary trips.
    pub(crate) max_first_token_ms: Option<u32>,
    /// How long a tripped canary gets no traffic.
    pub(crate) pause_ms: u32,
    /// Whether requests may be sent to a canary that is not loaded.
    pub(crate) allow_cold_start: bool,
}

/// The key by which requests are selected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SelectBy {
    /// By tenant, so that all requests of a tenant go the same way. Requests without a tenant are
    /// selected by request id.
    Tenant,
    /// By request id, so that a client that resends its id gets the same result.
    Request,
    /// By seed: at random.
    Seed,
}

impl Config {
    pub(crate) fn parse(json: &str) -> Result<Self, PolicyError> {
        let mut config = Self {
            canary: String::new(),
            share: 50,
            by: SelectBy::Tenant,
            salt: String::new(),
            always: Vec::new(),
            never: Vec::new(),
            max_errors: 100,
            max_first_token_ms: None,
            pause_ms: 300_000,
            allow_cold_start: false,
        };
        let mut keys = 0;
        config::read(json, |key, value| {
            keys += 1;
            match key {
                "canary" => config.canary = value.string()?,
                "share-permille" => config.share = value.integer(0..=1000)?,
                "by" => {
                    config.by = value.choice(&[
                        ("tenant", SelectBy::Tenant),
                        ("request", SelectBy::Request),
                        ("seed", SelectBy::Seed),
                    ])?;
                }
                "salt" => config.salt = value.string()?,
                "always" => config.always = value.strings()?,
                "never" => config.never = value.strings()?,
                "max-errors-permille" => config.max_errors = value.integer(0..=1000)?,
                "max-first-token-ms" => {
                    config.max_first_token_ms = Some(value.integer(1..=u32::MAX)?)
                }
                "pause-s" => config.pause_ms = value.integer(1..=24 * 60 * 60u32)? * 1000,
                "allow-cold-start" => config.allow_cold_start = value.bool()?,
                _ => return Err(value.unknown_key()),
            }
            Ok(())
        })?;
        // `{}` disables the policy; with any other key the lane is required.
        if config.canary.is_empty() && keys > 0 {
            return Err(PolicyError::InvalidConfig(
                "canary: required; set it to the name of the canary lane".into(),
            ));
        }
        if let Some(tenant) = config.always.iter().find(|name| config.never.contains(name)) {
            return Err(PolicyError::InvalidConfig(format!(
                "never: tenant \"{tenant}\" is also in `always`"
            )));
        }
        Ok(config)
    }
}
