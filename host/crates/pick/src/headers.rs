//! Headers of the proxy's messages, and how they are changed.

use bytes::Bytes;
use envoy_types::pb::envoy::config::core::v3::header_value_option::HeaderAppendAction;
use envoy_types::pb::envoy::config::core::v3::{self as core, HeaderValueOption};
use envoy_types::pb::envoy::service::ext_proc::v3::HeaderMutation;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use tonic::Status;

/// Names the endpoints for a request, in order.
pub(crate) const DESTINATION: &str = "x-gateway-destination-endpoint";

/// Maximum number of headers of a message. Proxies accept far fewer, and a map of headers panics
/// beyond 32,768.
const MAX_HEADERS: usize = 1024;
/// Maximum size of all names and values of a message in bytes.
const MAX_HEADER_BYTES: usize = 256 << 10;

/// Tells Envoy how often it may send the request again: once to each further endpoint. After that,
/// it would choose an engine itself.
pub(crate) const MAX_RETRIES: &str = "x-envoy-max-retries";

/// Headers that the proxy sets itself, and does not let others change.
const OF_PROXY: [HeaderName; 3] = [header::HOST, header::CONNECTION, header::TRANSFER_ENCODING];

/// Beginnings of such headers.
const PROXY_PREFIXES: [&str; 2] = ["x-envoy-", "x-forwarded-"];

/// The head of a message.
#[derive(Debug, Default)]
pub(crate) struct MessageHead {
    pub(crate) method: Method,
    pub(crate) uri: Uri,
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
}

/// Reads the headers of a message.
///
/// # Errors
/// If one of them is invalid, which a proxy does not pass on, or they exceed the limits.
pub(crate) fn read(map: Option<core::HeaderMap>) -> Result<MessageHead, Status> {
    let all = map.unwrap_or_default().headers;
    let size =
        |header: &core::HeaderValue| header.key.len() + header.value.len() + header.raw_value.len();
    if all.len() > MAX_HEADERS || all.iter().map(size).sum::<usize>() > MAX_HEADER_BYTES {
        return Err(Status::resource_exhausted(format!(
            "more than {MAX_HEADERS} headers, or {MAX_HEADER_BYTES} bytes of them"
        )));
    }
    let mut head = MessageHead::default();
    for core::HeaderValue { key, value, raw_value } in all {
        let value = if raw_value.is_empty() { value.into_bytes() } else { raw_value };
        let invalid = |_| Status::invalid_argument(format!("invalid header `{key}`"));
        let text = || std::str::from_utf8(&value).unwrap_or_default();
        match key.as_str() {
            ":method" => head.method = text().parse().map_err(|_| invalid(()))?,
            ":path" => head.uri = text().parse().map_err(|_| invalid(()))?,
            ":status" => head.status = text().parse().map_err(|_| invalid(()))?,
            ":authority" => {
                let value = HeaderValue::from_bytes(&value).map_err(|_| invalid(()))?;
                head.headers.insert(header::HOST, value);
            }
            name if name.starts_with(':') => {}
            name => {
                let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| invalid(()))?;
                let value = HeaderValue::from_maybe_shared(Bytes::from(value));
                head.headers.append(name, value.map_err(|_| invalid(()))?);
            }
        }
    }
    Ok(head)
}

/// Returns what changes the headers of a message from `old` to `new`. Those that are the proxy's
/// stay, and the length goes: the body may be another one.
pub(crate) fn mutation(old: &HeaderMap, new: &HeaderMap) -> HeaderMutation {
    let is_of_proxy = |name: &HeaderName| {
        OF_PROXY.contains(name)
            || PROXY_PREFIXES.iter().any(|prefix| name.as_str().starts_with(prefix))
    };
    let mut mutation = HeaderMutation::default();
    for name in new.keys().filter(|name| !is_of_proxy(name) && **name != header::CONTENT_LENGTH) {
        if old.get_all(name) == new.get_all(name) {
            continue;
        }
        for (index, value) in new.get_all(name).iter().enumerate() {
            let action = match index {
                0 => HeaderAppendAction::OverwriteIfExistsOrAdd,
                _ => HeaderAppendAction::AppendIfExistsOrAdd,
            };
            mutation.set_headers.push(option(name.as_str(), value.as_bytes(), action));
        }
    }
    let removed = old.keys().filter(|name| !is_of_proxy(name) && !new.contains_key(*name));
    let removed = removed.filter(|name| **name != header::CONTENT_LENGTH);
    mutation.remove_headers = removed.map(|name| name.as_str().to_owned()).collect();
    mutation.remove_headers.push(header::CONTENT_LENGTH.as_str().to_owned());
    mutation
}

/// Sets one more header.
pub(crate) fn set(mutation: &mut HeaderMutation, name: &str, value: &str) {
    mutation.remove_headers.retain(|removed| removed != name);
    let action = HeaderAppendAction::OverwriteIfExistsOrAdd;
    mutation.set_headers.push(option(name, value.as_bytes(), action));
}

fn option(name: &str, value: &[u8], action: HeaderAppendAction) -> HeaderValueOption {
    HeaderValueOption {
        header: Some(core::HeaderValue {
            key: name.to_owned(),
            raw_value: value.to_vec(),
            ..core::HeaderValue::default()
        }),
        append_action: action as i32,
        ..HeaderValueOption::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(all: &[(&'static str, &'static str)]) -> HeaderMap {
        let pair = |(name, value): &(&'static str, &'static str)| {
            (HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        let mut headers = HeaderMap::new();
        headers.extend(all.iter().map(pair));
        headers
    }

    #[test]
    fn only_differences_are_sent() {
        let old = headers(&[
            ("authorization", "Bearer client"),
            ("content-type", "application/json"),
            ("content-length", "7"),
            ("x-envoy-attempt-count", "1"),
            ("a", "1"),
        ]);
        let new = headers(&[("content-type", "application/json"), ("a", "2"), ("b", "3")]);
        let mut mutation = mutation(&old, &new);
        set(&mut mutation, "authorization", "Bearer host");
        let set: Vec<_> = mutation
            .set_headers
            .iter()
            .map(|option| option.header.as_ref().unwrap())
            .map(|header| (header.key.as_str(), std::str::from_utf8(&header.raw_value).unwrap()))
            .collect();
        assert_eq!(set, [("a", "2"), ("b", "3"), ("authorization", "Bearer host")]);
        assert_eq!(mutation.remove_headers, ["content-length"]);
    }

    #[test]
    fn head_is_read_from_raw_and_plain_values() {
        let header = |key: &str, value: &str, raw: &str| core::HeaderValue {
            key: key.to_owned(),
            value: value.to_owned(),
            raw_value: raw.as_bytes().to_vec(),
        };
        let map = core::HeaderMap {
            headers: vec![
                header(":method", "", "POST"),
                header(":path", "/v1/chat/completions?a=1", ""),
                header(":authority", "", "router"),
                header(":scheme", "", "http"),
                header("x", "1", ""),
                header("x", "2", ""),
            ],
        };
        let head = read(Some(map)).unwrap();
        assert_eq!((head.method, head.uri.path()), (Method::POST, "/v1/chat/completions"));
        assert_eq!(head.headers[header::HOST], "router");
        assert_eq!(head.headers.get_all("x").iter().count(), 2);
        let map = core::HeaderMap { headers: vec![header("a b", "1", "")] };
        assert_eq!(read(Some(map)).unwrap_err().code(), tonic::Code::InvalidArgument);
        let long = "x".repeat(MAX_HEADER_BYTES);
        for (headers, is_accepted) in [
            (vec![header("x", "1", ""); MAX_HEADERS], true),
            (vec![header("x", "1", ""); MAX_HEADERS + 1], false),
            (vec![header("x", "1", ""); 40_000], false),
            (vec![header("x", "", &long)], false),
            (vec![header("x", &long[1..], "")], true),
            (vec![header("x", &long, "")], false),
        ] {
            let count = headers.len();
            match read(Some(core::HeaderMap { headers })) {
                Ok(_) => assert!(is_accepted, "{count}"),
                Err(error) => {
                    assert!(!is_accepted, "{count}");
                    assert_eq!(error.code(), tonic::Code::ResourceExhausted);
                }
            }
        }
    }
}
