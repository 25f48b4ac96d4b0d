//! Reads `[fleet]` and `[[peers]]`: the other hosts of a fleet, and what they are told.

use std::collections::HashSet;
use std::path::Path;
use std::time::Duration;

use pointsman_domain::FleetKey;
use pointsman_fleet::{Peering, Secret, StaleLimits};
use pointsman_settings::{Code, Section, missing, secret};
use sha2::{Digest as _, Sha256};

/// Minimum length of a secret that hosts share: 64 bits, if it is random and hexadecimal.
const MIN_SECRET: usize = 16;
/// Maximum length of the name of a host in bytes.
const MAX_NAME: usize = 128;
/// Maximum number of other hosts.
const MAX_PEERS: usize = 1024;

/// Another host, which may read `GET /fleet` and send requests of its clients.
#[derive(Debug, Clone)]
pub struct Peer {
    /// The name of the host, in the log and in the usage.
    pub name: String,
    /// The key that the host sends.
    pub key: Secret,
}

/// Reads `[[peers]]` and `[fleet]`.
pub(super) fn read(root: &Section<'_>, folder: &Path) -> (Vec<Peer>, Peering) {
    (read_peers(root, folder), read_fleet(&root.section("fleet"), folder))
}

/// Reads `[fleet]`.
fn read_fleet(section: &Section<'_>, folder: &Path) -> Peering {
    let name = section.string("name").unwrap_or_default().to_owned();
    check_name(section, &name);
    let defaults = StaleLimits::default();
    let stale = StaleLimits {
        degraded: section.positive_duration("stale-after", defaults.degraded),
        down: section.positive_duration("down-after", defaults.down),
    };
    // The host sends something each 400 ms.
    if stale.degraded < Duration::from_millis(500) {
        section.error_at("stale-after", Code::OutOfRange.with("must be at least 500ms"));
    }
    if stale.down <= stale.degraded {
        section.error_at("down-after", Code::OutOfRange.with("must be more than `stale-after`"));
    }
    let salt = secret(section, "salt-env", "salt-file", folder);
    check_secret(section, "salt-env", salt.as_deref());
    section.report_unknown();
    Peering { name, prompt_key: salt.as_deref().map(prompt_key), stale }
}

/// Reads `[[peers]]`.
fn read_peers(root: &Section<'_>, folder: &Path) -> Vec<Peer> {
    let sections = root.sections("peers");
    let (mut names, mut keys) = (HashSet::new(), HashSet::new());
    if sections.len() > MAX_PEERS {
        root.error_at("peers", Code::OutOfRange.with(format!("more than {MAX_PEERS} hosts")));
    }
    let read = sections.into_iter().filter_map(|section| {
        let name = section.required_string("name", "\"gpu-2\"");
        let key = secret(&section, "key-env", "key-file", folder);
        if let Some(name) = name {
            check_name(&section, name);
            if !names.insert(name.to_owned()) {
                section.error_at("name", Code::Duplicate.with(format!("`{name}` is used twice")));
            }
        }
        if !section.has("key-env") && !section.has("key-file") {
            let example = "`key-env = \"VARIABLE\"` or `key-file = \"PATH\"`";
            section.error_at("key-env", missing(example));
        }
        check_secret(&section, "key-env", key.as_deref());
        section.report_unknown();
        let key = key?;
        // Placeholders of a command that reads no secrets are different.
        if !keys.insert(key.clone()) {
            let message = "two hosts have the same key; give each host its own";
            section.error_at("key-env", Code::Duplicate.with(message));
        }
        Some(Peer { name: name?.to_owned(), key: Secret::new(key) })
    });
    read.collect()
}

fn check_name(section: &Section<'_>, name: &str) {
    if name.len() > MAX_NAME || name.chars().any(char::is_control) {
        let message =
            format!("invalid name: expected at most {MAX_NAME} bytes without control characters");
        section.error_at("name", Code::InvalidValue.with(message));
    }
}

fn check_secret(section: &Section<'_>, key: &str, secret: Option<&str>) {
    if secret.is_some_and(|secret| secret.len() < MIN_SECRET) {
        let message = format!("the secret has fewer than {MIN_SECRET} characters");
        section.error_at(key, Code::OutOfRange.with(message));
    }
}

/// Returns the key of the fleet's hashes.
fn prompt_key(salt: &str) -> FleetKey {
    let digest: [u8; 32] =
        Sha256::new().chain_update("pointsman fleet\n").chain_update(salt).finalize().into();
    let mut key = [0; 16];
    key.copy_from_slice(&digest[..16]);
    FleetKey(key)
}
