//! What a policy's manifest says about building it.

use std::path::{Component, Path, PathBuf};

use serde::Deserialize;

use crate::{BuildError, Language};

/// Name of the manifest.
pub(crate) const FILE: &str = "policy.toml";

/// How to build one policy.
#[derive(Debug)]
pub(crate) struct Plan {
    /// The policy's folder, as an absolute path: tools run elsewhere.
    pub(crate) folder: PathBuf,
    pub(crate) language: Language,
    /// The source, relative to the folder.
    pub(crate) source: PathBuf,
    pub(crate) world: World,
}

/// A world of the contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum World {
    /// Nothing but `on-request`.
    #[default]
    Policy,
    /// Every hook.
    FullPolicy,
}

impl World {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Policy => "policy",
            Self::FullPolicy => "full-policy",
        }
    }
}

// The other tables and keys belong to the host.
#[derive(Deserialize)]
struct Manifest {
    build: Option<BuildTable>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct BuildTable {
    language: Language,
    source: PathBuf,
    #[serde(default)]
    world: World,
    #[serde(rename = "inputs-sha256")]
    _inputs: Option<String>,
    #[serde(rename = "component-sha256")]
    _component: Option<String>,
}

impl Plan {
    /// Read it from the manifest in `folder`.
    pub(crate) fn load(folder: &Path) -> Result<Self, BuildError> {
        let folder = std::path::absolute(folder).map_err(BuildError::file(folder))?;
        let file = folder.join(FILE);
        let text = std::fs::read_to_string(&file).map_err(BuildError::file(&file))?;
        let fail = |what: String| BuildError::Manifest { file: file.clone(), what };
        let manifest: Manifest =
            toml::from_str(&text).map_err(|error| fail(error.to_string().trim_end().to_owned()))?;
        let Some(BuildTable { language, source, world, .. }) = manifest.build else {
            return Err(fail(
                "there is no [build] to say how it is built; write for example: language = \"javascript\", source = \"src/policy.js\""
                    .to_owned(),
            ));
        };
        let stays = source
            .components()
            .all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
        if source.as_os_str().is_empty() || !stays {
            let source = source.display();
            return Err(fail(format!(
                "build.source: \"{source}\" must be a path within this folder"
            )));
        }
        let path = folder.join(&source);
        if !path.exists() {
            return Err(fail(format!("build.source: there is no {}", path.display())));
        }
        Ok(Self { folder, language, source, world })
    }

    /// The source's path.
    pub(crate) fn source_path(&self) -> PathBuf {
        self.folder.join(&self.source)
    }

    /// The folder for what is made on the way, empty.
    pub(crate) fn scratch(&self) -> Result<PathBuf, BuildError> {
        let scratch = self.folder.join(".build");
        if scratch.exists() {
            std::fs::remove_dir_all(&scratch).map_err(BuildError::file(&scratch))?;
        }
        std::fs::create_dir_all(&scratch).map_err(BuildError::file(&scratch))?;
        Ok(scratch)
    }

    /// A file or folder that `pointsman policy new` wrote and the build needs.
    pub(crate) fn needs(&self, name: &str) -> Result<PathBuf, BuildError> {
        let path = self.folder.join(name);
        if path.exists() {
            return Ok(path);
        }
        Err(BuildError::Usage(format!(
            "{} is missing; `pointsman policy new` makes folders that have it, and another one's can be copied",
            path.display()
        )))
    }
}
