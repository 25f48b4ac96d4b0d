//! The configuration of the policy.

use pointsman_sdk::{PolicyError, config};

/// Range of priorities, as in the manifest.
pub(crate) const PRIORITIES: (i32, i32) = (-10, 10);

#[derive(Debug, Clone)]
pub(crate) struct Config {
    /// Length of a window in milliseconds.
    pub(crate) window_ms: u32,
    /// Limits of listed tenants.
    pub(crate) tenants: Vec<(String, Limits)>,
    /// Limits of all other tenants, and of requests without a tenant.
    pub(crate) default: Limits,
    /// How the default limits are applied.
    pub(crate) unknown: Unknown,
    /// Output tokens assumed for a request without an output limit.
    pub(crate) output_tokens: u32,
}

/// Limits of one tenant per window; `None` for no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Limits {
    pub(crate) requests: Option<u32>,
    pub(crate) tokens: Option<u32>,
    pub(crate) priority: i32,
}

/// How unlisted tenants and requests without a tenant are treated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unknown {
    /// Each of them has the default limits.
    Each,
    /// All of them share the default limits.
    Shared,
    /// They are rejected.
    Reject,
}

impl Config {
    pub(crate) fn parse(json: &str) -> Result<Self, PolicyError> {
        let mut config = Self {
            window_ms: 60_000,
            tenants: Vec::new(),
            default: Limits::default(),
            unknown: Unknown::Each,
            output_tokens: 256,
        };
        config::read(json, |key, value| {
            match key {
                "window-s" => config.window_ms = value.integer(1..=24 * 60 * 60u32)? * 1000,
                "tenants" => value.entries(|tenant, limits| {
                    config.tenants.push((tenant.to_owned(), self::limits(limits)?));
                    Ok(())
                })?,
                "default" => config.default = limits(value)?,
                "unknown" => {
                    config.unknown = value.choice(&[
                        ("each", Unknown::Each),
                        ("shared", Unknown::Shared),
                        ("reject", Unknown::Reject),
                    ])?;
                }
                "output-tokens" => config.output_tokens = value.integer(0..=1_000_000)?,
                _ => return Err(value.unknown_key()),
            }
            Ok(())
        })?;
        Ok(config)
    }
}

fn limits(value: &config::Value<'_, '_>) -> Result<Limits, PolicyError> {
    let mut limits = Limits::default();
    value.entries(|key, value| {
        match key {
            "requests" => limits.requests = Some(value.integer(0..=u32::MAX)?),
            "tokens" => limits.tokens = Some(value.integer(0..=u32::MAX)?),
            "priority" => limits.priority = value.integer(PRIORITIES.0..=PRIORITIES.1)?,
            _ => return Err(value.unknown_key()),
        }
        Ok(())
    })?;
    Ok(limits)
}
