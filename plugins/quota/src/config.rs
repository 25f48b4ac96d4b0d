//! The operator's configuration.

use pointsman_sdk::{PolicyError, config};

/// Priorities that the manifest allows.
pub(crate) const PRIORITIES: (i32, i32) = (-10, 10);

#[derive(Debug, Clone)]
pub(crate) struct Config {
    /// Length of a window in milliseconds.
    pub(crate) window_ms: u32,
    /// Tenants with limits of their own.
    pub(crate) tenants: Vec<(String, Limits)>,
    /// Limits of everybody else.
    pub(crate) default: Limits,
    /// Who everybody else is.
    pub(crate) unknown: Unknown,
    /// Output that is assumed where a request sets no limit of its own.
    pub(crate) output_tokens: u32,
}

/// What one tenant may have in a window; without a number there is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Limits {
    pub(crate) requests: Option<u32>,
    pub(crate) tokens: Option<u32>,
    pub(crate) priority: i32,
}

/// How tenants without limits of their own are treated, and requests without a tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unknown {
    /// Each has the default limits to itself.
    Each,
    /// All of them together have the default limits.
    Shared,
    /// They are refused.
    Refuse,
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
                "window-s" => config.window_ms = value.number(1..=24 * 60 * 60u32)? * 1000,
                "tenants" => value.each(|tenant, limits| {
                    config.tenants.push((tenant.to_owned(), self::limits(limits)?));
                    Ok(())
                })?,
                "default" => config.default = limits(value)?,
                "unknown" => {
                    config.unknown = value.word(&[
                        ("each", Unknown::Each),
                        ("shared", Unknown::Shared),
                        ("refuse", Unknown::Refuse),
                    ])?;
                }
                "output-tokens" => config.output_tokens = value.number(0..=1_000_000)?,
                _ => return Err(value.unknown()),
            }
            Ok(())
        })?;
        Ok(config)
    }
}

fn limits(value: &config::Value<'_, '_>) -> Result<Limits, PolicyError> {
    let mut limits = Limits::default();
    value.each(|key, value| {
        match key {
            "requests" => limits.requests = Some(value.number(0..=u32::MAX)?),
            "tokens" => limits.tokens = Some(value.number(0..=u32::MAX)?),
            "priority" => limits.priority = value.number(PRIORITIES.0..=PRIORITIES.1)?,
            _ => return Err(value.unknown()),
        }
        Ok(())
    })?;
    Ok(limits)
}
