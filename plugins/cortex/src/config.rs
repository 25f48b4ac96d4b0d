//! The configuration of the policy.

use pointsman_sdk::config::Value;
use pointsman_sdk::{PolicyError, Triggers, config};

use crate::lanes::Lane;

#[derive(Debug, Clone)]
pub(crate) struct Config {
    /// Additional model names, each with its lane.
    pub(crate) aliases: Vec<(String, Lane)>,
    /// Prompts of more tokens than this go to super_reader.
    pub(crate) long_context_tokens: u32,
    /// Substrings of a prompt about code.
    pub(crate) code_markers: Vec<String>,
    /// Substrings of a prompt that includes its own sources; case-insensitive.
    pub(crate) retrieval_markers: Vec<String>,
    /// Header in which a client may name its task: `code`, `retrieval`, `reading` or `planning`.
    pub(crate) task_header: String,
    /// A lane that could start within this time is chosen even if another one could start sooner.
    pub(crate) patience_ms: u32,
    /// Timeout for the first token, after which a request falls back.
    pub(crate) first_token_ms: Option<u32>,
    /// Events after which a request falls back to super_reader. By default all, but for a full
    /// queue if super_reader does not serve the model name of the request.
    pub(crate) fallback_on: Option<Triggers>,
    /// A system message to insert before all others.
    pub(crate) system_prompt: Option<SystemPrompt>,
}

#[derive(Debug, Clone)]
pub(crate) struct SystemPrompt {
    pub(crate) text: String,
    /// Lanes whose requests get the system message; all lanes if empty.
    pub(crate) lanes: Vec<Lane>,
}

impl Default for Config {
    fn default() -> Self {
        let strings = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect();
        Self {
            aliases: Vec::new(),
            long_context_tokens: 24_000,
            code_markers: strings(&["```", "def ", "fn ", "#include", "refactor"]),
            retrieval_markers: strings(&["context:", "<document", "sources:"]),
            task_header: "x-cortex-task".to_owned(),
            patience_ms: 20_000,
            first_token_ms: None,
            fallback_on: None,
            system_prompt: None,
        }
    }
}

impl Config {
    pub(crate) fn parse(json: &str) -> Result<Self, PolicyError> {
        let mut config = Self::default();
        config::read(json, |key, value| {
            match key {
                "aliases" => value.entries(|alias, name| {
                    config.aliases.push((alias.to_owned(), lane(name)?));
                    Ok(())
                })?,
                "long-context-tokens" => {
                    config.long_context_tokens = value.integer(0..=u32::MAX)?;
                }
                "code-markers" => config.code_markers = value.strings()?,
                "retrieval-markers" => config.retrieval_markers = value.strings()?,
                "task-header" => config.task_header = value.string()?,
                "patience-ms" => config.patience_ms = value.integer(0..=u32::MAX)?,
                "first-token-ms" => {
                    let is_set = !value.is_null();
                    config.first_token_ms =
                        if is_set { Some(value.integer(0..=u32::MAX)?) } else { None };
                }
                "fallback-on" => {
                    config.fallback_on = Some(value.list(trigger)?.into_iter().collect());
                }
                "system-prompt" => config.system_prompt = Some(system_prompt(value)?),
                _ => return Err(value.unknown_key()),
            }
            Ok(())
        })?;
        Ok(config)
    }
}

fn lane(value: &Value<'_, '_>) -> Result<Lane, PolicyError> {
    value.choice(&Lane::ALL.map(|lane| (lane.name(), lane)))
}

fn trigger(value: &Value<'_, '_>) -> Result<Triggers, PolicyError> {
    value.choice(&[
        ("queue-timeout", Triggers::QUEUE_TIMEOUT),
        ("connect-error", Triggers::CONNECT_ERROR),
        ("overloaded", Triggers::OVERLOADED),
        ("server-error", Triggers::SERVER_ERROR),
        ("engine-restart", Triggers::ENGINE_RESTART),
        ("first-token-timeout", Triggers::FIRST_TOKEN_TIMEOUT),
    ])
}

fn system_prompt(value: &Value<'_, '_>) -> Result<SystemPrompt, PolicyError> {
    let mut prompt = SystemPrompt { text: String::new(), lanes: Vec::new() };
    value.entries(|key, value| {
        match key {
            "text" => prompt.text = value.string()?,
            "lanes" => prompt.lanes = value.list(lane)?,
            _ => return Err(value.unknown_key()),
        }
        Ok(())
    })?;
    if prompt.text.is_empty() {
        return Err(value.error("`text` is required"));
    }
    Ok(prompt)
}
