//! The operator's configuration.

use pointsman_sdk::{PolicyError, config};

#[derive(Debug, Clone)]
pub(crate) struct Config {
    /// Values of the label `tier`, dearest first.
    pub(crate) tiers: Vec<String>,
    /// Parts of a thousand of the limit; at each one more tier is out of reach.
    pub(crate) thresholds: Vec<u16>,
    /// Length of a period in milliseconds.
    pub(crate) period_ms: u32,
    /// What tenants may spend in a period, in thousandths of the unit of prices.
    pub(crate) tenants: Vec<(String, u32)>,
    /// What everybody else may spend, each; no limit without one.
    pub(crate) default_milli: Option<u32>,
    /// Refuse whoever has spent everything; else the cheapest tier stays open.
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
                    config.tiers = value.texts()?;
                    if config.tiers.is_empty() {
                        return Err(value.wrong("must name at least one tier"));
                    }
                }
                "thresholds" => {
                    let steps = value.list(|step| step.number(1..=1000u16))?;
                    if !steps.is_sorted_by(|a, b| a < b) {
                        return Err(value.wrong("must rise from one to the next"));
                    }
                    thresholds = Some((steps, value.wrong("must be fewer than there are tiers")));
                }
                // Up to four weeks, so that milliseconds fit.
                "period-h" => config.period_ms = value.number(1..=24 * 28u32)? * 60 * 60 * 1000,
                "tenants" => value.each(|tenant, limit| {
                    config.tenants.push((tenant.to_owned(), limit.number(0..=u32::MAX)?));
                    Ok(())
                })?,
                "default-milli" => config.default_milli = Some(value.number(0..=u32::MAX)?),
                "hard-stop" => config.hard_stop = value.flag()?,
                _ => return Err(value.unknown()),
            }
            Ok(())
        })?;
        let limited = !config.tenants.is_empty() || config.default_milli.is_some();
        if config.tiers.is_empty() && (limited || thresholds.is_some()) {
            return Err(PolicyError::InvalidConfig(
                "tiers: is missing; it names the tiers, dearest first".into(),
            ));
        }
        let last = config.tiers.len().saturating_sub(1);
        config.thresholds = match thresholds {
            Some((steps, too_many)) if steps.len() > last => return Err(too_many),
            Some((steps, _)) => steps,
            None => evenly(last),
        };
        Ok(config)
    }
}

/// Thresholds that part the limit evenly: 500 for two tiers, 333 and 666 for three.
fn evenly(steps: usize) -> Vec<u16> {
    let place = |step: usize| u16::try_from(1000 * step / (steps + 1)).unwrap_or(1000);
    (1..=steps).map(place).collect()
}
