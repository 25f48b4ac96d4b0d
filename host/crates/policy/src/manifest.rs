//! The manifest of a policy: `policy.toml` in its folder.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pointsman_domain::{Allow, units};
use serde::{Deserialize, Deserializer};

/// Name of the manifest in a policy's folder.
pub(crate) const FILE: &str = "policy.toml";

/// What a manifest says.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Manifest {
    pub(crate) name: String,
    pub(crate) version: String,
    #[serde(default)]
    #[expect(dead_code, reason = "for people who read the manifest")]
    description: String,
    /// Track of the contract.
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

/// Limits that the policy asks for; the host's own cap them.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Limits {
    #[serde(default, deserialize_with = "duration")]
    pub(crate) deadline: Option<Duration>,
    #[serde(default, deserialize_with = "duration")]
    pub(crate) budget: Option<Duration>,
    #[serde(default, deserialize_with = "bytes")]
    pub(crate) memory: Option<u64>,
    /// Calls after which an instance is replaced by a new one; 1 for one that nothing may be left over in.
    pub(crate) calls: Option<u32>,
}

#[derive(Debug, Clone, Deserialize)]
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
    #[serde(default = "every_interface")]
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
            interfaces: every_interface(),
        }
    }
}

/// Interfaces of the host that a manifest can leave out of `allow.interfaces`. `request` and `fleet` are what a policy is
/// for.
const INTERFACES: [&str; 3] = ["log", "metrics", "state"];

fn every_interface() -> Vec<String> {
    INTERFACES.map(str::to_owned).into()
}

/// When hooks are called that are not about a request.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Hooks {
    /// Time between two calls of `on-tick`.
    #[serde(default, deserialize_with = "duration")]
    pub(crate) tick: Option<Duration>,
}

/// How the policy is built, which is no concern of the host's, and what `cargo xtask guests` wrote down.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Build {
    #[expect(dead_code, reason = "read by whatever builds policies")]
    language: Option<String>,
    #[expect(dead_code, reason = "read by whatever builds policies")]
    source: String,
    #[expect(dead_code, reason = "read by whatever builds policies")]
    world: Option<String>,
    #[expect(dead_code, reason = "read by the tests of the tree")]
    inputs_sha256: Option<String>,
    pub(crate) component_sha256: Option<String>,
}

/// Why a manifest cannot be used.
#[derive(Debug, thiserror::Error)]
pub struct ManifestError {
    file: PathBuf,
    what: String,
}

impl fmt::Display for ManifestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.file.display(), self.what)
    }
}

impl Manifest {
    /// Read the manifest in `dir`.
    ///
    /// # Errors
    /// With the file and, where it can be told, the line.
    pub(crate) fn load(dir: &Path) -> Result<Self, ManifestError> {
        let file = dir.join(FILE);
        let cannot =
            |error| ManifestError { file: file.clone(), what: format!("cannot be read: {error}") };
        let text = std::fs::read_to_string(&file).map_err(cannot)?;
        Self::parse(&file, &text)
    }

    /// Read the text of the manifest `file`.
    ///
    /// # Errors
    /// With the file and, where it can be told, the line.
    pub(crate) fn parse(file: &Path, text: &str) -> Result<Self, ManifestError> {
        let fail = |what| ManifestError { file: file.to_owned(), what };
        let manifest: Self =
            toml::from_str(text).map_err(|error| fail(error.to_string().trim_end().to_owned()))?;
        for (key, path) in [("file", &manifest.file), ("cases", &manifest.cases)] {
            // A policy's folder is all there is of it; a path that leads out of it is a mistake, or worse.
            if path.components().count() != 1 || path.file_name().is_none() {
                return Err(fail(format!(
                    "{key}: \"{}\" must be the name of a file in this folder",
                    path.display()
                )));
            }
        }
        if let Some(other) =
            manifest.allow.interfaces.iter().find(|name| !INTERFACES.contains(&name.as_str()))
        {
            return Err(fail(format!(
                "allow.interfaces: there is no interface `{other}`; there are {}",
                INTERFACES.join(", ")
            )));
        }
        Ok(manifest)
    }

    pub(crate) fn allow(&self) -> Allow {
        let AllowTable { fields, headers, system, model, body, priority, .. } = self.allow.clone();
        let headers = headers.into_iter().map(|name| name.to_ascii_lowercase()).collect();
        Allow { fields, headers, system, model, body, priority }
    }

    /// Interfaces of the host, beyond `request` and `fleet`, that the component may import.
    pub(crate) fn interfaces(&self) -> &[String] {
        &self.allow.interfaces
    }

    /// Names of the policy's own figures.
    pub(crate) fn metrics(&self) -> &[String] {
        &self.allow.metrics
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

fn bytes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    let text = String::deserialize(deserializer)?;
    units::bytes(&text).map(Some).map_err(serde::de::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Manifest, String> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(FILE), text).unwrap();
        Manifest::load(dir.path()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_short_manifest_has_strict_defaults() {
        let manifest = load("name = \"a\"\nversion = \"1\"\napi = \"0.1\"").unwrap();
        assert_eq!(manifest.file, Path::new("policy.wasm"));
        assert_eq!(manifest.allow(), Allow::default());
        assert_eq!(manifest.limits.deadline, None);
    }

    #[test]
    fn mistakes_are_named_with_their_line() {
        for (text, part) in [
            ("name = \"a\"\nversion = \"1\"\napi = \"0.1\"\ncolour = 5", "line 4"),
            (
                "name = \"a\"\nversion = \"1\"\napi = \"0.1\"\n[limits]\ndeadline = \"5\"",
                "\"250ms\"",
            ),
            (
                "name = \"a\"\nversion = \"1\"\napi = \"0.1\"\nfile = \"../x.wasm\"",
                "in this folder",
            ),
            ("name = \"a\"", "missing field `version`"),
        ] {
            let error = load(text).unwrap_err();
            assert!(error.contains(part) && error.contains(FILE), "{text}: {error}");
        }
    }

    const WHOLE: &str = r#"
        name = "a"
        version = "1"
        api = "0.1"
        description = "d"
        [limits]
        deadline = "5ms"
        budget = "300us"
        memory = "16MiB"
        calls = 1
        [allow]
        fields = ["/a"]
        headers = ["x-a"]
        system = true
        model = true
        body = true
        priority = [-1, 1]
        metrics = ["m"]
        interfaces = ["state"]
        [hooks]
        tick = "30s"
    "#;

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig { failure_persistence: None, ..Default::default() })]

        /// A manifest with a part cut out, doubled or replaced is read or refused, with its name in the sentence.
        #[test]
        fn damaged_manifests_are_refused_with_a_sentence(from in 0usize..420, length in 0usize..40, instead in ".{0,20}") {
            let cut = |at: usize| WHOLE.floor_char_boundary(at.min(WHOLE.len()));
            let (from, to) = (cut(from), cut(from + length));
            let text = format!("{}{instead}{}", &WHOLE[..from], &WHOLE[to..]);
            if let Err(error) = Manifest::parse(Path::new(FILE), &text) {
                proptest::prop_assert!(error.to_string().starts_with(FILE));
            }
        }
    }

    #[test]
    fn a_whole_manifest_is_taken_over() {
        let manifest = load(WHOLE).unwrap();
        assert_eq!(manifest.limits.budget, Some(Duration::from_micros(300)));
        assert_eq!(
            (manifest.limits.calls, manifest.hooks.tick),
            (Some(1), Some(Duration::from_secs(30)))
        );
        assert_eq!(manifest.interfaces(), ["state"]);
        assert!(manifest.allow().body && manifest.allow().priority == (-1, 1));
        let unknown = load(&WHOLE.replace("[\"state\"]", "[\"clock\"]")).unwrap_err();
        assert!(
            unknown.contains("there is no interface `clock`; there are log, metrics, state"),
            "{unknown}"
        );
    }
}
