//! The inputs of a build, and whether they have changed since.
//!
//! A build writes the digests of the component and of all files that it may have read to
//! `.build/inputs`, in the format of `sha256sum`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use pointsman_files::{read_regular, read_regular_text, write_atomic};
use sha2::{Digest as _, Sha256};

use crate::COMPONENT;
use crate::component::MAX_OUTPUT_BYTES;
use crate::error::BuildError;

/// The folder of intermediate files, in the folder of the policy.
pub(crate) const SCRATCH: &str = ".build";
/// The name of the list in it.
pub(crate) const FILE: &str = "inputs";
/// Maximum size of the list in bytes.
const MAX_LIST_BYTES: u64 = 1 << 20;
/// Maximum size of a file that counts as an input, in bytes.
const MAX_FILE_BYTES: u64 = 1 << 20;
/// Maximum number of inputs.
const MAX_FILES: usize = 2000;
/// Folders without inputs: results of tools, and what the host or tests read.
const OTHER_FOLDERS: [&str; 7] =
    ["target", "node_modules", "__pycache__", "scenarios", "test", "tests", "records"];
/// Files that a build does not read.
const OTHER_EXTENSIONS: [&str; 5] = ["wasm", "sig", "jsonl", "md", "html"];

/// Returns the files in a policy's folder that have changed since the component was built, or were
/// added or removed. Empty if there are none, or if the component was not built here.
pub fn changed_since_build(folder: &Path) -> Vec<PathBuf> {
    changes(folder).unwrap_or_default()
}

/// Returns the files that have changed since the component was built; `None` if the component was
/// not built here.
pub(crate) fn changes(folder: &Path) -> Option<Vec<PathBuf>> {
    let list = folder.join(SCRATCH).join(FILE);
    let text = read_regular_text(&list, MAX_LIST_BYTES).ok()?;
    let mut built: BTreeMap<PathBuf, &str> = text
        .lines()
        .filter_map(|line| line.split_once("  "))
        .map(|(digest, path)| (PathBuf::from(path), digest))
        .collect();
    let component = digest(&folder.join(COMPONENT), MAX_OUTPUT_BYTES);
    // The component may come from elsewhere; then nothing is known about its source.
    if component.is_none() || built.remove(Path::new(COMPONENT)) != component.as_deref() {
        return None;
    }
    let mut changed = Vec::new();
    for path in files(folder) {
        let before = built.remove(&path);
        if before != digest(&folder.join(&path), MAX_FILE_BYTES).as_deref() {
            changed.push(path);
        }
    }
    changed.extend(built.into_keys());
    Some(changed)
}

/// The digests of the inputs, taken before a build, so that a change meanwhile is noticed.
pub(crate) struct Inputs(String);

impl Inputs {
    pub(crate) fn read(folder: &Path) -> Self {
        let mut list = String::new();
        for path in files(folder) {
            if let Some(digest) = digest(&folder.join(&path), MAX_FILE_BYTES) {
                list.push_str(&format!("{digest}  {}\n", path.display()));
            }
        }
        Self(list)
    }

    /// Writes the list, with the digest of the component.
    pub(crate) fn write(mut self, folder: &Path, component: &[u8]) -> Result<(), BuildError> {
        let scratch = folder.join(SCRATCH);
        fs::create_dir_all(&scratch).map_err(BuildError::file(&scratch))?;
        self.0.push_str(&format!("{}  {COMPONENT}\n", hex(&Sha256::digest(component))));
        write_atomic(&scratch.join(FILE), self.0.as_bytes(), 0o644)
            .map_err(|error| BuildError::File { file: error.path, source: error.source })
    }
}

/// Returns the files that a build may read, relative to `folder`.
pub(crate) fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(relative) = folders.pop() {
        let Ok(entries) = fs::read_dir(folder.join(&relative)) else { continue };
        for entry in entries.filter_map(Result::ok) {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let path = relative.join(&*name);
            let Ok(kind) = entry.file_type() else { continue };
            let is_hidden = name.starts_with('.');
            let is_other = path.extension().is_some_and(|extension| {
                OTHER_EXTENSIONS.iter().any(|other| extension.eq_ignore_ascii_case(other))
            });
            if kind.is_dir() && !is_hidden && !OTHER_FOLDERS.contains(&&*name) {
                folders.push(path);
            } else if kind.is_file() && !is_hidden && !is_other && found.len() < MAX_FILES {
                found.push(path);
            }
        }
    }
    found.sort_unstable();
    found
}

/// Returns the digest of a file; `None` if it cannot be read, or is too large.
fn digest(path: &Path, max_bytes: u64) -> Option<String> {
    let bytes = read_regular(path, max_bytes).ok()?;
    Some(hex(&Sha256::digest(bytes)))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changed_inputs_are_those_of_the_last_build() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path();
        for path in ["src", "target", "test"] {
            fs::create_dir(folder.join(path)).unwrap();
        }
        let write = |path: &str, text: &str| fs::write(folder.join(path), text).unwrap();
        for path in ["src/policy.js", "src/rules.js", "policy.toml", "cases.jsonl"] {
            write(path, "1");
        }
        write(COMPONENT, "component");
        assert_eq!(changes(folder), None, "no list");
        Inputs::read(folder).write(folder, b"component").unwrap();
        write("cases.jsonl", "2");
        write("target/x", "2");
        write("test/policy.test.js", "2");
        assert_eq!(changes(folder), Some(Vec::new()));
        write("src/policy.js", "2");
        write("src/new.js", "2");
        fs::remove_file(folder.join("src/rules.js")).unwrap();
        let changed = changed_since_build(folder);
        let expected = ["src/new.js", "src/policy.js", "src/rules.js"].map(PathBuf::from);
        assert_eq!(changed, expected);
        // A component from elsewhere.
        write(COMPONENT, "other");
        assert_eq!((changes(folder), changed_since_build(folder)), (None, Vec::new()));
        fs::remove_file(folder.join(COMPONENT)).unwrap();
        assert_eq!(changes(folder), None);
    }
}
