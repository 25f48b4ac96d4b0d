//! Finds the tools of the languages.

use std::env;
use std::path::{Path, PathBuf};

use crate::error::BuildError;

/// The folders to search for tools, and the target folder of cargo builds.
#[derive(Debug, Clone, Default)]
pub struct Tools {
    folders: Vec<PathBuf>,
    target: Option<PathBuf>,
}

/// A tool, with installation instructions.
pub(crate) struct Tool {
    pub(crate) name: &'static str,
    pub(crate) language: &'static str,
    pub(crate) remedy: &'static str,
}

impl Tools {
    /// Searches next to the policy (`node_modules/.bin`, `.venv/bin`), in the active virtual
    /// environment, and in PATH.
    pub fn from_environment() -> Self {
        Self::default()
    }

    /// Adds a folder that is searched before all others.
    #[must_use]
    pub fn with_folder(mut self, folder: impl Into<PathBuf>) -> Self {
        self.folders.push(folder.into());
        self
    }

    /// Sets the target folder of cargo builds, instead of `target` in the policy's folder.
    #[must_use]
    pub fn with_target_dir(mut self, target: impl Into<PathBuf>) -> Self {
        self.target = Some(target.into());
        self
    }

    /// Returns the target folder for the policy in `folder`.
    pub(crate) fn target_dir(&self, folder: &Path) -> PathBuf {
        self.target.clone().unwrap_or_else(|| folder.join("target"))
    }

    /// Returns the executable of a tool for the policy in `folder`.
    pub(crate) fn find(&self, tool: &Tool, folder: &Path) -> Result<PathBuf, BuildError> {
        let missing = BuildError::ToolNotFound {
            tool: tool.name,
            language: tool.language,
            remedy: tool.remedy,
        };
        self.search(tool.name, folder).ok_or(missing)
    }

    /// Returns the first executable with this name.
    pub(crate) fn search(&self, name: &str, folder: &Path) -> Option<PathBuf> {
        let local = [folder.join("node_modules/.bin"), folder.join(".venv/bin")];
        let active = env::var_os("VIRTUAL_ENV").map(|venv| PathBuf::from(venv).join("bin"));
        let path = env::var_os("PATH").unwrap_or_default();
        let folders =
            self.folders.iter().cloned().chain(local).chain(active).chain(env::split_paths(&path));
        folders.map(|folder| folder.join(name)).find(|program| program.is_file())
    }
}
