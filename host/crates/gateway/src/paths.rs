//! One normal form of the paths of requests, so that each endpoint needs one route.
//!
//! Clients build paths from a base URL with or without `/v1` and with or without a trailing slash.
//! All of these forms are the same endpoint, below the path prefix of the listener.

use http::Uri;
use http::uri::PathAndQuery;
use pointsman_domain::Endpoint;
use pointsman_openai::SERVED;

/// The beginning of the paths of the API.
const API: &str = "/v1";
/// Further paths of endpoints, without the beginning of the API: those that vLLM and llama.cpp have
/// besides the usual ones.
const ALIASES: [(&str, Endpoint); 2] =
    [("/reranking", Endpoint::Rerank), ("/v2/rerank", Endpoint::Rerank)];
/// Paths that exist without the path prefix of the listener too: load balancers and orchestrators
/// check the host by address.
const WITHOUT_PREFIX: [&str; 3] = ["/livez", "/readyz", "/health"];
/// Paths of llama.cpp that are not those of the API without their `/v1`, and their routes.
const OF_LLAMA_CPP: [(&str, &str); 5] = [
    ("/completion", "/completion"),
    ("/completions", "/completion"),
    ("/embedding", "/embedding"),
    ("/embeddings", "/embedding"),
    ("/reranking", "/v1/rerank"),
];

/// Parameters that have the key of a client, if the configuration allows that.
const QUERY_KEYS: [&str; 2] = ["key", "api_key"];
/// Maximum length of a query that is passed on to engines.
const MAX_QUERY: usize = 1024;
/// Parameters that may be credentials, in lower case.
const CREDENTIALS: [&str; 8] = [
    "key",
    "api_key",
    "api-key",
    "apikey",
    "access_token",
    "token",
    "authorization",
    "subscription-key",
];

/// Returns the endpoint that has this path as its route.
pub(crate) fn served(path: &str) -> Option<Endpoint> {
    SERVED.into_iter().find(|endpoint| endpoint.path() == Some(path))
}

/// Returns the path of a route: without the path prefix, with one `/v1` if it is one of the API,
/// and without repeated and trailing slashes. Encoded characters stay encoded. Returns `None` for a
/// path that is not below the prefix, and for one that can be read in two ways: with `..` or an
/// encoded NUL.
pub(crate) fn normalize(path: &str, prefix: &str) -> Option<String> {
    if is_ambiguous(path) {
        return None;
    }
    let path = with_single_slashes(path);
    let below = path.strip_prefix(prefix).filter(|rest| rest.is_empty() || rest.starts_with('/'));
    let Some(mut path) = below else {
        // Clients of Ollama look for it at the root.
        return match path.as_str() {
            "" => Some("/".to_owned()),
            known => WITHOUT_PREFIX.contains(&known).then_some(path),
        };
    };
    // A client that adds `/v1` to a base URL that has it.
    while let Some(rest) = path.strip_prefix(API).filter(|rest| in_api(rest)) {
        path = rest;
    }
    if let Some(endpoint) = endpoint(path) {
        return Some(endpoint.to_owned());
    }
    Some(match path {
        "" => "/".to_owned(),
        _ if is_below_api(path) => format!("{API}{path}"),
        _ => path.to_owned(),
    })
}

/// Returns the route of a path that llama.cpp serves in a way of its own; `None` for all others.
pub(crate) fn of_llama_cpp(path: &str, prefix: &str) -> Option<&'static str> {
    let path = with_single_slashes(path);
    let path = path.strip_prefix(prefix)?;
    OF_LLAMA_CPP.iter().find(|(known, _)| *known == path).map(|(_, route)| *route)
}

/// Replaces the path of a URI, and keeps its query.
pub(crate) fn replace(uri: &Uri, path: String) -> Option<Uri> {
    let path = match uri.query() {
        Some(query) => format!("{path}?{query}"),
        None => path,
    };
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(PathAndQuery::try_from(path).ok()?);
    Uri::from_parts(parts).ok()
}

/// Returns what of a query is passed on to external engines: nothing of one that is too long.
/// Parameters that may be credentials of the client for the host are left out.
pub(crate) fn query_for_engine(uri: &Uri) -> String {
    let query = uri.query().unwrap_or_default();
    if query.len() > MAX_QUERY || !query.bytes().all(|byte| byte.is_ascii_graphic()) {
        return String::new();
    }
    let is_passed = |parameter: &&str| {
        let name = parameter.split('=').next().unwrap_or_default().to_ascii_lowercase();
        // An encoded name might be any.
        !name.is_empty() && !name.contains('%') && !CREDENTIALS.contains(&name.as_str())
    };
    query.split('&').filter(is_passed).collect::<Vec<_>>().join("&")
}

/// Takes an API key out of the query of a URI, so that nothing behind can log or forward it.
/// Returns the URI without it, and its value; `None` if the query has none.
pub(crate) fn take_key(uri: &Uri) -> Option<(Uri, String)> {
    let query = uri.query()?;
    let name_of = |parameter: &str| {
        decoded(parameter.split('=').next().unwrap_or_default()).to_ascii_lowercase()
    };
    let is_key = |parameter: &&str| QUERY_KEYS.contains(&name_of(parameter).as_str());
    let first = query.split('&').find(is_key)?;
    let value = first.split_once('=').map_or("", |(_, value)| value);
    let value = decoded(value);
    let rest: Vec<&str> = query.split('&').filter(|parameter| !is_key(parameter)).collect();
    let path = match rest.is_empty() {
        true => uri.path().to_owned(),
        false => format!("{}?{}", uri.path(), rest.join("&")),
    };
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(PathAndQuery::try_from(path).ok()?);
    Some((Uri::from_parts(parts).ok()?, value))
}

/// Returns a text without percent encoding; what is not valid stays as it is.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let digit = |at: usize| char::from(*after.get(at)?).to_digit(16);
        let byte = match first {
            b'%' => {
                digit(0).zip(digit(1)).and_then(|(high, low)| u8::try_from(high << 4 | low).ok())
            }
            _ => None,
        };
        bytes.push(byte.unwrap_or(*first));
        rest = if byte.is_some() { &after[2..] } else { after };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Returns the path without repeated slashes and without a trailing one: empty for the root.
fn with_single_slashes(path: &str) -> String {
    let segments = path.split('/').filter(|segment| !segment.is_empty());
    segments.flat_map(|segment| ["/", segment]).collect()
}

/// Returns true for a path of the API that lacks its `/v1`, besides those of endpoints.
fn is_below_api(path: &str) -> bool {
    path == "/models" || path.starts_with("/models/") || path.starts_with("/responses/")
}

fn in_api(path: &str) -> bool {
    path.strip_prefix(API).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Returns the path of the endpoint that a path stands for, with or without `/v1`.
fn endpoint(path: &str) -> Option<&'static str> {
    endpoint_at(path).and_then(Endpoint::path)
}

/// Returns the endpoint that a path stands for, with or without `/v1`.
pub(crate) fn endpoint_at(path: &str) -> Option<Endpoint> {
    let bare = without_api(path);
    let mut served = SERVED.into_iter();
    let is_at = |endpoint: &Endpoint| endpoint.path().is_some_and(|own| without_api(own) == bare);
    let alias = ALIASES.iter().find(|(alias, _)| *alias == bare).map(|(_, endpoint)| *endpoint);
    served.find(is_at).or(alias.filter(|endpoint| SERVED.contains(endpoint)))
}

fn without_api(path: &str) -> &str {
    path.strip_prefix(API).filter(|rest| rest.starts_with('/')).unwrap_or(path)
}

/// Returns true for a path that servers and their clients read differently.
fn is_ambiguous(path: &str) -> bool {
    if !path.contains(['%', '.']) {
        return false;
    }
    let path = path.to_ascii_lowercase().replace("%2e", ".").replace("%2f", "/");
    path.contains("%00") || path.split('/').any(|segment| segment == "..")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn all_forms_of_a_base_url_have_one_path() {
        let chat = Some("/v1/chat/completions");
        for (path, expected) in [
            ("/v1/chat/completions", chat),
            ("/chat/completions", chat),
            ("/v1/v1/chat/completions", chat),
            ("//v1//chat/completions", chat),
            ("/v1/chat/completions/", chat),
            ("/completions", Some("/v1/completions")),
            ("/models", Some("/v1/models")),
            ("/v1/models/", Some("/v1/models")),
            ("/models/org/name", Some("/v1/models/org/name")),
            ("/v1/models/org%2Fname", Some("/v1/models/org%2Fname")),
            ("/v1/models/v1/chat/completions", Some("/v1/models/v1/chat/completions")),
            ("/v1/models/a.b", Some("/v1/models/a.b")),
            ("/embeddings", Some("/v1/embeddings")),
            ("/rerank", Some("/v1/rerank")),
            ("/v1/v1/rerank", Some("/v1/rerank")),
            ("/v2/rerank", Some("/v1/rerank")),
            ("/reranking", Some("/v1/rerank")),
            ("/v1/reranking", Some("/v1/rerank")),
            ("/score", Some("/v1/score")),
            ("/v1/classify", Some("/classify")),
            ("/v1/pooling/", Some("/pooling")),
            ("/v1/tokenize", Some("/tokenize")),
            ("/detokenize", Some("/detokenize")),
            ("/moderations", Some("/v1/moderations")),
            ("/health/", Some("/health")),
            ("/", Some("/")),
            ("//", Some("/")),
            ("/v1", Some("/v1")),
            ("/v1/v1", Some("/v1")),
            ("/v10/models", Some("/v10/models")),
            ("/v1/health", Some("/v1/health")),
            ("/completion", Some("/completion")),
            ("/v1/../status", None),
            ("/v1/%2E%2e/status", None),
            ("/v1/models/a%2f..%2fb", None),
            ("/v1/models/a%00", None),
        ] {
            assert_eq!(normalize(path, "").as_deref(), expected, "{path}");
        }
    }

    #[test]
    fn only_health_is_served_beside_the_prefix() {
        for (path, expected) in [
            ("/llm/v1/models", Some("/v1/models")),
            ("/llm/models", Some("/v1/models")),
            ("//llm//v1/chat/completions/", Some("/v1/chat/completions")),
            ("/llm", Some("/")),
            ("/llm/health", Some("/health")),
            ("/health", Some("/health")),
            ("/livez/", Some("/livez")),
            ("/readyz", Some("/readyz")),
            ("/status", None),
            ("/v1/models", None),
            ("/llmx/v1/models", None),
            ("/", Some("/")),
        ] {
            assert_eq!(normalize(path, "/llm").as_deref(), expected, "{path}");
        }
    }

    #[test]
    fn query_and_authority_stay() {
        let uri = |path| replace(&Uri::from_static(path), "/v1/models".to_owned()).unwrap();
        assert_eq!(uri("//models/?a=%20b&a="), "/v1/models?a=%20b&a=");
        assert_eq!(uri("http://h:1/models"), "http://h:1/v1/models");
    }

    #[test]
    fn credentials_and_long_queries_are_not_passed_on() {
        let long = format!("/x?{}", "a".repeat(MAX_QUERY + 1));
        for (uri, expected) in [
            ("/x", ""),
            ("/x?", ""),
            ("/x?api-version=2024-10-21&a=%20b", "api-version=2024-10-21&a=%20b"),
            ("/x?key=secret&b=1&API-Key=s&access_token=s", "b=1"),
            ("/x?%6bey=secret&&=1", ""),
            (long.as_str(), ""),
        ] {
            assert_eq!(query_for_engine(&uri.parse().unwrap()), expected, "{uri}");
        }
    }

    #[test]
    fn keys_are_taken_out_of_the_query() {
        for (uri, expected) in [
            ("/x?a=1", None),
            ("/x", None),
            ("/x?key=s", Some(("/x", "s"))),
            ("/x?a=1&api_key=s%2B1&b", Some(("/x?a=1&b", "s+1"))),
            ("/x?%6Bey=s&KEY=t", Some(("/x", "s"))),
            ("http://h:1/x?key", Some(("http://h:1/x", ""))),
            ("/x?key=%zz%", Some(("/x", "%zz%"))),
        ] {
            let taken = take_key(&uri.parse().unwrap());
            let expected =
                expected.map(|(uri, key): (&str, &str)| (uri.parse().unwrap(), key.into()));
            assert_eq!(taken, expected, "{uri}");
        }
    }

    proptest! {
        #[test]
        fn normal_form_is_stable(path in "(/|v1|models|chat|completions|a|%2F|\\.|%2e|é){0,12}") {
            let Some(normal) = normalize(&path, "") else { return Ok(()) };
            prop_assert!(normal.starts_with('/') && !normal.contains("//"));
            prop_assert!(normal == "/" || !normal.ends_with('/'));
            let forms = [(format!("{normal}/"), ""), (format!("/p/{normal}"), "/p")];
            for (form, prefix) in forms.into_iter().chain([(normal.clone(), "")]) {
                prop_assert_eq!(normalize(&form, prefix), Some(normal.clone()));
            }
        }
    }
}
