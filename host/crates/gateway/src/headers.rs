//! Names and values of headers that the host sets or removes.

use bytes::BytesMut;
use http::{HeaderMap, HeaderName, HeaderValue, header};

/// Names the lane whose engine responded.
pub(crate) const LANE: HeaderName = HeaderName::from_static("x-pointsman-lane");
/// Names the policies that decided, with their versions.
pub(crate) const POLICY: HeaderName = HeaderName::from_static("x-pointsman-policy");
/// Names the policy whose advice prevailed: it rejected the request, or speaks for the lane.
pub(crate) const DECIDED_BY: HeaderName = HeaderName::from_static("x-pointsman-decided-by");
/// The reason that this policy gives.
pub(crate) const REASON: HeaderName = HeaderName::from_static("x-pointsman-reason");
/// Names the guards that apply to the request.
pub(crate) const GUARD: HeaderName = HeaderName::from_static("x-pointsman-guard");
/// The number of attempts, if there was more than one.
pub(crate) const ATTEMPTS: HeaderName = HeaderName::from_static("x-pointsman-attempts");

/// Asks to load a lane for a request to a path of its engine.
pub(crate) const LOAD: HeaderName = HeaderName::from_static("x-pointsman-load");

/// The name of the header with the stable code of an error.
pub const CODE: HeaderName = HeaderName::from_static("x-pointsman-code");
/// Tells client libraries whether to send a request again.
pub(crate) const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");
/// Turns off the buffering of proxies for one response.
const ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// Headers that concern a single connection (RFC 9110 section 7.6.1).
const HOP_BY_HOP: [HeaderName; 9] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// Headers of a client that are the host's to set, besides those of the connection: what depends
/// on the body, and what the operator decides. Names that begin with one of
/// [`OPERATOR_PREFIXES`] are removed too.
const NOT_FOR_ENGINES: [HeaderName; 11] = [
    header::HOST,
    header::CONTENT_LENGTH,
    // A compressed response could not be inspected.
    header::ACCEPT_ENCODING,
    header::EXPECT,
    // Credentials of the client for the host or for other services on its name.
    header::COOKIE,
    // llama.cpp reflects it.
    header::ORIGIN,
    // vLLM chooses one of its engines by it.
    HeaderName::from_static("x-data-parallel-rank"),
    // llama.cpp gives everyone who knows it the stream of another request.
    HeaderName::from_static("x-conversation-id"),
    // vLLM reports its load in the response.
    HeaderName::from_static("endpoint-load-metrics-format"),
    // vLLM keeps requests of a session on one engine.
    HeaderName::from_static("x-session-id"),
    header::CONTENT_ENCODING,
];

/// Beginnings of headers that are the host's: `X-Vllm-Priority` orders vLLM's queue.
const OPERATOR_PREFIXES: [&str; 2] = ["x-vllm-", "x-pointsman-"];

/// Headers of an engine's response that reach the client, beside those that begin with one of
/// [`CLIENT_PREFIXES`]. `X-Request-Id` is the host's own.
const FOR_CLIENTS: [HeaderName; 11] = [
    header::CONTENT_TYPE,
    // The host counts the bytes of the body against it.
    header::CONTENT_LENGTH,
    header::CONTENT_ENCODING,
    header::CONTENT_LANGUAGE,
    header::CONTENT_DISPOSITION,
    header::CACHE_CONTROL,
    header::VARY,
    header::RETRY_AFTER,
    HeaderName::from_static("retry-after-ms"),
    SHOULD_RETRY,
    // OpenAI's libraries show these.
    HeaderName::from_static("openai-processing-ms"),
];

/// Beginnings of headers that reach the client.
const CLIENT_PREFIXES: [&str; 3] = ["x-ratelimit-", "openai-version", "openai-model"];

/// Headers of a response that limits the rate of requests, beside `x-ratelimit-*`. `Retry-After` is
/// the host's own.
const OF_RATE_LIMITS: [&str; 2] = ["retry-after-ms", "x-should-retry"];

/// Marks a response that is an engine's.
#[derive(Debug, Clone, Copy)]
pub struct FromEngine;

/// The length that an engine announced for a body whose length changes on its way to the client.
#[derive(Debug, Clone, Copy)]
pub(crate) struct EngineLength(pub(crate) u64);

/// Copies the headers, which are slices of the connection's read buffer and would keep all of it
/// alive while the request is queued.
pub(crate) fn detached(headers: &HeaderMap) -> HeaderMap {
    // One buffer for all values.
    let mut values = BytesMut::with_capacity(headers.values().map(HeaderValue::len).sum());
    let copy = |(name, value): (&HeaderName, &HeaderValue)| {
        values.extend_from_slice(value.as_bytes());
        let mut copy = HeaderValue::from_maybe_shared(values.split().freeze()).ok()?;
        copy.set_sensitive(value.is_sensitive());
        Some((HeaderName::from_bytes(name.as_str().as_bytes()).ok()?, copy))
    };
    let mut detached = HeaderMap::with_capacity(headers.len());
    for (name, value) in headers.iter().filter_map(copy) {
        detached.append(name, value);
    }
    detached
}

/// Returns the client's headers for an engine. Credentials were removed when the request was
/// parsed.
pub(crate) fn for_engine(client: &HeaderMap) -> HeaderMap {
    let named = named_in_connection(client);
    retained(client, |name| {
        let operators = OPERATOR_PREFIXES.iter().any(|prefix| name.as_str().starts_with(prefix));
        !operators
            && !HOP_BY_HOP.contains(name)
            && !NOT_FOR_ENGINES.contains(name)
            && !named.contains(name)
    })
}

/// Returns the headers of an engine's response that reach the client.
pub(crate) fn for_client(engine: &HeaderMap) -> HeaderMap {
    let named = named_in_connection(engine);
    let mut headers = retained(engine, |name| {
        let allowed = FOR_CLIENTS.contains(name)
            || CLIENT_PREFIXES.iter().any(|prefix| name.as_str().starts_with(prefix));
        allowed && !named.contains(name)
    });
    if is_stream(&headers) {
        make_unbuffered(&mut headers);
    }
    headers
}

/// Returns true if the body of a message is a stream of events, or of lines of JSON.
fn is_stream(headers: &HeaderMap) -> bool {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let essence = content_type.and_then(|value| value.split(';').next()).unwrap_or_default();
    let kinds = ["text/event-stream", "application/x-ndjson"];
    kinds.iter().any(|kind| essence.trim().eq_ignore_ascii_case(kind))
}

/// Keeps proxies from collecting the events of a stream, and from storing it.
pub(crate) fn make_unbuffered(headers: &mut HeaderMap) {
    // nginx buffers responses unless it is told otherwise (`proxy_buffering`).
    headers.insert(ACCEL_BUFFERING, HeaderValue::from_static("no"));
    let no_cache = HeaderValue::from_static("no-cache");
    headers.entry(header::CACHE_CONTROL).or_insert(no_cache);
}

/// Returns the headers of a response with status 429 that tell a client when to retry.
pub(crate) fn of_rate_limit(engine: &HeaderMap) -> HeaderMap {
    retained(engine, |name| {
        OF_RATE_LIMITS.contains(&name.as_str()) || name.as_str().starts_with("x-ratelimit-")
    })
}

fn retained(headers: &HeaderMap, keep: impl Fn(&HeaderName) -> bool) -> HeaderMap {
    let mut retained = HeaderMap::with_capacity(headers.keys_len());
    for (name, value) in headers.iter().filter(|(name, _)| keep(name)) {
        retained.append(name.clone(), value.clone());
    }
    retained
}

/// Returns the headers that concern a single connection because `Connection` names them.
fn named_in_connection(headers: &HeaderMap) -> Vec<HeaderName> {
    let values = headers.get_all(header::CONNECTION).into_iter();
    let names = values.filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(','));
    names.filter_map(|name| name.trim().parse().ok()).collect()
}

/// Characters of a text that fit into a header of ours. Many proxies limit all headers to 8 KiB.
const MAX_HEADER_VALUE: usize = 512;

/// Returns `text` as a header value. Characters other than visible ASCII become question marks,
/// and long text is truncated.
pub(crate) fn to_header_value(text: &str) -> Option<HeaderValue> {
    let visible = |c: char| if c == ' ' || c.is_ascii_graphic() { c } else { '?' };
    let text: String = text.chars().take(MAX_HEADER_VALUE).map(visible).collect();
    HeaderValue::from_str(&text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(all: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in all {
            headers.append(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    fn names(headers: &HeaderMap) -> Vec<&str> {
        let mut names: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn only_listed_headers_of_an_engine_reach_clients() {
        let engine = headers(&[
            ("content-type", "text/event-stream"),
            ("x-ratelimit-limit-requests", "10"),
            ("x-ratelimit-remaining-tokens", "99"),
            ("openai-processing-ms", "3"),
            ("openai-organization", "the-operators"),
            ("x-accel-buffering", "no"),
            ("retry-after", "3"),
            ("set-cookie", "a=b"),
            ("clear-site-data", "\"*\""),
            ("access-control-allow-origin", "*"),
            ("location", "http://127.0.0.1:8080/"),
            ("server", "uvicorn"),
            ("x-pointsman-reason", "forged"),
            ("x-request-id", "forged"),
            ("connection", "close, X-Should-Retry"),
            ("x-should-retry", "true"),
            ("keep-alive", "timeout=5"),
            ("transfer-encoding", "chunked"),
            ("alt-svc", "h3"),
            ("strict-transport-security", "max-age=1"),
        ]);
        assert_eq!(
            names(&for_client(&engine)),
            [
                "cache-control",
                "content-type",
                "openai-processing-ms",
                "retry-after",
                "x-accel-buffering",
                "x-ratelimit-limit-requests",
                "x-ratelimit-remaining-tokens",
            ]
        );
        assert_eq!(
            names(&of_rate_limit(&engine)),
            ["x-ratelimit-limit-requests", "x-ratelimit-remaining-tokens", "x-should-retry",]
        );
    }

    #[test]
    fn only_streams_are_unbuffered() {
        for (content_type, expected) in [
            ("text/event-stream; charset=utf-8", Some("no")),
            ("Text/Event-Stream", Some("no")),
            ("application/x-ndjson", Some("no")),
            ("application/json", None),
        ] {
            let engine = headers(&[("content-type", content_type), ("x-accel-buffering", "yes")]);
            let client = for_client(&engine);
            let text = |name| client.get(name).map(|value: &HeaderValue| value.to_str().unwrap());
            assert_eq!(text("x-accel-buffering"), expected, "{content_type}");
            assert_eq!(text("cache-control"), expected.map(|_| "no-cache"), "{content_type}");
        }
        let own = headers(&[("content-type", "text/event-stream"), ("cache-control", "no-store")]);
        assert_eq!(for_client(&own)["cache-control"], "no-store");
    }

    #[test]
    fn what_the_operator_decides_does_not_reach_engines() {
        let client = headers(&[
            ("user-agent", "test"),
            ("x-stainless-lang", "python"),
            ("x-vllm-priority", "-999"),
            ("x-vllm-anything", "1"),
            ("x-data-parallel-rank", "3"),
            ("x-conversation-id", "someone"),
            ("x-pointsman-lane", "a"),
            ("accept-encoding", "gzip"),
            ("cookie", "a=b"),
            ("connection", "x-private"),
            ("x-private", "1"),
            ("te", "trailers"),
            ("upgrade", "websocket"),
        ]);
        assert_eq!(names(&for_engine(&client)), ["user-agent", "x-stainless-lang"]);
    }
}
