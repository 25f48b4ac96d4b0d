//! The kinds of sources, and how they are told apart.

use super::error::{ErrorCode, ImportError};
use super::yaml::{self, Node};

/// What a source was written for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The `config.yaml` of llama-swap.
    LlamaSwap,
    /// The presets of llama-server's router mode, `models.ini`.
    LlamaServer,
    /// The `config.yaml` of the proxy of LiteLLM.
    Litellm,
    /// A compose file with services of vLLM or llama.cpp.
    Compose,
    /// An env file with settings of vLLM.
    Env,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 5] =
        [Self::LlamaSwap, Self::LlamaServer, Self::Litellm, Self::Compose, Self::Env];

    /// Returns the name, as it is given to `--from`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::LlamaSwap => "llama-swap",
            Self::LlamaServer => "llama-server",
            Self::Litellm => "litellm",
            Self::Compose => "compose",
            Self::Env => "env",
        }
    }

    /// Returns what is missing in a source without a lane.
    pub(crate) fn nothing(self) -> &'static str {
        match self {
            Self::LlamaSwap => "no entry of `models`",
            Self::LlamaServer => "no section of a model",
            Self::Litellm => "no entry of `model_list`",
            Self::Compose => "no service of vLLM or llama.cpp",
            Self::Env => "no `VLLM_MODEL`",
        }
    }
}

/// The key of a YAML file that only one kind has.
const YAML_KEYS: [(&str, Kind); 3] =
    [("models", Kind::LlamaSwap), ("model_list", Kind::Litellm), ("services", Kind::Compose)];

/// Returns the kind of a text. Files whose lines are assignments or sections are not parsed as
/// YAML, of which such lines would be text.
pub(crate) fn detect(file: &str, text: &str) -> Result<Kind, ImportError> {
    let lines = || {
        let lines = text.lines().map(str::trim);
        lines.filter(|line| !line.is_empty() && !line.starts_with(['#', ';']))
    };
    let is_section = |line: &str| line.starts_with('[') && line.ends_with(']');
    let is_assignment = |line: &str| {
        let line = line.strip_prefix("export ").unwrap_or(line);
        line.split_once('=').is_some_and(|(name, _)| is_variable(name.trim()))
    };
    if lines().next().is_none() {
        return Err(ErrorCode::NothingFound.error(file, "the file is empty"));
    }
    if lines().any(is_section) && lines().all(|line| is_section(line) || line.contains('=')) {
        return Ok(Kind::LlamaServer);
    }
    if lines().all(is_assignment) {
        return Ok(Kind::Env);
    }
    let root = yaml::parse(file, text)?;
    let has = |key: &str| root.get(key).is_some_and(|value| !matches!(value, Node::Null));
    let found: Vec<_> = YAML_KEYS.into_iter().filter(|(key, _)| has(key)).collect();
    match found.as_slice() {
        [(_, kind)] => Ok(*kind),
        [] => {
            let message = "unknown content: expected `models` (llama-swap), `model_list` \
                           (LiteLLM), `services` (compose), sections (llama-server) or \
                           assignments (env); say what it is with --from";
            Err(ErrorCode::UnknownKind.error(file, message))
        }
        several => {
            let keys: Vec<_> = several.iter().map(|(key, _)| format!("`{key}`")).collect();
            let kinds: Vec<_> =
                several.iter().map(|(_, kind)| format!("--from {}", kind.name())).collect();
            let message = format!("has {}; add {}", keys.join(" and "), kinds.join(" or "));
            Err(ErrorCode::Ambiguous.error(file, message))
        }
    }
}

fn is_variable(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with(|first: char| first.is_ascii_digit())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}
