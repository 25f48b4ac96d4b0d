//! The operator's configuration.

use pointsman_sdk::{PolicyError, config};

/// The longest budget that can be given: a day.
const LONGEST_MS: u32 = 24 * 60 * 60 * 1000;

#[derive(Debug, Clone)]
pub(crate) struct Config {
    /// Header in which a client says how many milliseconds it has.
    pub(crate) header: String,
    /// Budget of requests that say nothing; no deadline without one.
    pub(crate) default_ms: Option<u32>,
    /// Budgets by tenant.
    pub(crate) tenants: Vec<(String, u32)>,
    /// Budgets by model name.
    pub(crate) models: Vec<(String, u32)>,
    /// Does the time to the first token count, beside the wait?
    pub(crate) first_token: bool,
    /// Lanes that may help out though they do not answer to the model name.
    pub(crate) fallback: Vec<String>,
    /// What happens to a request that nothing can serve in time.
    pub(crate) late: Late,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Late {
    /// It is refused, so that the client can do something better with its time.
    Reject,
    /// It goes where it starts soonest.
    BestEffort,
}

impl Config {
    pub(crate) fn parse(json: &str) -> Result<Self, PolicyError> {
        let mut config = Self {
            header: "x-deadline-ms".to_owned(),
            default_ms: None,
            tenants: Vec::new(),
            models: Vec::new(),
            first_token: true,
            fallback: Vec::new(),
            late: Late::BestEffort,
        };
        config::read(json, |key, value| {
            match key {
                "header" => config.header = value.text()?,
                "default-ms" => config.default_ms = Some(value.number(1..=LONGEST_MS)?),
                "tenants" => config.tenants = budgets(value)?,
                "models" => config.models = budgets(value)?,
                "first-token" => config.first_token = value.flag()?,
                "fallback" => config.fallback = value.texts()?,
                "late" => {
                    config.late = value
                        .word(&[("reject", Late::Reject), ("best-effort", Late::BestEffort)])?;
                }
                _ => return Err(value.unknown()),
            }
            Ok(())
        })?;
        Ok(config)
    }
}

fn budgets(value: &config::Value<'_, '_>) -> Result<Vec<(String, u32)>, PolicyError> {
    let mut budgets = Vec::new();
    value.each(|name, ms| {
        budgets.push((name.to_owned(), ms.number(1..=LONGEST_MS)?));
        Ok(())
    })?;
    Ok(budgets)
}
