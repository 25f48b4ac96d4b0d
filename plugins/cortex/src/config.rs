//! The operator's configuration: JSON with kebab-case keys, every one optional, none unknown.

use nojson::{JsonParseError, RawJson, RawJsonValue};
use pointsman_sdk::PolicyError;

#[derive(Debug, Clone)]
pub(crate) struct Config {
    /// Other model names for a lane.
    pub(crate) aliases: Vec<(String, String)>,
    /// A prompt of more tokens than this is for super_reader.
    pub(crate) long_context_tokens: u32,
    /// What in a prompt tells that it is about code.
    pub(crate) code_markers: Vec<String>,
    /// What in a prompt tells that it brings its own sources. Case is ignored.
    pub(crate) retrieval_markers: Vec<String>,
    /// Header in which a client may say what it is about: `code`, `retrieval`, `reading` or `planning`.
    pub(crate) task_header: String,
    /// A lane that could start within this time is not passed over for being busy.
    pub(crate) patience_ms: u32,
    /// Time to the first token that makes a stream fall back.
    pub(crate) first_token_ms: Option<u32>,
    /// A system message put before all others.
    pub(crate) system_prompt: Option<SystemPrompt>,
}

#[derive(Debug, Clone)]
pub(crate) struct SystemPrompt {
    pub(crate) text: String,
    /// Lanes that get it; all, where none are named.
    pub(crate) lanes: Vec<String>,
}

impl Default for Config {
    fn default() -> Self {
        let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        Self {
            aliases: Vec::new(),
            long_context_tokens: 24_000,
            code_markers: texts(&["```", "def ", "fn ", "#include", "refactor"]),
            retrieval_markers: texts(&["context:", "<document", "sources:"]),
            task_header: "x-cortex-task".to_owned(),
            patience_ms: 20_000,
            first_token_ms: None,
            system_prompt: None,
        }
    }
}

impl Config {
    pub(crate) fn parse(json: &str) -> Result<Self, PolicyError> {
        let json = RawJson::parse(json).map_err(|error| invalid(&error))?;
        Self::read(json.value()).map_err(|error| invalid(&error))
    }

    fn read(json: RawJsonValue<'_, '_>) -> Result<Self, JsonParseError> {
        let mut config = Self::default();
        for (key, value) in json.to_object()? {
            match &*key.to_unquoted_string_str()? {
                "aliases" => config.aliases = pairs(value)?,
                "long-context-tokens" => config.long_context_tokens = value.try_into()?,
                "code-markers" => config.code_markers = value.try_into()?,
                "retrieval-markers" => config.retrieval_markers = value.try_into()?,
                "task-header" => config.task_header = value.try_into()?,
                "patience-ms" => config.patience_ms = value.try_into()?,
                "first-token-ms" => config.first_token_ms = value.try_into()?,
                "system-prompt" => config.system_prompt = Some(SystemPrompt::read(value)?),
                unknown => return Err(key.invalid(format!("there is no key `{unknown}`"))),
            }
        }
        Ok(config)
    }
}

fn pairs(json: RawJsonValue<'_, '_>) -> Result<Vec<(String, String)>, JsonParseError> {
    json.to_object()?.map(|(key, value)| Ok((key.try_into()?, value.try_into()?))).collect()
}

impl SystemPrompt {
    fn read(json: RawJsonValue<'_, '_>) -> Result<Self, JsonParseError> {
        let mut prompt = Self { text: String::new(), lanes: Vec::new() };
        for (key, value) in json.to_object()? {
            match &*key.to_unquoted_string_str()? {
                "text" => prompt.text = value.try_into()?,
                "lanes" => prompt.lanes = value.try_into()?,
                unknown => {
                    return Err(key.invalid(format!("there is no key `system-prompt.{unknown}`")));
                }
            }
        }
        if prompt.text.is_empty() {
            return Err(json.invalid("system-prompt.text is missing or empty"));
        }
        Ok(prompt)
    }
}

fn invalid(error: &JsonParseError) -> PolicyError {
    PolicyError::InvalidConfig(error.to_string())
}
