//! The configuration of the policy.

use std::collections::BTreeMap;

use pointsman_sdk::{PolicyError, config};

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Config {
    /// Home lanes by tenant.
    pub(crate) teams: BTreeMap<String, String>,
    /// Lane for prompts with code.
    pub(crate) code_lane: Option<String>,
    /// Prompts of more tokens than this are long.
    pub(crate) long_tokens: u32,
    /// Lane for long prompts.
    pub(crate) long_lane: Option<String>,
}

impl Config {
    pub(crate) fn parse(json: &str) -> Result<Self, PolicyError> {
        let mut config =
            Self { teams: BTreeMap::new(), code_lane: None, long_tokens: 8_000, long_lane: None };
        config::read(json, |key, value| {
            match key {
                "teams" => value.entries(|tenant, lane| {
                    config.teams.insert(tenant.to_owned(), lane.string()?);
                    Ok(())
                })?,
                "code-lane" => config.code_lane = Some(value.string()?),
                "long-tokens" => config.long_tokens = value.integer(1..=u32::MAX)?,
                "long-lane" => config.long_lane = Some(value.string()?),
                _ => return Err(value.unknown_key()),
            }
            Ok(())
        })?;
        Ok(config)
    }
}
