//! The import of configurations of other routers and engines. A source is read from text into a
//! document, which is written as a configuration, and a [`Report`] of all settings without an equal
//! counterpart. Nothing here reads files or the environment.

mod command;
mod compose;
mod document;
mod env;
mod error;
mod fields;
mod flags;
mod kind;
mod litellm;
mod llama_server;
mod llama_swap;
mod output;
mod report;
mod words;
mod yaml;

pub use self::error::{ErrorCode, ImportError};
pub use self::kind::Kind;
pub use self::report::{Item, Report};

use self::output::Output;

/// Maximum size of a source in bytes. Configurations of hundreds of models have 100 kB.
pub const MAX_BYTES: usize = 1 << 20;
/// Maximum number of lanes that are imported from one source.
const MAX_LANES: usize = 1000;

/// The result of an import.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    /// The kind of the source.
    pub kind: Kind,
    /// The configuration as TOML, with comments. Contains no secrets.
    pub toml: String,
    /// The number of lanes in it.
    pub lanes: usize,
    /// What has no equal counterpart. Contains no secrets.
    pub report: Report,
}

/// Imports the text of a source. `file` is its name for messages; without `kind`, the kind is
/// detected from the content.
///
/// # Errors
/// If the text is too large or malformed, if its kind is unknown or ambiguous, or if it describes
/// no lane.
pub fn import(file: &str, text: &str, kind: Option<Kind>) -> Result<Imported, ImportError> {
    if text.len() > MAX_BYTES {
        let message = format!("{} bytes exceed the limit of {MAX_BYTES}", text.len());
        return Err(ErrorCode::TooLarge.error(file, message));
    }
    let text = &document::without_marks(text.strip_prefix('\u{feff}').unwrap_or(text));
    let kind = match kind {
        Some(kind) => kind,
        None => kind::detect(file, text)?,
    };
    let mut output = Output::new(file, kind);
    match kind {
        Kind::LlamaSwap => llama_swap::read(&yaml::parse(file, text)?, &mut output),
        Kind::LlamaServer => llama_server::read(text, &mut output)?,
        Kind::Litellm => litellm::read(&yaml::parse(file, text)?, &mut output),
        Kind::Compose => compose::read(&yaml::parse(file, text)?, &mut output),
        Kind::Env => env::read(text, &mut output)?,
    }
    let lanes = output.document.lanes.len();
    if lanes == 0 {
        let reasons: Vec<String> = output.items.iter().map(ToString::to_string).collect();
        let reasons = if reasons.is_empty() {
            String::new()
        } else {
            format!(":\n  {}", reasons.join("\n  "))
        };
        let message = format!("found {} that can be imported{reasons}", kind.nothing());
        return Err(ErrorCode::NothingFound.error(file, message));
    }
    if lanes > MAX_LANES {
        let message = format!("{lanes} lanes exceed the limit of {MAX_LANES}");
        return Err(ErrorCode::TooLarge.error(file, message));
    }
    let toml = output.document.to_toml(file, kind);
    Ok(Imported { kind, toml, lanes, report: Report { items: output.items } })
}

#[cfg(test)]
mod tests;
