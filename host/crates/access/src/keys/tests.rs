use std::time::{Duration, Instant};

use http::header::AUTHORIZATION;

use super::*;
use crate::limits::AccountId;

#[test]
fn keys_identify_tenants() {
    let keys = Keys::new([ApiKey::new("k1", "a"), ApiKey::new("k2", "b")]);
    for (name, value, tenant) in [
        ("authorization", "Bearer k1", Ok(Some("a"))),
        ("authorization", "bearer k2", Ok(Some("b"))),
        ("authorization", "Bearer  k2 ", Ok(Some("b"))),
        ("x-api-key", "k1", Ok(Some("a"))),
        ("api-key", " k2", Ok(Some("b"))),
        ("authorization", "Bearer k3", Err(Unauthorized::UnknownKey)),
        ("authorization", "Basic k1", Err(Unauthorized::UnknownKey)),
        ("authorization", "k1", Err(Unauthorized::UnknownKey)),
        ("authorization", "Bearer ", Err(Unauthorized::UnknownKey)),
        ("x-api-key", "Bearer k1", Err(Unauthorized::UnknownKey)),
        ("x-other", "k1", Err(Unauthorized::UnknownKey)),
    ] {
        let name = http::HeaderName::from_static(name);
        let headers = HeaderMap::from_iter([(name, value.parse().unwrap())]);
        let found = keys.identity(&headers).map(|identity| identity.tenant.clone());
        assert_eq!(found, tenant.map(|tenant| tenant.map(str::to_owned)), "{value}");
    }
    assert_eq!(Keys::default().identity(&HeaderMap::new()), Ok(Arc::default()));
    let ids = ["k1", "k2"].map(|secret| {
        let headers = [(AUTHORIZATION, format!("Bearer {secret}").parse().unwrap())];
        keys.identity(&HeaderMap::from_iter(headers)).unwrap().key
    });
    assert!(ids[0] != ids[1] && !ids.contains(&0), "{ids:?}");
}

#[test]
fn debug_output_hides_keys() {
    let keys = Keys::new([ApiKey::new("secret-key", "team")]);
    assert_eq!(format!("{keys:?}"), r#"KeySet { tenants: ["team"] }"#);
}

const FILE: &str = r#"
[[tenants]]
name = "acme"
weight = 3
limits = { tokens-per-minute = 9 }
[[groups]]
name = "staff"
models = ["a"]
engine-admin = true
limits = { concurrent = 2 }
shared-limits = { requests-per-minute = 7 }
[[keys]]
id = "alice"
tenant = "acme"
group = "staff"
models = ["b"]
hashes = [{ hash = "NEW" }, { hash = "OLD", expires = "2020-01-01T00:00:00Z" }]
[[keys]]
id = "bob"
tenant = "other"
hash = "BOB"
expires = "2020-01-01T00:00:00Z"
"#;

fn set() -> KeySet {
    let hash = |secret| SecretHash::of_secret(secret).to_string();
    let text = FILE.replace("NEW", &hash("new")).replace("OLD", &hash("old"));
    KeySet::from_definitions(&Definitions::parse(&text.replace("BOB", &hash("bob"))).unwrap())
}

fn bearer(secret: &str) -> HeaderMap {
    HeaderMap::from_iter([(AUTHORIZATION, format!("Bearer {secret}").parse().unwrap())])
}

#[test]
fn keys_of_a_file_have_what_their_group_has() {
    let keys = Keys::from_set(set());
    let alice = keys.identity(&bearer("new")).unwrap();
    assert_eq!(
        (alice.name.as_str(), alice.group.as_deref(), alice.weight),
        ("alice", Some("staff"), 3)
    );
    assert_eq!(alice.rights.models, Some(vec!["b".to_owned()]));
    assert!(alice.rights.engine_admin);
    let accounts: Vec<&AccountId> = alice.accounts.iter().map(|account| &account.id).collect();
    let [group, tenant] = [AccountId::Group("staff".into()), AccountId::Tenant("acme".into())];
    assert_eq!(accounts, [&AccountId::Key(alice.key), &group, &tenant]);
    for (secret, error) in [
        ("old", Unauthorized::ExpiredKey),
        ("bob", Unauthorized::ExpiredKey),
        ("none", Unauthorized::UnknownKey),
    ] {
        assert_eq!(keys.identity(&bearer(secret)).unwrap_err(), error, "{secret}");
    }
    // The number of a key does not change with its secret.
    let text = FILE.replace("NEW", &SecretHash::of_secret("newer").to_string());
    let text = text.replace("OLD", &SecretHash::of_secret("o").to_string());
    let text = text.replace("BOB", &SecretHash::of_secret("b").to_string());
    let gone = keys.replace(KeySet::from_definitions(&Definitions::parse(&text).unwrap()));
    assert_eq!(gone, []);
    assert_eq!(keys.identity(&bearer("newer")).unwrap().key, alice.key);
    assert_eq!(keys.identity(&bearer("new")).unwrap_err(), Unauthorized::UnknownKey);
    let mut gone = keys.replace(KeySet::default());
    gone.sort();
    assert_eq!(
        gone,
        [("acme", "alice"), ("other", "bob")]
            .map(|(tenant, name)| { (tenant.to_owned(), name.to_owned()) })
    );
}

#[test]
fn empty_file_refuses_all_requests() {
    let keys = Keys::from_set(KeySet::from_definitions(&Definitions::default()));
    assert!(!keys.is_open());
    assert_eq!(keys.identity(&HeaderMap::new()).unwrap_err(), Unauthorized::UnknownKey);
}

#[test]
fn anonymous_requests_have_no_credential_at_all() {
    let mut set = set();
    assert!(set.accept_anonymous("none").is_err());
    set.accept_anonymous("staff").unwrap();
    let keys = Keys::from_set(set);
    let anonymous = keys.identity(&HeaderMap::new()).unwrap();
    assert_eq!(anonymous.tenant.as_deref(), Some("anonymous"));
    assert_eq!(anonymous.rights.models, Some(vec!["a".to_owned()]));
    for (name, value, is_accepted) in [
        ("authorization", "Bearer ", true),
        ("authorization", "Bearer", true),
        ("x-api-key", " ", true),
        ("authorization", "Bearer x", false),
        ("authorization", "Basic eDp5", false),
        ("x-api-key", "x", false),
    ] {
        let name = http::HeaderName::from_static(name);
        let value = http::HeaderValue::from_static(value);
        let accepted = keys.identity(&HeaderMap::from_iter([(name, value)])).is_ok();
        assert_eq!(accepted, is_accepted);
    }
}

#[test]
fn keys_of_the_configuration_and_bearers_of_tokens_have_groups() {
    let mut set = set();
    let key = ApiKey { group: Some("staff".to_owned()), ..ApiKey::new("env", "acme") };
    set.add(key.clone()).unwrap();
    set.add(ApiKey { secret: "no".into(), engine_admin: Some(false), ..key.clone() }).unwrap();
    let unknown = ApiKey { group: Some("stuff".to_owned()), ..key };
    assert_eq!(set.add(unknown), Err(UnknownGroup("stuff".to_owned())));
    let bearer_of_token = set.identity_for("acme", Some("staff"), "carol").unwrap();
    assert_eq!((bearer_of_token.weight, bearer_of_token.name.as_str()), (3, "carol"));
    assert_eq!(bearer_of_token.accounts.len(), 3);
    assert!(set.identity_for("acme", Some("none"), "carol").is_none());
    let keys = Keys::from_set(set);
    assert!(keys.identity(&bearer("env")).unwrap().rights.engine_admin);
    assert!(!keys.identity(&bearer("no")).unwrap().rights.engine_admin);
}

/// The time of a release build is measured by a benchmark; here only the order of magnitude.
#[test]
fn ten_thousand_keys_are_loaded_soon() {
    let key = |number: u32| {
        let hash = SecretHash::of_secret(&number.to_string());
        format!("[[keys]]\nid = \"k{number}\"\ntenant = \"t\"\nhash = \"{hash}\"\n")
    };
    let text: String = (0..10_000).map(key).collect();
    let begun = Instant::now();
    let keys = Keys::from_set(KeySet::from_definitions(&Definitions::parse(&text).unwrap()));
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert_eq!(keys.identity(&bearer("9999")).unwrap().name, "k9999");
}
