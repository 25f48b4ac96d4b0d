//! Finds the credential of a request in its headers.

use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderName, HeaderValue};

/// Headers by which clients send a key without a scheme: Anthropic's and Azure's libraries.
static KEY_HEADERS: [HeaderName; 2] =
    [HeaderName::from_static("x-api-key"), HeaderName::from_static("api-key")];

/// The credential of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Offer<'a> {
    /// The request has none, or empty ones.
    None,
    /// A key or a token.
    Secret(&'a str),
    /// A credential of another kind, one that cannot be read, or several that differ.
    Other,
}

/// Returns the credential of a request: of `Authorization: Bearer`, `x-api-key` and `api-key`.
pub(crate) fn offered(headers: &HeaderMap) -> Offer<'_> {
    let bearers = headers.get_all(AUTHORIZATION).iter().filter_map(bearer);
    let keys = KEY_HEADERS.iter().flat_map(|name| headers.get_all(name)).map(secret);
    let mut offers = bearers.chain(keys).filter(|offer| *offer != Offer::None);
    match offers.next() {
        // If they differ, a proxy may have checked one, and the host would go by another.
        Some(first) if offers.all(|other| other == first) => first,
        Some(_) => Offer::Other,
        None if has_other_scheme(headers) => Offer::Other,
        None => Offer::None,
    }
}

/// Returns what follows the scheme; `None` for another scheme, which may be for a proxy.
fn bearer(value: &HeaderValue) -> Option<Offer<'_>> {
    const SCHEME: &[u8] = b"bearer";
    let (scheme, rest) = value.as_bytes().split_at_checked(SCHEME.len())?;
    let is_bearer = scheme.eq_ignore_ascii_case(SCHEME) && matches!(rest, [] | [b' ', ..]);
    is_bearer.then(|| text(rest))
}

fn secret(value: &HeaderValue) -> Offer<'_> {
    text(value.as_bytes())
}

fn text(bytes: &[u8]) -> Offer<'_> {
    match str::from_utf8(bytes).map(str::trim) {
        Ok("") => Offer::None,
        Ok(text) if text.is_ascii() => Offer::Secret(text),
        Ok(_) | Err(_) => Offer::Other,
    }
}

fn has_other_scheme(headers: &HeaderMap) -> bool {
    headers.get_all(AUTHORIZATION).iter().any(|value| bearer(value).is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_credential_counts_wherever_it_is() {
        use Offer::{None, Other, Secret};
        type Row = (&'static [(&'static str, &'static [u8])], Offer<'static>);
        let table: &[Row] = &[
            (&[], None),
            (&[("authorization", b"Bearer k")], Secret("k")),
            (&[("authorization", b"bEARER   k ")], Secret("k")),
            (&[("authorization", b"Bearer a b")], Secret("a b")),
            (&[("authorization", b"Bearer")], None),
            (&[("authorization", b"Bearer ")], None),
            (&[("authorization", b"Bearer\tk")], Other),
            (&[("authorization", b"Bearerk")], Other),
            (&[("authorization", b"Bearer: k")], Other),
            (&[("authorization", b"k")], Other),
            (&[("authorization", b"")], Other),
            (&[("authorization", b"Basic k")], Other),
            (&[("authorization", b"Bearer k\xff")], Other),
            (&[("authorization", b"Bearer k\xc3\xa4")], Other),
            (&[("x-api-key", b"k")], Secret("k")),
            (&[("api-key", b" k")], Secret("k")),
            (&[("x-api-key", b"")], None),
            (&[("x-api-key", b"k\xff")], Other),
            (&[("x-api-key", b"Bearer k")], Secret("Bearer k")),
            (&[("x-other", b"k")], None),
            // The same one several times, and empty ones.
            (
                &[("authorization", b"Bearer k"), ("x-api-key", b"k"), ("api-key", b"k")],
                Secret("k"),
            ),
            (&[("authorization", b"Bearer k"), ("authorization", b"bearer k")], Secret("k")),
            (&[("authorization", b"Bearer "), ("x-api-key", b"k")], Secret("k")),
            (&[("authorization", b"Bearer k"), ("x-api-key", b"")], Secret("k")),
            // For a proxy in front of the host.
            (&[("authorization", b"Basic dTpw"), ("x-api-key", b"k")], Secret("k")),
            // Several that differ.
            (&[("authorization", b"Bearer k"), ("authorization", b"Bearer l")], Other),
            (&[("authorization", b"Bearer k"), ("x-api-key", b"l")], Other),
            (&[("x-api-key", b"k"), ("x-api-key", b"l")], Other),
            (&[("x-api-key", b"k"), ("api-key", b"l")], Other),
            (&[("authorization", b"Bearer \xff"), ("x-api-key", b"k")], Other),
        ];
        for (headers, expected) in table {
            let mut map = HeaderMap::new();
            for (name, value) in *headers {
                map.append(*name, HeaderValue::from_bytes(value).unwrap());
            }
            assert_eq!(offered(&map), *expected, "{map:?}");
        }
    }
}
