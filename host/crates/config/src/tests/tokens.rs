//! Tests of `[access.tokens]`.

use pointsman_access::{ClaimPath, TokenAlgorithm};

use super::*;

/// Returns a configuration that accepts tokens, with further keys.
fn with(keys: &str) -> String {
    let issuer = "issuer = \"https://i.example/realm/\"";
    format!("{LANE}[access.tokens]\n{issuer}\naudience = [\"pointsman\"]\n{keys}\n")
}

fn tokens(keys: &str) -> Tokens {
    parse(&with(keys)).unwrap().tokens.unwrap()
}

#[test]
fn tokens_are_not_accepted_by_default() {
    assert!(parse(LANE).unwrap().tokens.is_none());
    assert!(parse(&format!("{LANE}[access]\n")).unwrap().tokens.is_none());
}

#[test]
fn defaults_are_safe() {
    let tokens = tokens("");
    let settings = tokens.settings;
    assert_eq!(settings.issuer, "https://i.example/realm/");
    let all = [TokenAlgorithm::Rs256, TokenAlgorithm::Es256, TokenAlgorithm::EdDsa];
    assert_eq!(settings.algorithms, all);
    assert_eq!(settings.tenant_claim, ClaimPath::new("tenant"));
    let named = (settings.group_claim, settings.default_tenant, settings.default_group);
    assert_eq!(named, (None, None, None));
    let seconds = Duration::from_secs;
    assert_eq!((settings.leeway, tokens.refresh), (seconds(30), seconds(900)));
    assert_eq!(settings.grace, seconds(86_400));
    let url = "https://i.example/realm/.well-known/openid-configuration";
    assert_eq!(tokens.source, KeySource::Discovery(pointsman_fleet::FetchUrl::parse(url).unwrap()));
}

#[test]
fn keys_come_from_one_place() {
    let url = "https://keys.example/jwks";
    let parsed = pointsman_fleet::FetchUrl::parse(url).unwrap();
    assert_eq!(tokens(&format!("jwks-url = {url:?}")).source, KeySource::Url(parsed));
    let file = tokens("jwks-file = \"keys.json\"").source;
    assert_eq!(file, KeySource::File("/conf/keys.json".into()));
    // The name of an issuer is not an address if the keys are elsewhere.
    let other = with("jwks-file = \"k\"").replace("https://i.example/realm/", "corp");
    assert!(parse(&other).is_ok());
}

#[test]
fn errors_have_key_and_code() {
    let rejects = |keys: &str, key: &str, code: Code| {
        assert_rejects(&with(keys), &format!("access.tokens.{key}"), code);
    };
    rejects("jwks-url = \"http://i.example/k\"", "jwks-url", Code::InvalidValue);
    rejects("jwks-url = \"https://i/k\"\njwks-file = \"k\"", "jwks-file", Code::Conflict);
    for algorithms in ["[]", "[\"none\"]", "[\"HS256\"]", "[\"rs256\"]"] {
        rejects(&format!("algorithms = {algorithms}"), "algorithms", Code::InvalidValue);
    }
    rejects("leeway = \"11m\"", "leeway", Code::OutOfRange);
    rejects("refresh = \"999ms\"", "refresh", Code::OutOfRange);
    rejects("grace = \"15m\"", "grace", Code::OutOfRange);
    rejects("ca = \"none.pem\"", "ca", Code::Unavailable);
    rejects("audiences = []", "audiences", Code::UnknownKey);
    let swap = |from: &str, to: &str| with("").replace(from, to);
    let missing = [("issuer = ", "#"), ("audience = ", "#")];
    for (key, comment) in missing {
        let name = format!("access.tokens.{}", key.trim_end_matches(" = "));
        assert_rejects(&swap(key, comment), &name, Code::MissingKey);
    }
    for audience in ["[]", "[\"\"]"] {
        let source = swap("[\"pointsman\"]", audience);
        assert_rejects(&source, "access.tokens.audience", Code::InvalidValue);
    }
    let insecure = swap("https://", "http://");
    assert_rejects(&insecure, "access.tokens.issuer", Code::InvalidValue);
}
