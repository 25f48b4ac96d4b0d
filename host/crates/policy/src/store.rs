//! Versions on disk, so that a host that was started anew knows what was in service, what it can go back to, and what was
//! set aside.
//!
//! ```text
//!   STORE/cortex/place.json               which version is what
//!   STORE/cortex/<fingerprint>/           what the version is made of, as it was in the policy's folder
//!     policy.toml  policy.wasm  cases.jsonl  policy.sig  settings.json
//! ```
//!
//! Nothing here is needed to serve: whatever fails is a line in the log.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::bundle::Bundle;
use crate::manifest;
use crate::signature;
use crate::spec::Settings;

const PLACE: &str = "place.json";
const SETTINGS: &str = "settings.json";

/// The versions of a policy, by their fingerprints.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub(crate) struct Remembered {
    pub(crate) active: Option<String>,
    /// What was tried out. It comes from the folder again, but can be in service by then.
    pub(crate) trial: Option<String>,
    pub(crate) history: Vec<String>,
    pub(crate) set_aside: Vec<(String, String)>,
    pub(crate) disabled: bool,
}

/// The folder of one policy in the store.
#[derive(Debug)]
pub(crate) struct Store {
    dir: PathBuf,
}

impl Store {
    /// The folder of the policy of that name, which is that of a folder already.
    pub(crate) fn of(store: &Path, policy: &str) -> Self {
        Self { dir: store.join(policy) }
    }

    /// What was remembered; nothing where there is nothing, or it cannot be read.
    pub(crate) fn remembered(&self) -> Remembered {
        let file = self.dir.join(PLACE);
        let text = match fs::read_to_string(&file) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Remembered::default(),
            Err(error) => {
                tracing::warn!("{}: cannot be read: {error}", file.display());
                return Remembered::default();
            }
        };
        serde_json::from_str(&text).unwrap_or_else(|error| {
            tracing::warn!("{}: {error}; what was in service before is not known", file.display());
            Remembered::default()
        })
    }

    /// Remember, and let go of the versions that are named nowhere any more.
    pub(crate) fn remember(&self, what: &Remembered) {
        let text = serde_json::to_vec_pretty(what).unwrap_or_default();
        if let Err(error) =
            make_private(&self.dir).and_then(|()| write_whole(&self.dir.join(PLACE), &text))
        {
            tracing::warn!(
                "{}: the versions in service cannot be remembered: {error}",
                self.dir.display()
            );
            return;
        }
        let kept = |name: &str| {
            what.active
                .iter()
                .chain(&what.trial)
                .chain(&what.history)
                .any(|version| version == name)
        };
        for entry in fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if entry.path().is_dir() && !kept(&name) {
                drop(fs::remove_dir_all(entry.path()));
            }
        }
    }

    /// Keep what a version is made of.
    pub(crate) fn keep(&self, fingerprint: &str, bundle: &Bundle, settings: &Settings) {
        let dir = self.dir.join(fingerprint);
        let keep = || -> io::Result<()> {
            make_private(&dir)?;
            let settings = serde_json::to_vec_pretty(settings).unwrap_or_default();
            write_whole(&dir.join(&bundle.manifest.file), &bundle.component)?;
            if let Some(cases) = &bundle.cases {
                write_whole(&dir.join(&bundle.manifest.cases), cases.as_bytes())?;
            }
            if let Some(signature) = &bundle.signature {
                write_whole(&dir.join(signature::FILE), signature.as_bytes())?;
            }
            write_whole(&dir.join(SETTINGS), &settings)?;
            // Last: a folder with a manifest is complete.
            write_whole(&dir.join(manifest::FILE), bundle.manifest_text.as_bytes())
        };
        if let Err(error) = keep() {
            tracing::warn!("{}: the version is not kept: {error}", dir.display());
            drop(fs::remove_dir_all(&dir));
        }
    }

    /// What a version is made of.
    pub(crate) fn load(&self, fingerprint: &str) -> Result<(Bundle, Settings), String> {
        let dir = self.dir.join(fingerprint);
        let bundle = Bundle::read(&dir).map_err(|error| error.to_string())?;
        let settings = fs::read(dir.join(SETTINGS)).map_err(|error| error.to_string())?;
        let settings: Settings =
            serde_json::from_slice(&settings).map_err(|error| error.to_string())?;
        // A kept version is what it was, or it is none.
        if bundle.fingerprint(&settings) != fingerprint {
            return Err(format!("{}: it is damaged", dir.display()));
        }
        Ok((bundle, settings))
    }
}

fn make_private(dir: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

fn write_whole(file: &Path, content: &[u8]) -> io::Result<()> {
    let mut name = file.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = file.with_file_name(name);
    let written = (|| {
        let mut opened =
            fs::File::options().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        opened.write_all(content)?;
        fs::rename(&new, file)
    })();
    if written.is_err() {
        // Half a file on a full disk is worse than none.
        drop(fs::remove_file(&new));
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_remembered_is_found_again_and_the_rest_goes() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::of(dir.path(), "a");
        assert_eq!(store.remembered(), Remembered::default());
        for name in ["one", "two", "three"] {
            make_private(&dir.path().join("a").join(name)).unwrap();
        }
        let what = Remembered {
            active: Some("two".into()),
            trial: None,
            history: vec!["one".into()],
            set_aside: vec![("three".into(), "it was bad".into())],
            disabled: true,
        };
        store.remember(&what);
        assert_eq!(store.remembered(), what);
        let there = |name: &str| dir.path().join("a").join(name).exists();
        assert!(there("one") && there("two") && !there("three"));
        fs::write(dir.path().join("a").join(PLACE), "half a fi").unwrap();
        assert_eq!(store.remembered(), Remembered::default());
    }
}
