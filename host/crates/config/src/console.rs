//! Reads `[console]`: where the console for operators is served.

use pointsman_settings::{Code, Section};

use crate::admin::Admin;

/// Where the console is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Console {
    /// On the listeners of the admin API.
    pub enabled: bool,
    /// On the listeners for clients, too.
    pub client_listener: bool,
}

/// Reads the section. Clients reach the console only with the token of the admin API.
pub(super) fn read(section: &Section<'_>, admin: &Admin) -> Console {
    let enabled = section.bool("enabled", true);
    let client_listener = section.bool("client-listener", false);
    if client_listener && admin.port.is_none() {
        let message = "needs the token of the admin API; set `admin.listen` and its token";
        section.error_at("client-listener", Code::MissingKey.with(message));
    }
    if client_listener && !enabled {
        let message = "conflicts with `enabled = false`; remove one of them";
        section.error_at("client-listener", Code::Conflict.with(message));
    }
    section.report_unknown();
    Console { enabled, client_listener }
}
