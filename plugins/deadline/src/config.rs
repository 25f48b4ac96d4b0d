//! The configuration of the policy.

use pointsman_sdk::{PolicyError, config};

/// Maximum time budget of a request: one day.
const MAX_BUDGET_MS: u32 = 24 * 60 * 60 * 1000;

#[derive(Debug, Clone)]
pub(crate) struct Config {
    /// Header with the time budget of a request in milliseconds.
    pub(crate) header: String,
    /// Time budget of all other requests; `None` for no deadline.
    pub(crate) default_ms: Option<u32>,
    /// Time budgets by tenant, in milliseconds.
    pub(crate) tenants: Vec<(String, u32)>,
    /// Time budgets by model name, in milliseconds.
    pub(crate) models: Vec<(String, u32)>,
    /// Whether the time to first token counts, in addition to the wait.
    pub(crate) first_token: bool,
    /// Lanes that may be used although they do not serve the model name.
    pub(crate) fallback: Vec<String>,
    /// What to do with a request that no lane can serve in time.
    pub(crate) late: LateAction,
}

/// What to do with a request that no lane can serve in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LateAction {
    /// Reject the request at once, so that the client can react.
    Reject,
    /// Use the lane with the earliest start.
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
            late: LateAction::BestEffort,
        };
        config::read(json, |key, value| {
            match key {
                "header" => config.header = value.string()?,
                "default-ms" => config.default_ms = Some(value.integer(1..=MAX_BUDGET_MS)?),
                "tenants" => config.tenants = budgets(value)?,
                "models" => config.models = budgets(value)?,
                "first-token" => config.first_token = value.bool()?,
                "fallback" => config.fallback = value.strings()?,
                "late" => {
                    config.late = value.choice(&[
                        ("reject", LateAction::Reject),
                        ("best-effort", LateAction::BestEffort),
                    ])?;
                }
                _ => return Err(value.unknown_key()),
            }
            Ok(())
        })?;
        Ok(config)
    }
}

fn budgets(value: &config::Value<'_, '_>) -> Result<Vec<(String, u32)>, PolicyError> {
    let mut budgets = Vec::new();
    value.entries(|name, ms| {
        budgets.push((name.to_owned(), ms.integer(1..=MAX_BUDGET_MS)?));
        Ok(())
    })?;
    Ok(budgets)
}
