//! Tests of identities by tokens.

use http::header::AUTHORIZATION;
use serde_json::{Value, json};

use super::*;
use crate::tokens::tests::issuer::{TestIssuer, claims, settings, with};
use crate::tokens::{ClaimPath, TokenSettings};

fn bearer(credential: &str) -> HeaderMap {
    let value = format!("Bearer {credential}").parse().unwrap();
    HeaderMap::from_iter([(AUTHORIZATION, value)])
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()
}

#[test]
fn tokens_identify_tenants_beside_keys() {
    let issuer = TestIssuer::new();
    let settings = TokenSettings { default_tenant: Some("staff".to_owned()), ..settings() };
    let verifier = Arc::new(TokenVerifier::new(settings, Box::new(|| ())));
    let keys = Keys::new([ApiKey::new("k1", "a"), ApiKey::new("x.y.z", "dots")]);
    let (plain, keys) = (keys.clone(), keys.with_tokens(Arc::clone(&verifier)));
    let token = |changes: &Value| bearer(&issuer.token(&with(claims(now_s()), changes)));
    let tenant = |headers: &HeaderMap| keys.identity(headers).map(|id| id.tenant.clone());
    let refused = |refusal| Err(Unauthorized::Token(refusal));
    let valid = token(&json!({}));
    assert_eq!(tenant(&valid), refused(TokenRefusal::Unavailable));
    verifier.replace(issuer.keys(), SystemTime::now());
    assert_eq!(tenant(&valid), Ok(Some("acme".to_owned())));
    assert_eq!(tenant(&token(&json!({ "tenant": null }))), Ok(Some("staff".to_owned())));
    assert_eq!(tenant(&token(&json!({ "exp": 1 }))), refused(TokenRefusal::Expired));
    assert_eq!(tenant(&token(&json!({ "aud": "x" }))), refused(TokenRefusal::Invalid));
    assert_eq!(tenant(&bearer("a.b.c")), refused(TokenRefusal::Invalid));
    assert_eq!(tenant(&bearer("eyJhbGciOiJub25lIn0")), refused(TokenRefusal::Invalid));
    assert_eq!(tenant(&bearer("k1")), Ok(Some("a".to_owned())));
    assert_eq!(tenant(&bearer("x.y.z")), Ok(Some("dots".to_owned())));
    assert_eq!(tenant(&bearer("k2")), Err(Unauthorized::UnknownKey));
    assert_eq!(tenant(&HeaderMap::new()), Err(Unauthorized::UnknownKey));
    // Without tokens, one is an unknown key.
    assert_eq!(plain.identity(&valid), Err(Unauthorized::UnknownKey));
    let (first, second) = (keys.identity(&valid).unwrap(), keys.identity(&valid).unwrap());
    assert_eq!((&first.name, first.key), (&"u-1".to_owned(), second.key));
    assert!(first.expires.is_some());
    let other = keys.identity(&token(&json!({ "sub": "u-2" }))).unwrap();
    assert_ne!(first.key, other.key);
}

#[test]
fn tokens_close_a_host_without_keys() {
    let verifier = TokenVerifier::new(settings(), Box::new(|| ()));
    let keys = Keys::default().with_tokens(Arc::new(verifier));
    assert!(!keys.is_open());
    assert_eq!(keys.identity(&HeaderMap::new()), Err(Unauthorized::UnknownKey));
    assert_eq!(keys.token_status().map(|status| status.usable), Some(false));
    assert_eq!(Keys::default().token_status(), None);
}

/// A token without a tenant, or without a group where one is needed, opens nothing.
#[test]
fn tokens_need_a_tenant_and_a_known_group() {
    let issuer = TestIssuer::new();
    let refused = |settings: TokenSettings, changes: &Value| {
        let verifier = Arc::new(TokenVerifier::new(settings, Box::new(|| ())));
        verifier.replace(issuer.keys(), SystemTime::now());
        let keys = Keys::default().with_tokens(verifier);
        let found = keys.identity(&bearer(&issuer.token(&with(claims(now_s()), changes))));
        found == Err(Unauthorized::Token(TokenRefusal::NotAllowed))
    };
    assert!(refused(settings(), &json!({ "tenant": null })));
    let grouped = TokenSettings { group_claim: Some(ClaimPath::new("groups")), ..settings() };
    for groups in [Value::Null, json!([]), json!(["no-such-group"]), json!(7)] {
        assert!(refused(grouped.clone(), &json!({ "groups": groups })), "{groups}");
    }
    let defaulted = TokenSettings { default_group: Some("none".to_owned()), ..settings() };
    assert!(refused(defaulted, &json!({})));
}

#[test]
fn keys_and_bearers_are_listed() {
    let issuer = TestIssuer::new();
    let settings = TokenSettings { default_tenant: Some("staff".to_owned()), ..settings() };
    let verifier = Arc::new(TokenVerifier::new(settings, Box::new(|| ())));
    verifier.replace(issuer.keys(), SystemTime::now());
    let plain = Keys::new([ApiKey::new("k1", "a"), ApiKey::new("k2", "b")]);
    let keys = plain.clone().with_tokens(verifier);
    let mut tenants: Vec<Option<String>> =
        keys.identities().iter().map(|identity| identity.tenant.clone()).collect();
    tenants.sort();
    assert_eq!(tenants, [Some("a".to_owned()), Some("b".to_owned())]);
    let headers = bearer(&issuer.token(&claims(now_s())));
    let of_token = keys.identity(&headers).unwrap();
    assert_eq!(keys.current_bearer(&of_token).as_ref(), Some(&*of_token));
    assert_eq!(plain.current_bearer(&of_token), None, "tokens are not accepted");
    let of_key = keys.identity(&bearer("k1")).unwrap();
    assert_eq!(keys.current_bearer(&of_key), None);
}
