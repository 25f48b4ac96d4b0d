//! The configuration, and sentences about its mistakes.

use std::collections::BTreeMap;
use std::fmt::Display;

use nojson::{RawJson, RawJsonValue};

/// What an operator can set.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Config {
    /// Home lanes by tenant.
    pub(crate) teams: BTreeMap<String, String>,
    pub(crate) code_lane: Option<String>,
    /// Prompts of more tokens are long.
    pub(crate) long_tokens: u32,
    pub(crate) long_lane: Option<String>,
}

impl Config {
    pub(crate) fn parse(json: &str) -> Result<Self, String> {
        let json = RawJson::parse(json).map_err(|_| "the configuration is no JSON")?;
        let members =
            json.value().to_object().map_err(|_| "the configuration must be an object")?;
        let mut config =
            Self { teams: BTreeMap::new(), code_lane: None, long_tokens: 8_000, long_lane: None };
        for (key, value) in members {
            let key = text(key, "a key")?;
            match key.as_str() {
                "teams" => config.teams = teams(value)?,
                "code-lane" => config.code_lane = Some(text(value, key)?),
                "long-tokens" => config.long_tokens = tokens(value)?,
                "long-lane" => config.long_lane = Some(text(value, key)?),
                _ => return Err(format!("there is no key `{key}`")),
            }
        }
        Ok(config)
    }
}

fn teams(json: RawJsonValue<'_, '_>) -> Result<BTreeMap<String, String>, String> {
    let members = json.to_object().map_err(|_| "`teams` must be an object")?;
    let team = |(tenant, lane)| {
        let tenant = text(tenant, "a key")?;
        let lane = text(lane, format_args!("teams.{tenant}"))?;
        Ok((tenant, lane))
    };
    members.map(team).collect()
}

fn text(json: RawJsonValue<'_, '_>, key: impl Display) -> Result<String, String> {
    json.try_into().map_err(|_| format!("`{key}` must be a text"))
}

fn tokens(json: RawJsonValue<'_, '_>) -> Result<u32, String> {
    let number: Option<u32> = json.try_into().ok();
    number
        .filter(|number| *number > 0)
        .ok_or_else(|| format!("`long-tokens` must be a whole number from 1 to {}", u32::MAX))
}
