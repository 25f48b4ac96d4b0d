//! The API keys of clients.

use std::path::Path;

use pointsman_fleet::Secret;
use pointsman_settings::{Location, Section, missing, secret};

/// An API key of clients.
#[derive(Debug, Clone)]
pub struct ApiKey {
    /// The key.
    pub secret: Secret,
    /// The tenant that uses it.
    pub tenant: String,
    /// Its group in the keys file.
    pub group: Option<String>,
    /// The key may use the paths of engines that show or change what clients share; `None` for
    /// what its group may.
    pub engine_admin: Option<bool>,
    /// Where the group is written, which is only known to exist when the keys file is read.
    pub group_location: Location,
}

/// Reads `[[keys]]`.
pub(super) fn read_all(root: &Section<'_>, folder: &Path) -> Vec<ApiKey> {
    root.sections("keys").into_iter().filter_map(|section| read(section, folder)).collect()
}

/// Reads one of `[[keys]]`. Returns `None` if an error was reported.
fn read(section: Section<'_>, folder: &Path) -> Option<ApiKey> {
    let tenant = section.required_string("tenant", "\"team-a\"").map(str::to_owned);
    let key = secret(&section, "env", "file", folder);
    if !section.has("env") && !section.has("file") {
        section.error_at("env", missing("`env = \"VARIABLE\"` or `file = \"PATH\"`"));
    }
    let group = section.string("group").map(str::to_owned);
    let engine_admin = section.has("engine-admin").then(|| section.bool("engine-admin", false));
    let group_location = section.location("group");
    section.report_unknown();
    let secret = Secret::new(key?);
    Some(ApiKey { secret, tenant: tenant?, group, engine_admin, group_location })
}
