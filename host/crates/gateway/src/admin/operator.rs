//! Who uses the admin API, for the log and for the states of lanes.

use std::sync::Arc;

use http::{HeaderMap, HeaderName};

/// The name that an operator gives. It is not checked: all clients of a listener have all rights.
const OPERATOR: HeaderName = HeaderName::from_static("x-pointsman-operator");
/// Maximum length of a name in bytes.
const MAX_NAME: usize = 64;

/// Who sent a request to the admin API.
#[derive(Debug, Clone)]
pub(super) struct Operator(pub(super) Arc<str>);

/// Whether a request came by the socket, whose clients are the host's user and root.
#[derive(Debug, Clone, Copy)]
pub(super) struct OnSocket(pub(super) bool);

impl Operator {
    /// Returns the name in a request, or else the kind of the listener.
    pub(super) fn from_headers(headers: &HeaderMap, listener: &str) -> Self {
        let name = headers.get(OPERATOR).and_then(|name| name.to_str().ok());
        let is_name = |name: &&str| !name.is_empty() && name.len() <= MAX_NAME && name.is_ascii();
        Self(name.filter(is_name).unwrap_or(listener).into())
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn name_is_that_of_the_header_or_of_the_listener() {
        let long = "x".repeat(MAX_NAME + 1);
        for (given, expected) in
            [(None, "socket"), (Some("ann"), "ann"), (Some(""), "socket"), (Some(&*long), "socket")]
        {
            let headers = given.map(|name| (OPERATOR, HeaderValue::from_str(name).unwrap()));
            let headers = headers.into_iter().collect();
            assert_eq!(&*Operator::from_headers(&headers, "socket").0, expected);
        }
    }
}
