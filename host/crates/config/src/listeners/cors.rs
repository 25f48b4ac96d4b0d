//! Reads `cors` of a listener.

use std::time::Duration;

use pointsman_settings::{Code, Section};

/// Which pages of other origins may use a listener from a browser.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cors {
    /// Origins of the pages; `*` for all.
    pub origins: Vec<String>,
    /// Pages may send cookies and other credentials of the browser.
    pub credentials: bool,
    /// Headers that pages may send; `None` for all that they ask for.
    pub headers: Option<Vec<String>>,
    /// How long a browser may remember the response to a preflight request.
    pub max_age: Duration,
}

/// Reads the table `cors`.
pub(super) fn read(section: &Section<'_>) -> Cors {
    let origins = section.strings("origins");
    if origins.as_ref().is_none_or(Vec::is_empty) {
        let message = "missing; set it for example to [\"https://chat.example.org\"]";
        section.error_at("origins", Code::MissingKey.with(message));
    }
    let origins = origins.unwrap_or_default();
    for origin in origins.iter().filter(|origin| !is_origin(origin)) {
        let message = format!(
            "invalid origin \"{origin}\": expected a scheme and a host without a path, for \
             example \"https://chat.example.org\", or \"*\" for all"
        );
        section.error_at("origins", Code::InvalidValue.with(message));
    }
    let credentials = section.bool("credentials", false);
    if credentials && origins.iter().any(|origin| origin == "*") {
        let message = "not allowed for all origins; name the origins instead of \"*\"";
        section.error_at("credentials", Code::Conflict.with(message));
    }
    let headers = section.strings("headers");
    let is_name = |name: &&String| {
        let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        !name.is_empty() && name.bytes().all(is_token)
    };
    for name in headers.iter().flatten().filter(|name| !is_name(name)) {
        let message = format!("invalid header name \"{name}\"");
        section.error_at("headers", Code::InvalidValue.with(message));
    }
    let max_age = section.duration("max-age", Duration::from_secs(600));
    section.report_unknown();
    Cors { origins, credentials, headers, max_age }
}

/// Returns true for what a browser sends as `Origin`, which pages in files and sandboxes share.
fn is_origin(origin: &str) -> bool {
    let host = origin.split_once("://").filter(|(scheme, _)| !scheme.is_empty());
    let is_host = |host: &str| {
        !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/')
    };
    matches!(origin, "*" | "null") || host.is_some_and(|(_, host)| is_host(host))
}
