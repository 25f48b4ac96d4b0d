//! The id of a request: the client's if it can be passed on, else a new one.

use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue};
use uuid::Uuid;

/// The header with the id, in requests, responses and requests to engines.
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Bytes of an id that is accepted from a client. Engines repeat the id in every chunk of a stream.
const MAX_LENGTH: usize = 128;

/// Ensures that the request has a valid id, and returns the id.
pub(crate) fn ensure(parts: &mut Parts) -> String {
    let given = parts.headers.get(REQUEST_ID).and_then(|value| value.to_str().ok());
    let id = match given.filter(|id| is_valid(id)) {
        Some(id) => id.to_owned(),
        None => Uuid::now_v7().simple().to_string(),
    };
    set(&mut parts.headers, &id);
    id
}

/// Returns the id of a message; empty if it has none.
pub(crate) fn get(headers: &HeaderMap) -> &str {
    headers.get(REQUEST_ID).and_then(|value| value.to_str().ok()).unwrap_or("")
}

/// Sets the id of a message.
pub(crate) fn set(headers: &mut HeaderMap, id: &str) {
    set_as(REQUEST_ID, headers, id);
}

/// Sets the id of a message under another name.
pub(crate) fn set_as(name: HeaderName, headers: &mut HeaderMap, id: &str) {
    // A valid id is always a valid header value.
    if let Ok(value) = HeaderValue::from_str(id) {
        headers.insert(name, value);
    }
}

fn is_valid(id: &str) -> bool {
    (1..=MAX_LENGTH).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(id: Option<&[u8]>) -> Parts {
        let (mut parts, ()) = http::Request::new(()).into_parts();
        if let Some(id) = id {
            parts.headers.insert(REQUEST_ID, HeaderValue::from_bytes(id).unwrap());
        }
        parts
    }

    #[test]
    fn valid_ids_are_kept_and_others_replaced() {
        let long = "x".repeat(MAX_LENGTH + 1);
        for (given, kept) in [
            (Some("abc-123"), true),
            (Some("x"), true),
            (Some(""), false),
            (Some("two words"), false),
            (Some(long.as_str()), false),
            (None, false),
        ] {
            let mut parts = parts(given.map(str::as_bytes));
            let id = ensure(&mut parts);
            assert_eq!(Some(id.as_str()) == given, kept, "{given:?} became {id}");
            assert_eq!(get(&parts.headers), id);
            assert!(is_valid(&id));
        }
        assert!(is_valid(&ensure(&mut parts(Some(b"caf\xe9")))));
    }
}
