//! The optional hooks that a component exports, in the languages whose builds take them from the
//! manifest. A hook that is not exported is not called.

use std::fs;
use std::path::{Path, PathBuf};

use pointsman_files::read_regular_text;
use pointsman_spec::Hook;
use serde::Deserialize;

use crate::error::BuildError;

/// Maximum size of a file of the contract, in bytes.
const MAX_WIT_BYTES: u64 = 1 << 20;

/// A hook that a manifest lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Hook")]
pub(crate) struct OptionalHook(Hook);

/// A world of the contract, as a manifest names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum World {
    /// `on-request` only.
    #[default]
    Policy,
    /// The hooks of the first version of the contract.
    FullPolicy,
}

/// The optional hooks of one component.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Hooks(Vec<Hook>);

impl TryFrom<Hook> for OptionalHook {
    type Error = &'static str;

    fn try_from(hook: Hook) -> Result<Self, Self::Error> {
        match hook {
            Hook::Request => Err("`on-request` is not optional: every component exports it"),
            Hook::Failure | Hook::Complete | Hook::Outcome | Hook::Tick => Ok(Self(hook)),
        }
    }
}

impl From<World> for Hooks {
    fn from(world: World) -> Self {
        match world {
            World::Policy => Self::default(),
            World::FullPolicy => Self(vec![Hook::Failure, Hook::Complete, Hook::Tick]),
        }
    }
}

impl FromIterator<OptionalHook> for Hooks {
    fn from_iter<T: IntoIterator<Item = OptionalHook>>(hooks: T) -> Self {
        let mut listed: Vec<Hook> = Vec::new();
        for OptionalHook(hook) in hooks {
            if !listed.contains(&hook) {
                listed.push(hook);
            }
        }
        Self(listed)
    }
}

impl Hooks {
    /// The name of the world that [`Hooks::world`] declares.
    pub(crate) const WORLD: &str = "built-policy";

    /// Returns the interfaces that the component exports, in the words of `name`: `on-request` and
    /// `lifecycle`, then the optional hooks.
    pub(crate) fn exports(&self, name: impl Fn(&str) -> String) -> String {
        let hooks = self.0.iter().map(|hook| hook.name());
        let all: Vec<String> =
            ["lifecycle", "on-request"].into_iter().chain(hooks).map(name).collect();
        all.join(", ")
    }

    /// Returns the names of the macros that are defined in C, one for each hook.
    pub(crate) fn macros(&self) -> impl Iterator<Item = String> {
        let name = |hook: &Hook| hook.name().to_uppercase().replace('-', "_");
        self.0.iter().map(move |hook| format!("PM_{}", name(hook)))
    }

    /// Declares the world of the component, in WIT.
    pub(crate) fn world(&self) -> String {
        let hooks = self.0.iter().map(|hook| format!("  export {};\n", hook.name()));
        format!("world {} {{\n  include policy;\n{}}}\n", Self::WORLD, hooks.collect::<String>())
    }

    /// Writes the contract in `folder` with the world of the component to `scratch`, and returns
    /// the new folder. A policy has its own copy of the contract, which may be an older version.
    pub(crate) fn write_contract(
        &self,
        folder: &Path,
        scratch: &Path,
    ) -> Result<PathBuf, BuildError> {
        let written = scratch.join("wit");
        fs::create_dir_all(&written).map_err(BuildError::file(&written))?;
        let mut package = String::new();
        for entry in fs::read_dir(folder).map_err(BuildError::file(folder))? {
            let path = entry.map_err(BuildError::file(folder))?.path();
            let Some(name) = path
                .file_name()
                .filter(|_| path.extension().is_some_and(|extension| extension == "wit"))
            else {
                continue;
            };
            let text = read_regular_text(&path, MAX_WIT_BYTES)?;
            if let Some(line) = text.lines().find(|line| line.starts_with("package ")) {
                line.clone_into(&mut package);
            }
            let copy = written.join(name);
            fs::write(&copy, text).map_err(BuildError::file(&copy))?;
        }
        let world = written.join(format!("{}.wit", Self::WORLD));
        fs::write(&world, format!("{package}\n\n{}", self.world()))
            .map_err(BuildError::file(&world))?;
        Ok(written)
    }
}

/// Converts the name of an interface to camel case, the names of exports in JavaScript.
pub(crate) fn camel_case(name: &str) -> String {
    let class = pascal_case(name);
    let mut letters = class.chars();
    letters.next().map(|first| first.to_ascii_lowercase()).into_iter().chain(letters).collect()
}

/// Converts the name of an interface to Pascal case, the names of exports in Python.
pub(crate) fn pascal_case(name: &str) -> String {
    let upper = |word: &str| {
        let mut letters = word.chars();
        letters
            .next()
            .map(|first| first.to_ascii_uppercase())
            .into_iter()
            .chain(letters)
            .collect::<String>()
    };
    name.split('-').map(upper).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exports_have_the_names_of_each_language() {
        let hooks = [Hook::Outcome, Hook::Tick, Hook::Outcome].map(OptionalHook);
        let hooks: Hooks = hooks.into_iter().collect();
        assert!(OptionalHook::try_from(Hook::Request).is_err());
        assert_eq!(hooks.exports(camel_case), "lifecycle, onRequest, onOutcome, onTick");
        assert_eq!(hooks.exports(pascal_case), "Lifecycle, OnRequest, OnOutcome, OnTick");
        assert_eq!(hooks.macros().collect::<Vec<_>>(), ["PM_ON_OUTCOME", "PM_ON_TICK"]);
        assert!(!hooks.world().contains("on-failure"), "a hook that is not listed is not exported");
    }
}
