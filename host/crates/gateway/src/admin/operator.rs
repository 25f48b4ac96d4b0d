//! Who uses the admin API, for the log and for the states of lanes.

use std::sync::Arc;

use http::{HeaderMap, HeaderName};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::peer::PeerUid;

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

/// How a request was authenticated, for the log of actions.
#[derive(Debug, Clone)]
pub(super) struct Via(pub(super) Arc<str>);

/// When the session of a request ends.
#[derive(Debug, Clone)]
pub(super) struct SessionEnd {
    /// Cancelled if it ends early.
    pub(super) early: CancellationToken,
    pub(super) expires: Instant,
}

impl Via {
    /// Returns what is known of a client of the socket.
    pub(super) fn socket(uid: Option<PeerUid>) -> Self {
        Self(uid.map_or("socket".into(), |PeerUid(uid)| format!("socket, uid {uid}").into()))
    }
}

impl Operator {
    /// Returns the name in a request, or else the kind of the listener.
    pub(super) fn from_headers(headers: &HeaderMap, listener: &str) -> Self {
        let name = headers.get(OPERATOR).and_then(|name| name.to_str().ok());
        Self::from_name(name, listener)
    }

    /// Returns the given name if it is one, or else `default`.
    pub(super) fn from_name(name: Option<&str>, default: &str) -> Self {
        let is_name = |name: &&str| {
            !name.is_empty()
                && name.len() <= MAX_NAME
                && name.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ')
        };
        Self(name.filter(is_name).unwrap_or(default).into())
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
