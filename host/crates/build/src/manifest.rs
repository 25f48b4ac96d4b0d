//! The `[build]` section of a policy's manifest.

use std::path::{Component, Path, PathBuf};

use pointsman_files::read_regular_text;
use serde::Deserialize;

use crate::error::BuildError;
use crate::hooks::{Hooks, OptionalHook, World};
use crate::inputs;
use crate::language::Language;

/// Maximum size of a manifest of a policy or of a crate, in bytes.
pub(crate) const MAX_MANIFEST_BYTES: u64 = 1 << 20;
/// File name of the manifest.
pub(crate) const FILE: &str = "policy.toml";

/// How to build a policy.
#[derive(Debug)]
pub(crate) enum BuildPlan {
    /// With the tools of a language that has an SDK.
    Language(Plan),
    /// With a command of the author.
    Command(CommandPlan),
}

/// How to build a policy with a command.
#[derive(Debug)]
pub(crate) struct CommandPlan {
    /// The policy's folder as an absolute path.
    pub(crate) folder: PathBuf,
    /// The program and its arguments; not empty.
    pub(crate) command: Vec<String>,
    pub(crate) hooks: Hooks,
}

/// How to build a policy in a language that has an SDK.
#[derive(Debug)]
pub(crate) struct Plan {
    /// The policy's folder as an absolute path, because tools run in other folders.
    pub(crate) folder: PathBuf,
    pub(crate) language: Language,
    /// The source file, relative to the folder.
    pub(crate) source: PathBuf,
    pub(crate) hooks: Hooks,
}

// The host reads the other sections.
#[derive(Deserialize)]
struct Manifest {
    build: Option<BuildTable>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct BuildTable {
    language: Option<Language>,
    source: Option<PathBuf>,
    command: Option<Vec<String>>,
    world: Option<World>,
    hooks: Option<Vec<OptionalHook>>,
    #[serde(rename = "inputs-sha256")]
    _inputs: Option<String>,
    #[serde(rename = "component-sha256")]
    _component: Option<String>,
}

impl BuildPlan {
    /// Reads the manifest in `folder`.
    pub(crate) fn load(folder: &Path) -> Result<Self, BuildError> {
        let folder = std::path::absolute(folder).map_err(BuildError::file(folder))?;
        let file = folder.join(FILE);
        let text = read_regular_text(&file, MAX_MANIFEST_BYTES)?;
        let fail = |problem: String| BuildError::Manifest { file: file.clone(), problem };
        let manifest: Manifest =
            toml::from_str(&text).map_err(|error| fail(error.to_string().trim_end().to_owned()))?;
        let Some(table) = manifest.build else {
            return Err(fail(
                "missing section [build]; set for example language = \"javascript\" and source = \
                 \"src/policy.js\""
                    .to_owned(),
            ));
        };
        let BuildTable { language, source, command, world, hooks, .. } = table;
        let hooks = match (hooks, world) {
            (Some(_), Some(_)) => {
                return Err(fail(
                    "build.hooks: conflicts with `world`, which is a list of hooks as well; remove \
                     `world`"
                        .to_owned(),
                ));
            }
            (Some(hooks), None) => hooks.into_iter().collect(),
            (None, world) => Hooks::from(world.unwrap_or_default()),
        };
        let missing = |key: &str| fail(format!("missing field `{key}` in [build]"));
        if let Some(command) = command {
            if language.is_some() || source.is_some() {
                return Err(fail(
                    "build.command: conflicts with `language` and `source`; remove them, or \
                     `command`"
                        .to_owned(),
                ));
            }
            if command.first().is_none_or(String::is_empty) {
                return Err(fail("build.command: expected a program and its arguments".to_owned()));
            }
            return Ok(Self::Command(CommandPlan { folder, command, hooks }));
        }
        let language = language.ok_or_else(|| missing("language"))?;
        let source = source.ok_or_else(|| missing("source"))?;
        let is_inside = source
            .components()
            .all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
        if source.as_os_str().is_empty() || !is_inside {
            let source = source.display();
            return Err(fail(format!(
                "build.source: invalid path \"{source}\": expected a path within the policy's \
                 folder"
            )));
        }
        let path = folder.join(&source);
        if !path.exists() {
            return Err(fail(format!("build.source: {} does not exist", path.display())));
        }
        Ok(Self::Language(Plan { folder, language, source, hooks }))
    }
}

impl Plan {
    /// Returns the path of the source.
    pub(crate) fn source_path(&self) -> PathBuf {
        self.folder.join(&self.source)
    }

    /// Creates a folder for intermediate files: see [`scratch`].
    pub(crate) fn scratch(&self) -> Result<PathBuf, BuildError> {
        scratch(&self.folder)
    }

    /// Returns the path of a file or folder that `pointsman policy new` creates.
    pub(crate) fn require(&self, name: &str) -> Result<PathBuf, BuildError> {
        let path = self.folder.join(name);
        if path.exists() {
            return Ok(path);
        }
        Err(BuildError::Usage(format!(
            "{} is missing; create a new policy with `pointsman policy new`, or copy it from \
             another \
             policy",
            path.display()
        )))
    }
}

/// Creates a folder for intermediate files in a policy's folder. It is empty except for the list of
/// the inputs of the last successful build.
pub(crate) fn scratch(folder: &Path) -> Result<PathBuf, BuildError> {
    let scratch = folder.join(inputs::SCRATCH);
    std::fs::create_dir_all(&scratch).map_err(BuildError::file(&scratch))?;
    for entry in std::fs::read_dir(&scratch).map_err(BuildError::file(&scratch))? {
        let entry = entry.map_err(BuildError::file(&scratch))?;
        let path = entry.path();
        if entry.file_name() == inputs::FILE {
            continue;
        }
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        let remove = if is_folder { std::fs::remove_dir_all } else { std::fs::remove_file };
        remove(&path).map_err(BuildError::file(&path))?;
    }
    Ok(scratch)
}
