//! Reads keys files: all errors in one pass, each with its line.

mod limits;
mod rights;
#[cfg(test)]
pub(crate) mod tests;

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::time::SystemTime;

use pointsman_files::read_trusted;
use pointsman_settings::{
    Code, Diagnostic, FileError, Location, Problem, Section, missing, nearest,
};
use toml::de::DeValue;

use self::limits::read_limits;
use self::rights::read_grants;
use crate::groups::{Definitions, GroupSpec, KeySpec, TenantSpec};
use crate::secret::SecretHash;
use crate::time::parse_time;

/// Maximum size of a keys file in bytes.
const MAX_FILE_BYTES: u64 = 16 << 20;
/// Maximum number of ancestors of a group.
const MAX_ANCESTORS: usize = 16;
/// Maximum length of the name of a key, a group or a tenant in bytes.
const MAX_NAME: usize = 128;

/// The example of a hash in messages.
const HASH_EXAMPLE: &str = "`hash = \"sha256:…\"`; `pointsman key new` makes one";

impl Definitions {
    /// Reads and validates a file that only this user or root can have written.
    ///
    /// # Errors
    /// All errors in the file, in its order.
    pub fn load(file: &Path) -> Result<Self, FileError> {
        Self::parse(&source(file)?).map_err(|errors| FileError::new(file, errors))
    }

    /// Reads and validates the text of a file.
    ///
    /// # Errors
    /// All errors in the text, in its order.
    pub fn parse(source: &str) -> Result<Self, Vec<Diagnostic>> {
        pointsman_settings::read(source, &[], |root| Some(read(root)))
    }
}

/// Returns the text of a file.
pub(crate) fn source(file: &Path) -> Result<String, FileError> {
    let fail = |message: String| {
        let problem = Code::Unreadable.with(message);
        FileError::new(file, vec![Location::default().error(problem)])
    };
    let bytes = read_trusted(file, MAX_FILE_BYTES).map_err(|error| fail(error.to_string()))?;
    String::from_utf8(bytes).map_err(|_| fail("the file is not UTF-8".to_owned()))
}

fn read(root: &Section<'_>) -> Definitions {
    let tenants = read_tenants(root);
    let groups = read_groups(root);
    let keys = read_keys(root, &groups);
    root.report_unknown();
    Definitions { tenants, groups, keys }
}

fn read_tenants(root: &Section<'_>) -> Vec<TenantSpec> {
    let mut names = HashSet::new();
    let read = root.sections("tenants").into_iter().filter_map(|section| {
        let name = read_name(&section, "name", "\"acme\"", &mut names);
        let weight = section.integer("weight", 1..=1000, 1);
        let limits = read_limits(&section, "limits");
        section.report_unknown();
        Some(TenantSpec { name: name?, weight, limits })
    });
    read.collect()
}

fn read_groups(root: &Section<'_>) -> Vec<GroupSpec> {
    let sections = root.sections("groups");
    let mut names = HashSet::new();
    let groups: Vec<Option<GroupSpec>> = sections
        .iter()
        .map(|section| {
            let name = read_name(section, "name", "\"staff\"", &mut names);
            let parent = section.string("parent").map(str::to_owned);
            let grants = read_grants(section);
            let limits = read_limits(section, "limits");
            let shared_limits = read_limits(section, "shared-limits");
            section.report_unknown();
            Some(GroupSpec { name: name?, parent, grants, limits, shared_limits })
        })
        .collect();
    let parents: HashMap<&str, Option<&str>> = groups
        .iter()
        .flatten()
        .map(|group| (group.name.as_str(), group.parent.as_deref()))
        .collect();
    for (section, group) in sections.iter().zip(&groups) {
        if let Some(group) = group
            && let Some(problem) = problem_of_parent(group, &parents)
        {
            section.error_at("parent", problem);
        }
    }
    drop(parents);
    groups.into_iter().flatten().collect()
}

/// Returns what is wrong with the ancestors of a group.
fn problem_of_parent(group: &GroupSpec, parents: &HashMap<&str, Option<&str>>) -> Option<Problem> {
    let parent = group.parent.as_deref()?;
    if !parents.contains_key(parent) {
        return Some(unknown_group(parent, parents.keys().copied()));
    }
    let mut ancestor = parent;
    for _ in 0..MAX_ANCESTORS {
        if ancestor == group.name {
            let message = format!("group `{}` is its own ancestor", group.name);
            return Some(Code::Conflict.with(message));
        }
        match parents.get(ancestor) {
            Some(Some(next)) => ancestor = next,
            // An unknown parent is reported where it is written.
            Some(None) | None => return None,
        }
    }
    Some(Code::OutOfRange.with(format!("more than {MAX_ANCESTORS} groups above this one")))
}

/// Returns the problem of a group that does not exist.
pub(crate) fn unknown_group<'n>(name: &str, known: impl Iterator<Item = &'n str>) -> Problem {
    let hint = nearest(name, known).map(|near| format!("; did you mean `{near}`?"));
    Code::UnknownName.with(format!("unknown group `{name}`{}", hint.unwrap_or_default()))
}

fn read_keys(root: &Section<'_>, groups: &[GroupSpec]) -> Vec<KeySpec> {
    let groups: HashSet<&str> = groups.iter().map(|group| group.name.as_str()).collect();
    let (mut ids, mut digests) = (HashSet::new(), HashSet::new());
    let read = root.sections("keys").into_iter().filter_map(|section| {
        let id = read_name(&section, "id", "\"k_alice\"", &mut ids);
        let hashes = read_hashes(&section, &mut digests);
        let tenant = section.required_string("tenant", "\"acme\"");
        if let Some(tenant) = tenant {
            check_name(&section, "tenant", tenant);
        }
        let group = section.string("group");
        if let Some(group) = group.filter(|group| !groups.contains(group)) {
            section.error_at("group", unknown_group(group, groups.iter().copied()));
        }
        let expires = read_time(&section, "expires");
        let grants = read_grants(&section);
        let limits = read_limits(&section, "limits");
        section.report_unknown();
        let (tenant, group) = (tenant?.to_owned(), group.map(str::to_owned));
        Some(KeySpec { id: id?, hashes, tenant, group, expires, grants, limits })
    });
    read.collect()
}

/// Reads a name that is not used twice.
fn read_name(
    section: &Section<'_>,
    key: &str,
    example: &str,
    used: &mut HashSet<String>,
) -> Option<String> {
    let name = section.required_string(key, example)?;
    check_name(section, key, name);
    if !used.insert(name.to_owned()) {
        section.error_at(key, Code::Duplicate.with(format!("`{name}` is defined twice")));
    }
    Some(name.to_owned())
}

/// Reports a name that tables and logs could not show.
fn check_name(section: &Section<'_>, key: &str, name: &str) {
    if name.len() > MAX_NAME || name.chars().any(char::is_control) {
        let message =
            format!("invalid name: expected at most {MAX_NAME} bytes without control characters");
        section.error_at(key, Code::InvalidValue.with(message));
    }
}

/// Reads `hash`, or `hashes` while a secret is being replaced.
fn read_hashes(
    section: &Section<'_>,
    used: &mut HashSet<SecretHash>,
) -> Vec<(SecretHash, Option<SystemTime>)> {
    let mut hashes = Vec::new();
    if section.has("hash") && section.has("hashes") {
        section
            .error_at("hash", Code::Conflict.with("conflicts with `hashes`; remove one of them"));
    }
    let several = section.sections("hashes");
    if section.has("hash") || several.is_empty() {
        hashes.extend(read_hash(section, used).map(|hash| (hash, None)));
    }
    for section in several {
        let expires = read_time(&section, "expires");
        hashes.extend(read_hash(&section, used).map(|hash| (hash, expires)));
        section.report_unknown();
    }
    hashes
}

fn read_hash(section: &Section<'_>, used: &mut HashSet<SecretHash>) -> Option<SecretHash> {
    let Some(text) = section.string("hash") else {
        if !section.has("hash") {
            section.error_at("hash", missing(HASH_EXAMPLE));
        }
        return None;
    };
    // The value is not quoted: it may be a secret that was written here by accident.
    let Some(hash) = SecretHash::parse(text) else {
        let message = format!("invalid hash: expected {HASH_EXAMPLE}");
        section.error_at("hash", Code::InvalidValue.with(message));
        return None;
    };
    if !used.insert(hash) {
        section.error_at("hash", Code::Duplicate.with("another key has the same secret"));
    }
    Some(hash)
}

/// Reads a time: as text, or as TOML has it.
fn read_time(section: &Section<'_>, key: &str) -> Option<SystemTime> {
    let value = section.value(key)?;
    let time = match value.get_ref() {
        DeValue::Datetime(time) => parse_time(&time.to_string()),
        _ => section.string(key).map(parse_time)?,
    };
    if time.is_none() {
        let message = "invalid time: expected for example \"2027-01-01T00:00:00Z\" (UTC) or \
                       \"2027-01-01\"";
        section.error_at(key, Code::InvalidValue.with(message));
    }
    time
}
