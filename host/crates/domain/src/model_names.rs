//! Which lanes answer to a model name.
//!
//! A name is looked up as it is, and if no lane has it, in further spellings. The first spelling
//! that a lane has decides:
//!
//! 1. the name itself;
//! 2. a path without the file of the weights and without a trailing slash:
//!    `/models/coder/model.safetensors` is `/models/coder`;
//! 3. without an organisation or provider in front: `Qwen/Qwen3-8B` is `Qwen3-8B`;
//! 4. with the organisation: `Qwen3-8B` is `Qwen/Qwen3-8B`, if exactly one such name is listed;
//! 5. any of these without the tag that Ollama's clients add: `Qwen3-8B:latest` is `Qwen3-8B`.
//!
//! For each spelling, names of one [`NameKind`] win over those of the later kinds: a lane that
//! lists a name is never joined by one whose folder happens to be called the same. Within a kind,
//! all lanes that have the name are candidates, also if their models differ.

use std::collections::hash_map::Entry;

use foldhash::{HashMap, HashMapExt as _};
use serde::{Deserialize, Serialize};

mod derive;
#[cfg(test)]
mod tests;

pub use self::derive::{derived_names, is_local_path, public_name};

use self::derive::{model_folder, without_organisation};

/// Length in bytes above which a name is looked up only as it is: further spellings of longer names
/// would let clients choose texts of any length that a lane answers to.
const MAX_SPELLED: usize = 512;

/// The tag that Ollama gives to names without one.
const DEFAULT_TAG: &str = ":latest";

/// Names that a lane answers to besides its models.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct LaneNames {
    /// Further names that the operator wrote: the served names of the engine, and names that are
    /// not to be listed. The name of the lane is always one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub own: Vec<String>,
    /// Those of the lane's models that it shares with other lanes: names of the host, which its
    /// engine does not know.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub shared: Vec<String>,
    /// Adapters of the engine. The lane answers to `lane:adapter`, and to the adapter's own name.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub adapters: Vec<String>,
    /// Names of the engine's model: see [`derived_names`].
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub derived: Vec<String>,
}

impl LaneNames {
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Where a name of a lane comes from, in the order of precedence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NameKind {
    /// A model that the lane lists.
    Listed,
    /// Another name that the operator wrote.
    Own,
    /// A name of the engine's model.
    Derived,
    /// An adapter, which an engine may have named: only if no other spelling of a name is known, so
    /// that an engine cannot take over the names of others.
    Adapter,
}

/// The names of all lanes. Generic over the lane, so that tests can use letters.
#[derive(Debug)]
pub(crate) struct ModelNames<L> {
    /// The names of each kind, with their lanes in the order in which they were added.
    // Eight lookups per request. The hash may be a fast one: clients add no names.
    kinds: [HashMap<String, Vec<L>>; 4],
    /// For the last part of each listed name with an organisation, that name; `None` if several
    /// listed names have it.
    with_organisation: HashMap<String, Option<String>>,
}

impl<L> Default for ModelNames<L> {
    fn default() -> Self {
        Self { kinds: Default::default(), with_organisation: HashMap::new() }
    }
}

impl<L: Copy + PartialEq> ModelNames<L> {
    /// Adds a name of a lane.
    pub(crate) fn add(&mut self, kind: NameKind, name: &str, lane: L) {
        if name.is_empty() {
            return;
        }
        let lanes = self.kinds[kind as usize].entry(name.to_owned()).or_default();
        // A lane may have the same name twice.
        if !lanes.contains(&lane) {
            lanes.push(lane);
        }
        if kind != NameKind::Listed || is_local_path(name) {
            return;
        }
        let Some(last) = name.rsplit('/').next().filter(|last| last.len() < name.len()) else {
            return;
        };
        match self.with_organisation.entry(last.to_owned()) {
            Entry::Vacant(entry) => {
                entry.insert(Some(name.to_owned()));
            }
            Entry::Occupied(mut entry) => {
                if entry.get().as_deref() != Some(name) {
                    entry.insert(None);
                }
            }
        }
    }

    /// Returns the name by which a lane answers to `name`, and the lanes that have it. Does not
    /// allocate.
    pub(crate) fn resolve(&self, name: &str) -> Option<(&str, &[L])> {
        let found = self.resolve_untagged(name);
        found.or_else(|| self.resolve_untagged(name.strip_suffix(DEFAULT_TAG)?))
    }

    fn resolve_untagged(&self, name: &str) -> Option<(&str, &[L])> {
        let exact = self.exact(name);
        if exact.is_some() || name.len() > MAX_SPELLED {
            return exact;
        }
        let in_folder = || self.exact(model_folder(name)?);
        let without = || self.exact(without_organisation(name)?);
        let with = || self.exact(self.with_organisation.get(name)?.as_deref()?);
        let named = |name: &str| self.of_kind(NameKind::Adapter, name);
        let adapter = || named(name).or_else(|| named(without_organisation(name)?));
        in_folder().or_else(without).or_else(with).or_else(adapter)
    }

    fn exact(&self, name: &str) -> Option<(&str, &[L])> {
        let kinds = [NameKind::Listed, NameKind::Own, NameKind::Derived];
        kinds.into_iter().find_map(|kind| self.of_kind(kind, name))
    }

    fn of_kind(&self, kind: NameKind, name: &str) -> Option<(&str, &[L])> {
        let (name, lanes) = self.kinds[kind as usize].get_key_value(name)?;
        Some((name.as_str(), lanes.as_slice()))
    }

    /// Returns the names of a kind, in any order.
    pub(crate) fn names(&self, kind: NameKind) -> impl Iterator<Item = &str> {
        self.kinds[kind as usize].keys().map(String::as_str)
    }
}
