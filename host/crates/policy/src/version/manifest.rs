//! The manifest of a policy: `policy.toml` in its folder.

use std::path::{Path, PathBuf};
use std::time::Duration;

use pointsman_domain::{Allow, units};
use pointsman_files::{ReadError, read_regular_text};
use pointsman_spec::{check_deadline, check_memory};
use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde::{Deserialize, Deserializer};

use crate::limits::MAX_MANIFEST_BYTES;

/// The name of the manifest in a policy's folder.
pub(crate) const FILE: &str = "policy.toml";

/// A parsed manifest.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Manifest {
    pub(crate) name: String,
    pub(crate) version: String,
    #[serde(default)]
    #[expect(dead_code, reason = "documentation in the manifest")]
    description: String,
    /// The name of the contract's track.
    pub(crate) api: String,
    #[serde(default = "default_file")]
    pub(crate) file: PathBuf,
    #[serde(default = "default_cases")]
    pub(crate) cases: PathBuf,
    #[serde(default)]
    pub(crate) limits: Limits,
    #[serde(default)]
    allow: AllowTable,
    #[serde(default)]
    pub(crate) hooks: Hooks,
    pub(crate) build: Option<Build>,
}

/// Limits that the policy requests. Those above the maximums of the host are invalid.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Limits {
    #[serde(default, deserialize_with = "deadline")]
    #[schemars(with = "Option<String>")]
    pub(crate) deadline: Option<Duration>,
    #[serde(default, deserialize_with = "duration")]
    #[schemars(with = "Option<String>")]
    pub(crate) budget: Option<Duration>,
    #[serde(default, deserialize_with = "memory")]
    #[schemars(with = "Option<String>")]
    pub(crate) memory: Option<u64>,
    /// Calls after which an instance is replaced; 1 for a policy whose instances must not keep
    /// anything from one request to the next.
    pub(crate) calls: Option<u32>,
}

#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct AllowTable {
    #[serde(default)]
    fields: Vec<String>,
    #[serde(default)]
    headers: Vec<String>,
    #[serde(default)]
    system: bool,
    #[serde(default)]
    model: bool,
    #[serde(default)]
    body: bool,
    #[serde(default)]
    priority: (i32, i32),
    #[serde(default)]
    metrics: Vec<String>,
    #[serde(default = "default_interfaces")]
    interfaces: Vec<String>,
}

impl Default for AllowTable {
    fn default() -> Self {
        Self {
            fields: Vec::new(),
            headers: Vec::new(),
            system: false,
            model: false,
            body: false,
            priority: (0, 0),
            metrics: Vec::new(),
            interfaces: default_interfaces(),
        }
    }
}

/// The interfaces that `allow.interfaces` can list. `request` and `fleet` are always allowed,
/// because every policy needs them.
const INTERFACES: [&str; 3] = ["log", "metrics", "state"];

fn default_interfaces() -> Vec<String> {
    INTERFACES.map(str::to_owned).into()
}

/// Settings of the hooks that are not about a request.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Hooks {
    /// The interval of `on-tick`.
    #[serde(default, deserialize_with = "duration")]
    #[schemars(with = "Option<String>")]
    pub(crate) tick: Option<Duration>,
}

/// How the policy is built, and what `cargo xtask guests` recorded. The host only uses the digest.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Build {
    #[expect(dead_code, reason = "read by the build tools")]
    language: Option<String>,
    #[expect(dead_code, reason = "read by the build tools")]
    source: Option<String>,
    #[expect(dead_code, reason = "read by the build tools")]
    command: Option<Vec<String>>,
    #[expect(dead_code, reason = "read by the build tools")]
    world: Option<String>,
    #[expect(dead_code, reason = "read by the build tools")]
    hooks: Option<Vec<String>>,
    #[expect(dead_code, reason = "read by the tests of the repository")]
    inputs_sha256: Option<String>,
    pub(crate) component_sha256: Option<String>,
}

/// An error in a manifest, with its file.
#[derive(Debug, thiserror::Error)]
#[error("{}{problem}", prefix(file, problem))]
pub struct ManifestError {
    file: PathBuf,
    problem: ManifestProblem,
}

/// The cause of a [`ManifestError`].
#[derive(Debug, thiserror::Error)]
pub(crate) enum ManifestProblem {
    #[error(transparent)]
    Read(ReadError),
    #[error("{0}")]
    Syntax(String),
    #[error(
        "{key}: invalid file name \"{}\": expected a file in the policy's folder",
        path.display()
    )]
    Path { key: &'static str, path: PathBuf },
    #[error(
        "allow.interfaces: unknown interface `{0}`; expected one of {known}",
        known = INTERFACES.join(", ")
    )]
    UnknownInterface(String),
}

impl ManifestError {
    /// Returns the stable, machine-readable code of this error.
    pub fn code(&self) -> &'static str {
        match &self.problem {
            ManifestProblem::Read(error) => read_error_code(error),
            ManifestProblem::Syntax(_)
            | ManifestProblem::Path { .. }
            | ManifestProblem::UnknownInterface(_) => "manifest_invalid",
        }
    }

    /// Returns the cause.
    #[cfg(test)]
    pub(crate) fn problem(&self) -> &ManifestProblem {
        &self.problem
    }
}

impl Manifest {
    /// Reads the manifest in `dir`.
    ///
    /// # Errors
    /// If the manifest is unreadable or invalid; the error names the file and, if known, the line.
    pub(crate) fn load(dir: &Path) -> Result<Self, ManifestError> {
        let file = dir.join(FILE);
        match read_regular_text(&file, MAX_MANIFEST_BYTES) {
            Ok(text) => Self::parse(&file, &text),
            Err(error) => Err(ManifestError { file, problem: ManifestProblem::Read(error) }),
        }
    }

    /// Parses `text`, the content of the manifest `file`.
    ///
    /// # Errors
    /// If the text is not a valid manifest; the error names the file and, if known, the line.
    pub(crate) fn parse(file: &Path, text: &str) -> Result<Self, ManifestError> {
        let fail = |problem| ManifestError { file: file.to_owned(), problem };
        let manifest: Self =
            toml::from_str(text).map_err(|error| fail(syntax_problem(file, text, &error)))?;
        for (key, path) in [("file", &manifest.file), ("cases", &manifest.cases)] {
            // A path out of the folder would let a manifest read any file of the host.
            if path.components().count() != 1 || path.file_name().is_none() {
                return Err(fail(ManifestProblem::Path { key, path: path.clone() }));
            }
        }
        if let Some(other) =
            manifest.allow.interfaces.iter().find(|name| !INTERFACES.contains(&name.as_str()))
        {
            return Err(fail(ManifestProblem::UnknownInterface(other.clone())));
        }
        Ok(manifest)
    }

    /// Returns what the policy may read and change.
    pub(crate) fn allow(&self) -> Allow {
        let AllowTable { fields, headers, system, model, body, priority, .. } = self.allow.clone();
        let headers = headers.into_iter().map(|name| name.to_ascii_lowercase()).collect();
        Allow { fields, headers, system, model, body, priority }
    }

    /// Returns the interfaces, beyond `request` and `fleet`, that the component may import.
    pub(crate) fn interfaces(&self) -> &[String] {
        &self.allow.interfaces
    }

    /// Returns the names of the policy's custom metrics.
    pub(crate) fn metrics(&self) -> &[String] {
        &self.allow.metrics
    }
}

/// Returns the JSON Schema of a manifest, of draft 7.
pub fn manifest_schema() -> serde_json::Value {
    SchemaSettings::draft07().into_generator().into_root_schema_for::<Manifest>().to_value()
}

/// Checks the manifest in the folder of a policy, without reading its component.
///
/// # Errors
/// If a host would not accept the manifest; the error names the file and, if known, the line.
pub fn check_manifest(dir: &Path) -> Result<(), ManifestError> {
    Manifest::load(dir).map(drop)
}

/// Returns the beginning of an error message. Errors of reading name the file themselves.
fn prefix(file: &Path, problem: &ManifestProblem) -> String {
    match problem {
        ManifestProblem::Read(_) => String::new(),
        ManifestProblem::Syntax(_)
        | ManifestProblem::Path { .. }
        | ManifestProblem::UnknownInterface(_) => format!("{}: ", file.display()),
    }
}

/// Describes an error in a manifest. Its lines are only quoted if the file is in the policy's
/// folder: a link to another file of the host must not show that file to people who see the error.
fn syntax_problem(file: &Path, text: &str, error: &toml::de::Error) -> ManifestProblem {
    let is_inside = || {
        let folder = file.parent()?.canonicalize().ok()?;
        Some(file.canonicalize().ok()?.starts_with(folder))
    };
    // The message of a TOML error ends with a line break.
    ManifestProblem::Syntax(match is_inside() {
        Some(true) => error.to_string().trim_end().to_owned(),
        _ => {
            let end = error.span().map_or(0, |span| span.start);
            let line = text.bytes().take(end).filter(|byte| *byte == b'\n').count() + 1;
            format!("invalid manifest at line {line} of a file outside of the policy's folder")
        }
    })
}

/// Returns the stable, machine-readable code of an error of reading a policy's file.
pub(crate) fn read_error_code(error: &ReadError) -> &'static str {
    match error {
        error if error.is_not_found() => "file_missing",
        ReadError::Io { .. } => "file_unreadable",
        ReadError::NotRegular(_) => "file_not_regular",
        ReadError::TooLarge { .. } => "file_too_large",
        ReadError::NotUtf8(_) => "file_not_utf8",
        ReadError::Foreign(_) => "file_untrusted",
    }
}

fn default_file() -> PathBuf {
    "policy.wasm".into()
}

fn default_cases() -> PathBuf {
    "cases.jsonl".into()
}

fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    let text = String::deserialize(deserializer)?;
    units::duration(&text).map(Some).map_err(serde::de::Error::custom)
}

fn deadline<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    let deadline = duration(deserializer)?;
    deadline.map(check_deadline).transpose().map_err(serde::de::Error::custom)
}

fn memory<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    let text = String::deserialize(deserializer)?;
    let bytes = units::bytes(&text).map_err(serde::de::Error::custom)?;
    check_memory(bytes).map(Some).map_err(serde::de::Error::custom)
}

#[cfg(test)]
mod tests;
