//! The id of a request: the client's, where it is fit to be sent on, or a new one.

use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue};
use uuid::Uuid;

/// The header that carries it, in both directions and to the engine.
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Longest id taken from a client. Engines put it into the `id` of every chunk of a stream.
const LONGEST: usize = 128;

/// Make sure that the request has a fit id, and return it.
pub(crate) fn ensure(parts: &mut Parts) -> String {
    let given = parts.headers.get(REQUEST_ID).and_then(|value| value.to_str().ok());
    let id = match given.filter(|id| is_fit(id)) {
        Some(id) => id.to_owned(),
        None => Uuid::now_v7().simple().to_string(),
    };
    set(&mut parts.headers, &id);
    id
}

/// The id that [`ensure`] left on the request.
pub(crate) fn of(parts: &Parts) -> String {
    parts.headers.get(REQUEST_ID).and_then(|value| value.to_str().ok()).unwrap_or("").to_owned()
}

/// Put the id on a message.
pub(crate) fn set(headers: &mut HeaderMap, id: &str) {
    if let Ok(value) = HeaderValue::from_str(id) {
        headers.insert(REQUEST_ID, value);
    }
}

fn is_fit(id: &str) -> bool {
    (1..=LONGEST).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic())
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
    fn fit_ids_are_kept_and_others_replaced() {
        let long = "x".repeat(LONGEST + 1);
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
            assert_eq!(of(&parts), id);
            assert!(is_fit(&id));
        }
        assert!(is_fit(&ensure(&mut parts(Some(b"caf\xe9")))));
    }
}
