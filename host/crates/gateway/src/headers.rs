//! Names and values of headers that the host sets or removes.

use http::{HeaderName, HeaderValue, header};

/// Names the lane whose engine responded.
pub(crate) const LANE: HeaderName = HeaderName::from_static("x-pointsman-lane");
/// Names the policies that decided, with their versions.
pub(crate) const POLICY: HeaderName = HeaderName::from_static("x-pointsman-policy");
/// The policies' reason.
pub(crate) const REASON: HeaderName = HeaderName::from_static("x-pointsman-reason");
/// The number of attempts, if there was more than one.
pub(crate) const ATTEMPTS: HeaderName = HeaderName::from_static("x-pointsman-attempts");

/// Headers that concern a single connection (RFC 9110 section 7.6.1).
pub(crate) const HOP_BY_HOP: [HeaderName; 8] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// Characters of a text that fit into a header of ours. Many proxies limit all headers to 8 KiB.
const MAX_HEADER_VALUE: usize = 512;

/// Returns `text` as a header value. Characters other than visible ASCII become question marks,
/// and long text is truncated.
pub(crate) fn to_header_value(text: &str) -> Option<HeaderValue> {
    let visible = |c: char| if c == ' ' || c.is_ascii_graphic() { c } else { '?' };
    let text: String = text.chars().take(MAX_HEADER_VALUE).map(visible).collect();
    HeaderValue::from_str(&text).ok()
}
