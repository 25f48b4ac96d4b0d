//! Where the tools of the languages are.

use std::env;
use std::path::{Path, PathBuf};

use crate::BuildError;

/// Folders in which tools are looked for, and where large builds are kept.
#[derive(Debug, Clone, Default)]
pub struct Tools {
    folders: Vec<PathBuf>,
    target: Option<PathBuf>,
}

/// A tool, and how to get it.
pub(crate) struct Tool {
    pub(crate) name: &'static str,
    pub(crate) language: &'static str,
    pub(crate) remedy: &'static str,
}

impl Tools {
    /// Those of the environment: beside the policy (`node_modules/.bin`, `.venv/bin`), in an active virtual environment, and
    /// on PATH.
    pub fn from_environment() -> Self {
        Self::default()
    }

    /// With a folder that is looked into before all others.
    #[must_use]
    pub fn with_folder(mut self, folder: impl Into<PathBuf>) -> Self {
        self.folders.push(folder.into());
        self
    }

    /// With a folder for what cargo builds, instead of one in the policy's.
    #[must_use]
    pub fn with_target_dir(mut self, target: impl Into<PathBuf>) -> Self {
        self.target = Some(target.into());
        self
    }

    /// Where cargo builds the policy in `folder`.
    pub(crate) fn target_dir(&self, folder: &Path) -> PathBuf {
        self.target.clone().unwrap_or_else(|| folder.join("target"))
    }

    /// The program of a tool, for a policy in `folder`.
    pub(crate) fn find(&self, tool: &Tool, folder: &Path) -> Result<PathBuf, BuildError> {
        let missing =
            BuildError::NoTool { tool: tool.name, language: tool.language, remedy: tool.remedy };
        self.search(tool.name, folder).ok_or(missing)
    }

    /// The first program of that name.
    pub(crate) fn search(&self, name: &str, folder: &Path) -> Option<PathBuf> {
        let beside = [folder.join("node_modules/.bin"), folder.join(".venv/bin")];
        let active = env::var_os("VIRTUAL_ENV").map(|venv| PathBuf::from(venv).join("bin"));
        let path = env::var_os("PATH").unwrap_or_default();
        let folders =
            self.folders.iter().cloned().chain(beside).chain(active).chain(env::split_paths(&path));
        folders.map(|folder| folder.join(name)).find(|program| program.is_file())
    }
}
