//! The API keys of clients.

use std::path::Path;

use pointsman_fleet::Secret;
use pointsman_settings::{Section, missing, secret};

/// An API key of clients.
#[derive(Debug, Clone)]
pub struct ApiKey {
    /// The key.
    pub secret: Secret,
    /// The tenant that uses it.
    pub tenant: String,
    /// The key may use the paths of engines that show or change what clients share.
    pub engine_admin: bool,
}

/// Reads one of `[[keys]]`. Returns `None` if an error was reported.
pub(crate) fn read(section: Section<'_>, folder: &Path) -> Option<ApiKey> {
    let tenant = section.required_string("tenant", "\"team-a\"").map(str::to_owned);
    let key = secret(&section, "env", "file", folder);
    if !section.has("env") && !section.has("file") {
        section.error_at("env", missing("`env = \"VARIABLE\"` or `file = \"PATH\"`"));
    }
    let engine_admin = section.bool("engine-admin", false);
    section.report_unknown();
    Some(ApiKey { secret: Secret::new(key?), tenant: tenant?, engine_admin })
}
