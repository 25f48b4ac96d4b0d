//! New policies from templates.

use std::fs;
use std::path::{Path, PathBuf};

use crate::embedded::TEMPLATES;
use crate::vendor::{vendor, write};
use crate::{BuildError, Language};

/// What the templates have in place of the policy's name.
const NAME: &str = "POLICY_NAME";
/// Longest name of a policy: it stands in headers, metrics and log lines.
const LONGEST_NAME: usize = 64;

/// Write the folder of a new policy, complete but for its component: `parent/name`. What its source does is a small policy that
/// works; its golden cases show that.
///
/// # Errors
/// When the name is none, the folder exists, or a file cannot be written.
pub fn new_policy(parent: &Path, name: &str, language: Language) -> Result<PathBuf, BuildError> {
    check_name(name)?;
    let folder = parent.join(name);
    if folder.symlink_metadata().is_ok() {
        return Err(BuildError::Usage(format!(
            "{} is there already; choose another name, or remove it",
            folder.display()
        )));
    }
    fs::create_dir_all(parent).map_err(BuildError::file(parent))?;
    // Made under another name first: a folder that is there is complete.
    let building = tempfile::Builder::new()
        .prefix(".policy-")
        .tempdir_in(parent)
        .map_err(BuildError::file(parent))?;
    for common in ["common", language.name()] {
        for (file, text) in TEMPLATES {
            if let Some(file) = file.strip_prefix(common).and_then(|file| file.strip_prefix('/')) {
                // The tree's own files of these names would be taken for something else.
                let file = file.replace("dot-", ".").replace("Cargo.toml.in", "Cargo.toml");
                write(&building.path().join(file), &text.replace(NAME, name))?;
            }
        }
    }
    vendor(building.path(), language)?;
    fs::rename(building.path(), &folder).map_err(BuildError::file(&folder))?;
    set_readable(&folder)?;
    // Nothing is left to remove.
    drop(building.keep());
    Ok(folder)
}

/// Temporary folders are their owner's alone, and a host may run as somebody else.
fn set_readable(folder: &Path) -> Result<(), BuildError> {
    #[cfg(unix)]
    fs::set_permissions(folder, std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .map_err(BuildError::file(folder))?;
    Ok(())
}

fn check_name(name: &str) -> Result<(), BuildError> {
    let allowed = |letter: char| letter.is_ascii_alphanumeric() || letter == '-' || letter == '_';
    let begins = name.starts_with(|first: char| first.is_ascii_alphabetic());
    if begins && name.len() <= LONGEST_NAME && name.chars().all(allowed) {
        return Ok(());
    }
    Err(BuildError::Usage(format!(
        "`{name}` cannot be the name of a policy: it begins with a letter and has letters, digits, `-` and `_` only, \
         at most {LONGEST_NAME} of them"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_folder_is_complete_and_never_replaces_another() {
        let dir = tempfile::tempdir().unwrap();
        for language in Language::ALL {
            let name = format!("my_{language}-1");
            let folder = new_policy(dir.path(), &name, language).unwrap();
            for file in [
                "policy.toml",
                "cases.jsonl",
                "scenarios/long-prompts.toml",
                "README.md",
                ".gitignore",
                "wit/types.wit",
                "sdk",
            ] {
                assert!(folder.join(file).exists(), "{language}: {file}");
            }
            let manifest = fs::read_to_string(folder.join("policy.toml")).unwrap();
            assert!(manifest.contains(&format!("name = \"{name}\"")), "{manifest}");
            assert!(fs::read_to_string(folder.join("cases.jsonl")).unwrap().lines().count() >= 3);
            for entry in walk(&folder) {
                let text = fs::read_to_string(&entry).unwrap();
                assert!(!text.contains(NAME), "{}", entry.display());
            }
            let error = new_policy(dir.path(), &name, language).unwrap_err().to_string();
            assert!(error.contains("is there already"), "{error}");
        }
        assert_eq!(
            fs::read_dir(dir.path()).unwrap().count(),
            Language::ALL.len(),
            "something was left behind"
        );
    }

    #[test]
    fn names_that_would_hurt_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["", ".", "..", "a/b", "../x", "ä", "1st", "-x", "a b", "a\"b", &"x".repeat(65)]
        {
            let error = new_policy(dir.path(), name, Language::C).unwrap_err().to_string();
            assert!(error.contains("cannot be the name of a policy"), "{name}: {error}");
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    fn walk(folder: &Path) -> Vec<PathBuf> {
        let mut files = Vec::new();
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { files.extend(walk(&path)) } else { files.push(path) }
        }
        files
    }
}
