//! The files of the page, which are part of the program.

use axum::extract::{Path, Request};
use axum::response::Response;
use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode, header};
use sha2::{Digest as _, Sha256};

use crate::response::{typed, unknown_path};

/// A browser runs and shows nothing but what the host serves, and no page shows the console in a
/// frame.
const POLICY: &str = "default-src 'self'; base-uri 'none'; form-action 'none'; \
                      frame-ancestors 'none'; object-src 'none'";
const REFERRER_POLICY: HeaderName = HeaderName::from_static("referrer-policy");
const FRAME_OPTIONS: HeaderName = HeaderName::from_static("x-frame-options");

/// A file of the page.
struct Asset {
    name: &'static str,
    content_type: &'static str,
    content: &'static [u8],
}

const HTML: &str = "text/html; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";

macro_rules! assets {
    ($($name:literal: $content_type:expr),+ $(,)?) => {
        [$(Asset {
            name: $name,
            content_type: $content_type,
            content: include_bytes!(concat!("../../../../../console/", $name)),
        }),+]
    };
}

const ASSETS: [Asset; 18] = assets![
    "index.html": HTML,
    "style.css": STYLE,
    "icon.svg": "image/svg+xml",
    "app.js": SCRIPT,
    "actions.js": SCRIPT,
    "api.js": SCRIPT,
    "dom.js": SCRIPT,
    "format.js": SCRIPT,
    "hosts.js": SCRIPT,
    "keys.js": SCRIPT,
    "lanes.js": SCRIPT,
    "timeline.js": SCRIPT,
    "requests.js": SCRIPT,
    "decisions.js": SCRIPT,
    "policies.js": SCRIPT,
    "usage.js": SCRIPT,
    "log.js": SCRIPT,
    "playground.js": SCRIPT,
];

/// Returns the names of the files.
#[cfg(test)]
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    ASSETS.iter().map(|asset| asset.name)
}

/// Responds with the page.
pub(super) async fn page(request: Request) -> Response {
    respond("index.html", request).await
}

/// Responds with one of its files.
pub(super) async fn file(Path(name): Path<String>, request: Request) -> Response {
    respond(&name, request).await
}

async fn respond(name: &str, request: Request) -> Response {
    let Some(asset) = ASSETS.iter().find(|asset| asset.name == name) else {
        return unknown_path(request).await;
    };
    let mut tag = String::from("\"");
    for byte in &Sha256::digest(asset.content)[..8] {
        tag += &format!("{byte:02x}");
    }
    tag.push('"');
    let known = request.headers().get(header::IF_NONE_MATCH);
    let is_known = known.is_some_and(|known| known.as_bytes() == tag.as_bytes());
    let content = if is_known { Bytes::new() } else { Bytes::from_static(asset.content) };
    let mut response = typed(asset.content_type, content);
    if is_known {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
    }
    let headers = response.headers_mut();
    headers.extend(HeaderValue::try_from(tag).ok().map(|tag| (header::ETAG, tag)));
    for (name, value) in [
        // Asked each time, because the next version of the host has other files.
        (header::CACHE_CONTROL, "no-cache"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
        (FRAME_OPTIONS, "DENY"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}
