//! `[policies]`: which there are, in which order, and how new versions of them begin.

use std::path::Path;
use std::time::Duration;

use super::{Policies, default_cache};
use pointsman_domain::OnConflict;
use pointsman_policy::ChainSpec;
use pointsman_policy::signature::PublicKey;
use pointsman_settings::{Section, chain};

/// The policies; `state` is the folder that the host keeps what it knows in.
pub(super) fn read(section: Section<'_>, folder: &Path, state: Option<&Path>) -> Policies {
    let dir = folder.join(section.string("dir").unwrap_or("policies"));
    let cache = match section.string("cache") {
        Some(cache) => Some(folder.join(cache)),
        None => default_cache(),
    };
    let on_conflict =
        [("refuse", OnConflict::Refuse), ("ignore-filters", OnConflict::IgnoreFilters)];
    let on_conflict = section.choice("on-conflict", &on_conflict, OnConflict::Refuse);
    let keep = section.integer("keep", 0..=50, 3);
    let poll = section.positive_duration("poll-interval", Duration::from_secs(5));
    let chain = chain(&section.sections("chain"), |_, name| Some(dir.join(name)));
    let signers: Vec<(String, PublicKey)> = section
        .sections("signers")
        .iter()
        .filter_map(|signer| read_signer(signer, folder))
        .collect();
    let require_signature = section.bool("require-signature", !signers.is_empty());
    if require_signature && signers.is_empty() {
        section.error_at(
            "require-signature",
            "needs somebody to sign: name one with [[policies.signers]]",
        );
    }
    section.report_unknown();
    let store = state.map(|state| state.join("policies"));
    let chain = ChainSpec { policies: chain, on_conflict, keep, signers, require_signature, store };
    Policies { cache, dir, poll, chain }
}

/// The name and the public key of somebody whose signature counts.
fn read_signer(section: &Section<'_>, folder: &Path) -> Option<(String, PublicKey)> {
    let name = section.required_string("name", "\"release\"").map(str::to_owned);
    let file = section.required_string("file", "\"release.pub\"").map(|file| folder.join(file));
    section.report_unknown();
    let file = file?;
    let key = std::fs::read_to_string(&file)
        .map_err(|error| format!("{} cannot be read: {error}", file.display()))
        .and_then(|text| {
            PublicKey::parse(&text).map_err(|error| format!("{}: {error}", file.display()))
        });
    match key {
        Ok(key) => Some((name?, key)),
        Err(what) => {
            section.error_at("file", what);
            None
        }
    }
}
