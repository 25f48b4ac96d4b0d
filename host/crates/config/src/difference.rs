//! The difference between two texts of the configuration, key by key.

use std::collections::BTreeSet;

use toml::{Table, Value};

use crate::effects::{Effect, effect_of};

/// The lists of tables, each with the keys that tell its entries apart.
const LISTS: [(&str, &[&str]); 9] = [
    ("listeners", &["address"]),
    ("keys", &["tenant", "env", "file"]),
    ("policies.chain", &["name"]),
    ("policies.signers", &["name"]),
    ("registries", &["host"]),
    ("guards", &["name"]),
    ("models", &["name"]),
    ("groups", &["name"]),
    ("lanes", &["name"]),
];

/// What happens to a key, or to an entry of a list of tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ChangeKind {
    /// An entry is new.
    Added,
    /// A key has another value, or is set or removed, or the order of a list is another one.
    Changed,
    /// An entry is gone.
    Removed,
}

/// A difference between two configurations.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct KeyChange {
    /// The path of the key, with the names of entries of lists, for example `lanes.coder.slots`.
    pub path: String,
    /// What happens to it.
    pub kind: ChangeKind,
    /// When it takes effect.
    pub effect: Effect,
}

/// Returns what is different in `new`, in the order of the paths. Values that are read from other
/// files or from the environment are not compared.
pub fn differences(old: &Table, new: &Table) -> Vec<KeyChange> {
    let mut found = Vec::new();
    compare_tables(old, new, &Place::default(), &mut found);
    found.sort_unstable();
    found
}

/// Where a key is: the path for people, and the one of the table of effects.
#[derive(Debug, Clone, Default)]
struct Place {
    path: String,
    pattern: String,
}

impl Place {
    fn key(&self, key: &str) -> Self {
        let join = |path: &str, key: &str| match path {
            "" => key.to_owned(),
            path => format!("{path}.{key}"),
        };
        Self { path: join(&self.path, &quoted(key)), pattern: join(&self.pattern, key) }
    }

    fn entry(&self, name: &str) -> Self {
        let path = format!("{}.{}", self.path, quoted(name));
        Self { path, pattern: self.pattern.clone() }
    }

    fn change(self, kind: ChangeKind, effect: Option<Effect>) -> KeyChange {
        // A key that the table does not have: a process that reads all keys knows what to do.
        KeyChange { path: self.path, kind, effect: effect.unwrap_or(Effect::Handover) }
    }
}

/// Returns a name as a part of a path.
fn quoted(name: &str) -> String {
    let is_bare = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    match !name.is_empty() && name.bytes().all(is_bare) {
        true => name.to_owned(),
        false => format!("{name:?}"),
    }
}

fn compare_tables(old: &Table, new: &Table, place: &Place, found: &mut Vec<KeyChange>) {
    let empty = Table::new();
    let keys: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    for key in keys {
        let (old, new) = (old.get(key), new.get(key));
        if old == new {
            continue;
        }
        let place = place.key(key);
        let effect = effect_of(&place.pattern);
        if let Some((_, names)) = LISTS.iter().find(|(list, _)| *list == place.pattern) {
            compare_lists(entries(old), entries(new), names, &place, found);
        } else if effect.is_none()
            && let (Some(old), Some(new)) = (table(old, &empty), table(new, &empty))
        {
            compare_tables(old, new, &place, found);
        } else {
            found.push(place.change(ChangeKind::Changed, effect));
        }
    }
}

/// Returns a table; an empty one in the place of a missing one.
fn table<'a>(value: Option<&'a Value>, empty: &'a Table) -> Option<&'a Table> {
    value.map_or(Some(empty), Value::as_table)
}

fn entries(value: Option<&Value>) -> Vec<&Table> {
    let list = value.and_then(Value::as_array);
    list.into_iter().flatten().filter_map(Value::as_table).collect()
}

fn compare_lists(
    old: Vec<&Table>,
    new: Vec<&Table>,
    names: &[&str],
    place: &Place,
    found: &mut Vec<KeyChange>,
) {
    let (old, new) = (named(&old, names), named(&new, names));
    let effect = names.first().and_then(|name| effect_of(&place.key(name).pattern));
    for (name, entry) in &old {
        match new.iter().find(|(other, _)| other == name) {
            Some((_, now)) => compare_tables(entry, now, &place.entry(name), found),
            None => found.push(place.entry(name).change(ChangeKind::Removed, effect)),
        }
    }
    let is_known = |name: &String| old.iter().any(|(other, _)| other == name);
    for (name, _) in new.iter().filter(|(name, _)| !is_known(name)) {
        found.push(place.entry(name).change(ChangeKind::Added, effect));
    }
    let kept = |of: &[(String, &Table)], other: &[(String, &Table)]| -> Vec<String> {
        let names = of.iter().map(|(name, _)| name);
        names.filter(|name| other.iter().any(|(other, _)| other == *name)).cloned().collect()
    };
    // The order of other lists has no meaning.
    if place.pattern == "policies.chain" && kept(&old, &new) != kept(&new, &old) {
        found.push(place.clone().change(ChangeKind::Changed, effect));
    }
}

/// Returns the entries with their names, which are unique: the second one of a name has a number.
fn named<'a>(entries: &[&'a Table], keys: &[&str]) -> Vec<(String, &'a Table)> {
    let mut named: Vec<(String, &Table)> = Vec::with_capacity(entries.len());
    for entry in entries {
        let parts: Vec<&str> =
            keys.iter().filter_map(|key| entry.get(*key).and_then(Value::as_str)).collect();
        let base = parts.join(":");
        let mut name = base.clone();
        let mut number = 1;
        while named.iter().any(|(other, _)| *other == name) {
            number += 1;
            name = format!("{base}#{number}");
        }
        named.push((name, entry));
    }
    named
}
