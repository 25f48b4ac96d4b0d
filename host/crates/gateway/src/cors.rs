//! Cross-origin resource sharing: which pages of other origins may use a listener from a browser.
//!
//! The headers are computed here, and not by a middleware of the routes, because responses that
//! never reach a route have to carry them too: without them a page cannot read the error.

use std::time::Duration;

use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE,
    ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD, ORIGIN, VARY,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method};

/// Maximum length of the names of headers that a preflight request asks for.
const MAX_REQUESTED_HEADERS: usize = 1024;
/// Headers that pages may read beside those that browsers always let them read, and beside those
/// that begin with one of [`EXPOSED_PREFIXES`].
const EXPOSED: [&str; 5] =
    ["x-request-id", "request-id", "retry-after", "retry-after-ms", "x-should-retry"];
/// Beginnings of further headers that pages may read.
const EXPOSED_PREFIXES: [&str; 4] =
    ["x-pointsman-", "x-ratelimit-", "anthropic-ratelimit-", "openai-"];

const REQUEST_PRIVATE_NETWORK: HeaderName =
    HeaderName::from_static("access-control-request-private-network");
const ALLOW_PRIVATE_NETWORK: HeaderName =
    HeaderName::from_static("access-control-allow-private-network");
const TRUE: HeaderValue = HeaderValue::from_static("true");

/// Which pages may use a listener, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cors {
    /// Origins of the pages; `*` for all.
    pub origins: Vec<String>,
    /// Pages may send cookies and other credentials of the browser. Not with `*`.
    pub credentials: bool,
    /// Headers that pages may send; `None` for all that they ask for.
    pub headers: Option<Vec<String>>,
    /// How long a browser may remember the response to a preflight request.
    pub max_age: Duration,
}

/// What the response to one request tells the browser.
#[derive(Debug)]
pub struct CorsHeaders {
    headers: HeaderMap,
    is_preflight: bool,
}

impl Cors {
    /// Returns what the response to a request has to tell the browser.
    pub fn headers_for(&self, method: &Method, request: &HeaderMap) -> CorsHeaders {
        let requested_method = request.get(ACCESS_CONTROL_REQUEST_METHOD);
        let origin = request.get(ORIGIN);
        let is_preflight =
            method == Method::OPTIONS && origin.is_some() && requested_method.is_some();
        let mut headers = HeaderMap::new();
        if !self.allows_all() {
            headers.append(VARY, HeaderValue::from_static("origin"));
        }
        let is_listed = origin.is_some_and(|origin| self.lists(origin));
        if self.allows_all() {
            headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
        } else if let Some(origin) = origin.filter(|_| is_listed) {
            headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
            if self.credentials {
                headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, TRUE);
            }
        }
        if is_preflight {
            headers.append(VARY, HeaderValue::from_static("access-control-request-headers"));
        }
        if is_preflight && (is_listed || self.allows_all()) {
            self.allow(request, &mut headers);
            // A page in the internet reaches into the local network with this: `*` is not enough.
            if is_listed && request.get(REQUEST_PRIVATE_NETWORK) == Some(&TRUE) {
                headers.insert(ALLOW_PRIVATE_NETWORK, TRUE);
            }
        }
        CorsHeaders { headers, is_preflight }
    }

    fn allows_all(&self) -> bool {
        self.origins.iter().any(|origin| origin == "*")
    }

    fn lists(&self, origin: &HeaderValue) -> bool {
        let origin = origin.as_bytes();
        self.origins.iter().any(|listed| listed.as_bytes().eq_ignore_ascii_case(origin))
    }

    /// Adds what a preflight request asks for.
    fn allow(&self, request: &HeaderMap, headers: &mut HeaderMap) {
        headers.insert(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, HEAD, POST"));
        headers.insert(ACCESS_CONTROL_MAX_AGE, self.max_age.as_secs().into());
        let allowed = match &self.headers {
            Some(names) => HeaderValue::from_str(&names.join(", ")).ok(),
            None => {
                let requested = request.get(ACCESS_CONTROL_REQUEST_HEADERS);
                requested.filter(|value| value.len() <= MAX_REQUESTED_HEADERS).cloned()
            }
        };
        headers.extend(allowed.map(|allowed| (ACCESS_CONTROL_ALLOW_HEADERS, allowed)));
    }
}

impl CorsHeaders {
    /// Returns true if the request only asks what is allowed. Browsers send no credentials with it.
    pub fn is_preflight(&self) -> bool {
        self.is_preflight
    }

    /// Adds the headers to the response.
    pub fn apply(mut self, response: &mut HeaderMap) {
        if !self.is_preflight && self.headers.contains_key(ACCESS_CONTROL_ALLOW_ORIGIN) {
            let exposed = exposed(response);
            let exposed = HeaderValue::from_str(&exposed.join(", ")).ok();
            let exposed = exposed.filter(|exposed| !exposed.is_empty());
            self.headers.extend(exposed.map(|exposed| (ACCESS_CONTROL_EXPOSE_HEADERS, exposed)));
        }
        for value in self.headers.get_all(VARY) {
            response.append(VARY, value.clone());
        }
        self.headers.remove(VARY);
        // Replaces headers of the same names.
        response.extend(self.headers);
    }
}

/// Returns the headers of a response that pages may read only if they are named.
fn exposed(response: &HeaderMap) -> Vec<&str> {
    let names = response.keys().map(HeaderName::as_str);
    let is_exposed = |name: &&str| {
        EXPOSED.contains(name) || EXPOSED_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
    };
    names.filter(is_exposed).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "https://chat.example.org";

    fn cors(origins: &[&str]) -> Cors {
        let origins = origins.iter().map(|origin| (*origin).to_owned()).collect();
        Cors { origins, credentials: false, headers: None, max_age: Duration::from_secs(600) }
    }

    fn request(headers: &[(&'static str, &'static str)]) -> HeaderMap {
        let pair = |(name, value): &(&'static str, &'static str)| {
            (HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        headers.iter().map(pair).collect()
    }

    /// Returns the headers of a response, each with its values.
    fn respond(cors: &Cors, method: &Method, request: &HeaderMap) -> Vec<String> {
        let mut response = HeaderMap::new();
        response.insert("x-pointsman-lane", HeaderValue::from_static("a"));
        response.insert("x-request-id", HeaderValue::from_static("1"));
        response.insert("content-length", HeaderValue::from_static("1"));
        cors.headers_for(method, request).apply(&mut response);
        let shown = |(name, value): (&HeaderName, &HeaderValue)| {
            let name = name
                .as_str()
                .strip_prefix("access-control-")
                .or_else(|| (name == VARY).then_some("vary"))?;
            Some(format!("{name}: {}", value.to_str().ok()?))
        };
        let mut shown: Vec<String> = response.iter().filter_map(shown).collect();
        shown.sort_unstable();
        shown
    }

    #[test]
    fn listed_origin_may_read_responses() {
        let cors = cors(&["https://other.example", PAGE]);
        assert_eq!(
            respond(&cors, &Method::POST, &request(&[("origin", PAGE)])),
            [
                "allow-origin: https://chat.example.org",
                "expose-headers: x-pointsman-lane, x-request-id",
                "vary: origin",
            ]
        );
        let credentials = Cors { credentials: true, ..cors };
        let headers = respond(&credentials, &Method::GET, &request(&[("origin", PAGE)]));
        assert!(headers.contains(&"allow-credentials: true".to_owned()), "{headers:?}");
    }

    #[test]
    fn other_origins_get_nothing() {
        let cors = cors(&[PAGE]);
        for headers in [
            request(&[("origin", "https://evil.example")]),
            request(&[("origin", "https://chat.example.org.evil.example")]),
            request(&[("origin", "null")]),
            request(&[]),
        ] {
            assert_eq!(respond(&cors, &Method::POST, &headers), ["vary: origin"], "{headers:?}");
        }
        let preflight = [("origin", "https://e.example"), ("access-control-request-method", "GET")];
        let headers = respond(&cors, &Method::OPTIONS, &request(&preflight));
        assert_eq!(headers, ["vary: access-control-request-headers", "vary: origin"]);
    }

    #[test]
    fn preflight_is_told_what_is_allowed() {
        let preflight = request(&[
            ("origin", PAGE),
            ("access-control-request-method", "POST"),
            ("access-control-request-headers", "authorization,content-type"),
            ("access-control-request-private-network", "true"),
        ]);
        let listed = cors(&[PAGE]);
        assert!(listed.headers_for(&Method::OPTIONS, &preflight).is_preflight());
        assert!(!listed.headers_for(&Method::POST, &preflight).is_preflight());
        assert_eq!(
            respond(&listed, &Method::OPTIONS, &preflight),
            [
                "allow-headers: authorization,content-type",
                "allow-methods: GET, HEAD, POST",
                "allow-origin: https://chat.example.org",
                "allow-private-network: true",
                "max-age: 600",
                "vary: access-control-request-headers",
                "vary: origin",
            ]
        );
        let some = Cors { headers: Some(vec!["x-a".into(), "x-b".into()]), ..cors(&["*"]) };
        assert_eq!(
            respond(&some, &Method::OPTIONS, &preflight),
            [
                "allow-headers: x-a, x-b",
                "allow-methods: GET, HEAD, POST",
                "allow-origin: *",
                "max-age: 600",
                "vary: access-control-request-headers",
            ]
        );
        let plain = request(&[("origin", PAGE)]);
        assert!(!listed.headers_for(&Method::OPTIONS, &plain).is_preflight());
    }
}
