//! The challenges of registries, and tokens.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderValue, Uri};
use pointsman_spec::RegistryCredentials;
use serde::Deserialize;

/// Maximum length of a challenge in bytes.
const MAX_CHALLENGE: usize = 4 << 10;

/// What a registry wants with the next request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Challenge {
    /// User name and password.
    Basic,
    /// A token, which this service issues.
    Bearer {
        /// The URL of the service.
        realm: String,
        /// The name of the registry, for the service.
        service: Option<String>,
        /// What is to be done.
        scope: Option<String>,
    },
}

impl Challenge {
    /// Parses the header `WWW-Authenticate`.
    pub(crate) fn parse(header: &str) -> Option<Self> {
        if header.len() > MAX_CHALLENGE {
            return None;
        }
        let (scheme, parameters) = header.trim().split_once(' ').unwrap_or((header.trim(), ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Self::Basic);
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let mut parameters = parse_parameters(parameters);
        Some(Self::Bearer {
            realm: parameters.remove("realm")?,
            service: parameters.remove("service"),
            scope: parameters.remove("scope"),
        })
    }
}

/// Parses `name="value",name=value`. What does not fit is left out.
fn parse_parameters(text: &str) -> BTreeMap<String, String> {
    let mut parameters = BTreeMap::new();
    let mut rest = text;
    while let Some((name, after)) = rest.split_once('=') {
        let (value, after) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').unwrap_or((quoted, "")),
            None => after.split_at(after.find(',').unwrap_or(after.len())),
        };
        let name = name.trim_matches([',', ' ']).to_ascii_lowercase();
        parameters.insert(name, value.trim().to_owned());
        rest = after;
    }
    parameters
}

/// Returns the URL that issues a token; `None` if the realm is not a URL.
pub(crate) fn token_url(realm: &str, service: Option<&str>, scope: &str) -> Option<Uri> {
    let separator = if realm.contains('?') { '&' } else { '?' };
    let service = service.map(|service| format!("service={}&", encoded(service)));
    let service = service.unwrap_or_default();
    format!("{realm}{separator}{service}scope={}", encoded(scope)).parse().ok()
}

/// Encodes the value of a parameter.
fn encoded(text: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~:/,".contains(&byte);
    let encode = |byte: u8| match is_plain(byte) {
        true => char::from(byte).to_string(),
        false => format!("%{byte:02X}"),
    };
    text.bytes().map(encode).collect()
}

/// Returns the header `Authorization` with a user name and a password.
pub(crate) fn basic(credentials: &RegistryCredentials) -> Option<HeaderValue> {
    let RegistryCredentials { username, password } = credentials;
    secret_header(&format!("Basic {}", STANDARD.encode(format!("{username}:{password}"))))
}

/// Returns the header `Authorization` with the token in the response of a service.
pub(crate) fn bearer(response: &[u8]) -> Option<HeaderValue> {
    #[derive(Deserialize)]
    struct Token {
        token: Option<String>,
        access_token: Option<String>,
    }
    let Token { token, access_token } = serde_json::from_slice(response).ok()?;
    secret_header(&format!("Bearer {}", token.or(access_token)?))
}

fn secret_header(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_name_the_service_that_issues_tokens() {
        let bearer = |realm: &str, service: Option<&str>, scope: Option<&str>| {
            Some(Challenge::Bearer {
                realm: realm.to_owned(),
                service: service.map(str::to_owned),
                scope: scope.map(str::to_owned),
            })
        };
        for (header, expected) in [
            ("Basic realm=\"x\"", Some(Challenge::Basic)),
            ("basic", Some(Challenge::Basic)),
            (
                "Bearer realm=\"https://a/t\",service=\"r\",scope=\"repository:p:pull,push\"",
                bearer("https://a/t", Some("r"), Some("repository:p:pull,push")),
            ),
            ("Bearer service=r, realm=https://a/t", bearer("https://a/t", Some("r"), None)),
            ("Bearer realm=\"https://a/t", bearer("https://a/t", None, None)),
            ("Bearer service=\"r\"", None),
            ("Bearer", None),
            ("Negotiate", None),
            ("", None),
        ] {
            assert_eq!(Challenge::parse(header), expected, "{header}");
        }
        assert_eq!(Challenge::parse(&format!("Basic {}", "x".repeat(MAX_CHALLENGE))), None);
    }

    #[test]
    fn scopes_are_encoded() {
        let url = token_url("https://a/t?x=1", Some("r s"), "repository:a/b:pull&x=y").unwrap();
        assert_eq!(url, "https://a/t?x=1&service=r%20s&scope=repository:a/b:pull%26x%3Dy");
        assert_eq!(token_url("a b", None, ""), None);
    }

    #[test]
    fn tokens_are_secret_headers() {
        for body in [r#"{"token": "t"}"#, r#"{"access_token": "t", "expires_in": 60}"#] {
            let header = bearer(body.as_bytes()).unwrap();
            assert!(header == "Bearer t" && header.is_sensitive());
        }
        for body in ["{}", "", "[]", "{\"token\": \"a\\nb\"}"] {
            assert!(bearer(body.as_bytes()).is_none(), "{body}");
        }
        let credentials = RegistryCredentials { username: "u".into(), password: "p4ss".into() };
        assert_eq!(basic(&credentials).unwrap(), "Basic dTpwNHNz");
        assert!(!format!("{credentials:?}").contains("p4ss"));
    }
}
