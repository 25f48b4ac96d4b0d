//! Whether a request comes from a page of the host itself. Browsers send the cookies of the host
//! with requests of other pages, too, and can reach what is open to the machine's user.

use http::{HeaderMap, HeaderName, header};

/// What a browser says about the page that sends a request; pages cannot change it.
const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Where a request comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// A page of the same origin, or the address bar of the browser.
    SameOrigin,
    /// A page of another origin, or one that hides its origin.
    OtherOrigin,
    /// The request does not say, as those of programs other than browsers.
    Unknown,
}

/// Returns where a request comes from.
pub(super) fn source(headers: &HeaderMap) -> Source {
    if let Some(site) = headers.get(FETCH_SITE) {
        return match site.as_bytes() {
            b"same-origin" | b"none" => Source::SameOrigin,
            _ => Source::OtherOrigin,
        };
    }
    let Some(origin) = headers.get(header::ORIGIN) else { return Source::Unknown };
    let origin = origin.to_str().ok().and_then(|origin| origin.split_once("://"));
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    match (origin, host) {
        (Some((_, origin)), Some(host)) if origin.eq_ignore_ascii_case(host) => Source::SameOrigin,
        _ => Source::OtherOrigin,
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn source_is_what_the_browser_says() {
        use Source::{OtherOrigin, SameOrigin, Unknown};
        type Row = (&'static [(&'static str, &'static str)], Source);
        let table: &[Row] = &[
            (&[("host", "a:1")], Unknown),
            (&[("host", "a:1"), ("origin", "http://a:1")], SameOrigin),
            (&[("host", "a:1"), ("origin", "http://a:2")], OtherOrigin),
            (&[("host", "a:1"), ("origin", "null")], OtherOrigin),
            (&[("origin", "http://a:1")], OtherOrigin),
            (&[("host", "a:1"), ("sec-fetch-site", "same-origin")], SameOrigin),
            (&[("host", "a:1"), ("sec-fetch-site", "none")], SameOrigin),
            (&[("host", "a:1"), ("sec-fetch-site", "same-site")], OtherOrigin),
            (
                &[("host", "a:1"), ("origin", "http://a:1"), ("sec-fetch-site", "cross-site")],
                OtherOrigin,
            ),
        ];
        for (headers, expected) in table {
            let headers: HeaderMap = headers
                .iter()
                .map(|(name, value)| {
                    (HeaderName::from_static(name), HeaderValue::from_static(value))
                })
                .collect();
            assert_eq!(source(&headers), *expected, "{headers:?}");
        }
    }
}
