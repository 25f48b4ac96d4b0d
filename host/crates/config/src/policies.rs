//! Reads `[policies]`: the chain, its signers, and how new versions are rolled out.

use std::path::Path;
use std::time::Duration;

use pointsman_domain::OnConflict;
use pointsman_files::read_regular_text;
use pointsman_settings::{Code, Location, PolicyPlace, Section, chain};
use pointsman_spec::{ChainSpec, PolicySpec, PublicKey, StateScope};

use super::folders::default_cache;
use super::{Policies, registries};

/// Maximum size of a file with a public key in bytes.
const MAX_KEY_BYTES: u64 = 64 << 10;

/// Where a policy of the chain is in the file, for errors that only appear when it is loaded.
#[derive(Debug)]
pub struct PolicyLocation {
    /// Its entry in the chain.
    pub entry: Location,
    /// Its `config`, or its entry if it has none.
    pub config: Location,
}

/// Reads the policies, and the registries of some of them. `state` is the state directory.
pub(super) fn read(root: &Section<'_>, folder: &Path, state: Option<&Path>) -> Policies {
    let registries = registries::read(root, folder);
    let section = root.section("policies");
    let dir = folder.join(section.string("dir").unwrap_or("policies"));
    let cache = match section.string("cache") {
        Some(cache) => Some(folder.join(cache)),
        None => default_cache(),
    };
    let on_conflict =
        [("refuse", OnConflict::Refuse), ("ignore-filters", OnConflict::IgnoreFilters)];
    let on_conflict = section.choice("on-conflict", &on_conflict, OnConflict::Refuse);
    let keep = section.integer("keep", 0..=50, 3);
    let poll_interval = section.positive_duration("poll-interval", Duration::from_secs(5));
    let entries = section.sections("chain");
    let location = |entry: &Section<'_>| {
        let name = entry.string("name")?.to_owned();
        let (entry, config) = (entry.location("name"), entry.location("config"));
        Some((name, PolicyLocation { entry, config }))
    };
    let locations = entries.iter().filter_map(location).collect();
    let artifacts = registries::cache(state, cache.as_deref());
    let place = |entry: &Section<'_>, name: &str| match entry.string("source") {
        Some(_) => registries::read_source(entry, artifacts.as_deref()),
        None => {
            registries::refuse_surplus(entry);
            Some(PolicyPlace::from(dir.join(name)))
        }
    };
    let chain = chain(&entries, place);
    if !root.has("shared-state") {
        report_unshared(&chain, &entries);
    }
    let signers: Vec<(String, PublicKey)> = section
        .sections("signers")
        .iter()
        .filter_map(|signer| read_signer(signer, folder))
        .collect();
    let require_signature = section.bool("require-signature", !signers.is_empty());
    if require_signature && signers.is_empty() {
        let message = "needs at least one signer; add one with [[policies.signers]]";
        section.error_at("require-signature", Code::Conflict.with(message));
    }
    section.report_unknown();
    let store = state.map(|state| state.join("policies"));
    let chain = ChainSpec {
        policies: chain,
        on_conflict,
        keep,
        signers,
        require_signature,
        store,
        registries,
    };
    Policies { cache, dir, poll_interval, chain, locations }
}

/// Reports policies that share their state without a store to do so.
fn report_unshared(chain: &[PolicySpec], entries: &[Section<'_>]) {
    for policy in chain.iter().filter(|policy| policy.state == StateScope::Shared) {
        let entry = entries.iter().find(|entry| entry.string("name") == Some(&policy.name));
        if let Some(entry) = entry {
            let message = "needs a store; add [shared-state] with its `url`";
            entry.error_at("state", Code::Conflict.with(message));
        }
    }
}

/// Reads the name and the public key of a trusted signer.
fn read_signer(section: &Section<'_>, folder: &Path) -> Option<(String, PublicKey)> {
    let name = section.required_string("name", "\"release\"").map(str::to_owned);
    let file = section.required_string("file", "\"release.pub\"").map(|file| folder.join(file));
    section.report_unknown();
    let file = file?;
    let key = read_regular_text(&file, MAX_KEY_BYTES).map_err(|error| error.to_string()).and_then(
        |text| PublicKey::parse(&text).map_err(|error| format!("{}: {error}", file.display())),
    );
    match key {
        Ok(key) => Some((name?, key)),
        Err(message) => {
            section.error_at("file", Code::Unavailable.with(message));
            None
        }
    }
}
