//! Creates policies from templates.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::{fmt, fs};

use crate::embedded::TEMPLATES;
use crate::error::BuildError;
use crate::language::Language;
use crate::vendor::{vendor, write};

/// The placeholder of the policy's name in templates.
const NAME: &str = "POLICY_NAME";
/// Maximum length of a policy name, which is used in headers, metrics and log lines.
const MAX_NAME_LEN: usize = 64;

/// A template of new policies: a small working policy with golden cases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Template {
    /// A policy in a language, without types in JavaScript.
    Plain(Language),
    /// A policy in TypeScript, which is built like JavaScript.
    TypeScript,
}

impl Template {
    /// Returns the language that builds the policy.
    pub fn language(self) -> Language {
        match self {
            Self::Plain(language) => language,
            Self::TypeScript => Language::JavaScript,
        }
    }

    /// Returns the name used on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain(language) => language.name(),
            Self::TypeScript => "typescript",
        }
    }
}

impl From<Language> for Template {
    fn from(language: Language) -> Self {
        Self::Plain(language)
    }
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Template {
    type Err = BuildError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // Accept common aliases.
        let name = match text.to_ascii_lowercase().as_str() {
            "js" => "javascript".to_owned(),
            "ts" => "typescript".to_owned(),
            "py" => "python".to_owned(),
            "rs" => "rust".to_owned(),
            other => other.to_owned(),
        };
        let mut all = Language::ALL.into_iter().map(Self::Plain).chain([Self::TypeScript]);
        all.find(|template| template.name() == name).ok_or_else(|| {
            BuildError::Usage(format!(
                "unknown language `{text}`; expected rust, javascript, typescript, python or c"
            ))
        })
    }
}

/// Creates the folder `parent/name` of a new policy, complete except for the component.
///
/// # Errors
/// Returns an error if the name is invalid, the folder exists, or a file cannot be written.
pub fn new_policy(
    parent: &Path,
    name: &str,
    template: impl Into<Template>,
) -> Result<PathBuf, BuildError> {
    let template = template.into();
    check_name(name)?;
    let folder = parent.join(name);
    if folder.symlink_metadata().is_ok() {
        return Err(BuildError::Usage(format!(
            "{} already exists; choose another name, or remove it",
            folder.display()
        )));
    }
    fs::create_dir_all(parent).map_err(BuildError::file(parent))?;
    // Create the folder under a temporary name first, so that it is never incomplete.
    let building = tempfile::Builder::new()
        .prefix(".policy-")
        .tempdir_in(parent)
        .map_err(BuildError::file(parent))?;
    for common in ["common", template.name()] {
        for (file, text) in TEMPLATES {
            if let Some(file) = file.strip_prefix(common).and_then(|file| file.strip_prefix('/')) {
                // Under their real names, git and cargo would interpret the template files.
                let file = file.replace("dot-", ".").replace("Cargo.toml.in", "Cargo.toml");
                write(&building.path().join(file), &text.replace(NAME, name))?;
            }
        }
    }
    vendor(building.path(), template.language())?;
    fs::rename(building.path(), &folder).map_err(BuildError::file(&folder))?;
    set_readable(&folder)?;
    // The folder was renamed, so the temporary one must not be removed.
    drop(building.keep());
    Ok(folder)
}

/// Makes a folder readable for all users: temporary folders are readable by their owner only, but
/// the host may run as a different user.
fn set_readable(folder: &Path) -> Result<(), BuildError> {
    #[cfg(unix)]
    fs::set_permissions(folder, std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .map_err(BuildError::file(folder))?;
    Ok(())
}

fn check_name(name: &str) -> Result<(), BuildError> {
    let is_allowed = |letter: char| letter.is_ascii_alphanumeric() || "-_".contains(letter);
    let starts_with_letter = name.starts_with(|first: char| first.is_ascii_alphabetic());
    if starts_with_letter && name.len() <= MAX_NAME_LEN && name.chars().all(is_allowed) {
        return Ok(());
    }
    Err(BuildError::Usage(format!(
        "invalid policy name `{name}`: expected a letter followed by letters, digits, `-` and `_`, \
         at most {MAX_NAME_LEN} characters"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_policy_is_complete_and_does_not_replace_a_folder() {
        let dir = tempfile::tempdir().unwrap();
        let templates = ["rust", "javascript", "ts", "python", "c"];
        for template in templates {
            let template: Template = template.parse().unwrap();
            let name = format!("my_{template}-1");
            let folder = new_policy(dir.path(), &name, template).unwrap();
            for file in [
                "policy.toml",
                "cases.jsonl",
                "scenarios/long-prompts.toml",
                "README.md",
                ".gitignore",
                "wit/types.wit",
                "sdk",
            ] {
                assert!(folder.join(file).exists(), "{template}: {file}");
            }
            let manifest = fs::read_to_string(folder.join("policy.toml")).unwrap();
            assert!(manifest.contains(&format!("name = \"{name}\"")), "{manifest}");
            assert!(fs::read_to_string(folder.join("cases.jsonl")).unwrap().lines().count() >= 3);
            for entry in files_below(&folder) {
                let text = fs::read_to_string(&entry).unwrap();
                assert!(!text.contains(NAME), "{}", entry.display());
            }
            let error = new_policy(dir.path(), &name, template).unwrap_err();
            assert!(matches!(error, BuildError::Usage(_)), "{error}");
            assert!(error.to_string().contains(&folder.display().to_string()), "{error}");
        }
        assert_eq!(
            fs::read_dir(dir.path()).unwrap().count(),
            templates.len(),
            "temporary folders were left"
        );
    }

    #[test]
    fn invalid_names_are_rejected() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["", ".", "..", "a/b", "../x", "ä", "1st", "-x", "a b", "a\"b", &"x".repeat(65)]
        {
            let error = new_policy(dir.path(), name, Language::C).unwrap_err();
            assert!(matches!(&error, BuildError::Usage(_)), "{name}: {error}");
            assert!(error.to_string().contains(&format!("`{name}`")), "{name}: {error}");
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    fn files_below(folder: &Path) -> Vec<PathBuf> {
        let mut files = Vec::new();
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { files.extend(files_below(&path)) } else { files.push(path) }
        }
        files
    }
}
