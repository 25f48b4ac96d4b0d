//! The configuration of the policy.

use pointsman_sdk::{PolicyError, config};

#[derive(Debug, Clone)]
pub(crate) struct Config {
    /// Values of the label `tier`, most expensive first.
    pub(crate) tiers: Vec<String>,
    /// Thousandths of the limit; at each threshold one more tier closes.
    pub(crate) thresholds: Vec<u16>,
    /// Length of a period in milliseconds.
    pub(crate) period_ms: u32,
    /// Limits by tenant, in thousandths of the price unit per period.
    pub(crate) tenants: Vec<(String, u32)>,
    /// Limit of each tenant that is not listed, and of all requests without a tenant together;
    /// `None` for no limit.
    pub(crate) default_milli: Option<u32>,
    /// Whether requests over the limit are rejected; otherwise the cheapest tier stays open.
    pub(crate) hard_stop: bool,
}

impl Config {
    pub(crate) fn parse(json: &str) -> Result<Self, PolicyError> {
        let mut config = Self {
            tiers: Vec::new(),
            thresholds: Vec::new(),
            period_ms: 24 * 60 * 60 * 1000,
            tenants: Vec::new(),
            default_milli: None,
            hard_stop: false,
        };
        let mut thresholds = None;
        config::read(json, |key, value| {
            match key {
                "tiers" => {
                    config.tiers = value.strings()?;
                    if config.tiers.is_empty() {
                        return Err(value.error("expected at least one tier"));
                    }
                }
                "thresholds" => {
                    let steps = value.list(|step| step.integer(1..=1000u16))?;
                    if !steps.is_sorted_by(|a, b| a < b) {
                        return Err(value.error("thresholds must be in ascending order"));
                    }
                    thresholds = Some((steps, value.error("expected fewer thresholds than tiers")));
                }
                // Up to four weeks, so that milliseconds fit.
                "period-h" => config.period_ms = value.integer(1..=24 * 28u32)? * 60 * 60 * 1000,
                "tenants" => value.entries(|tenant, limit| {
                    config.tenants.push((tenant.to_owned(), limit.integer(0..=u32::MAX)?));
                    Ok(())
                })?,
                "default-milli" => config.default_milli = Some(value.integer(0..=u32::MAX)?),
                "hard-stop" => config.hard_stop = value.bool()?,
                _ => return Err(value.unknown_key()),
            }
            Ok(())
        })?;
        let limited = !config.tenants.is_empty() || config.default_milli.is_some();
        if config.tiers.is_empty() && (limited || thresholds.is_some()) {
            return Err(PolicyError::InvalidConfig(
                "tiers: required; list the tiers, most expensive first".into(),
            ));
        }
        let last = config.tiers.len().saturating_sub(1);
        config.thresholds = match thresholds {
            Some((steps, too_many)) if steps.len() > last => return Err(too_many),
            Some((steps, _)) => steps,
            None => even_thresholds(last),
        };
        Ok(config)
    }
}

/// Returns thresholds that divide the limit evenly: 500 for two tiers, 333 and 666 for three.
fn even_thresholds(steps: usize) -> Vec<u16> {
    let threshold = |step: usize| u16::try_from(1000 * step / (steps + 1)).unwrap_or(1000);
    (1..=steps).map(threshold).collect()
}
