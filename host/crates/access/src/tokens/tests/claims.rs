//! What the claims of a token must be, and what they mean.

use serde_json::{Value, json};

use super::issuer::{self, ISSUER, TestIssuer, settings, with};
use super::*;
use TokenError as E;

/// Verifies a token that has these claims in place of the usual ones.
fn verify(settings: TokenSettings, changes: &Value) -> Result<Arc<Claims>, TokenError> {
    let issuer = TestIssuer::new();
    let claims = with(issuer::claims(NOW_S), changes);
    Tested::new(settings, issuer.keys()).verify(&issuer.token(&claims))
}

#[test]
fn required_claims_are_checked() {
    let long = "x".repeat(256);
    for (changes, expected) in [
        (json!({ "iss": null }), Some(E::Claim("iss"))),
        (json!({ "iss": format!("{ISSUER}/") }), Some(E::Claim("iss"))),
        (json!({ "iss": "https://other.example" }), Some(E::Claim("iss"))),
        (json!({ "iss": [ISSUER] }), Some(E::Claim("iss"))),
        (json!({ "aud": null }), Some(E::Claim("aud"))),
        (json!({ "aud": "pointsman2" }), Some(E::Claim("aud"))),
        (json!({ "aud": "Pointsman" }), Some(E::Claim("aud"))),
        (json!({ "aud": [] }), Some(E::Claim("aud"))),
        (json!({ "aud": [["pointsman"]] }), Some(E::Claim("aud"))),
        (json!({ "aud": { "pointsman": true } }), Some(E::Claim("aud"))),
        (json!({ "aud": ["account", "pointsman"] }), None),
        (json!({ "aud": "other" }), None),
        (json!({ "sub": null }), Some(E::Claim("sub"))),
        (json!({ "sub": "" }), Some(E::Claim("sub"))),
        (json!({ "sub": 7 }), Some(E::Claim("sub"))),
        (json!({ "sub": long }), Some(E::Claim("sub"))),
        (json!({ "exp": null }), Some(E::Claim("exp"))),
        (json!({ "exp": "1900000000" }), Some(E::Claim("exp"))),
        (json!({ "exp": -1 }), Some(E::Claim("exp"))),
        (json!({ "exp": 1e300 }), Some(E::Claim("exp"))),
        (json!({ "exp": true }), Some(E::Claim("exp"))),
        (json!({ "nbf": "soon" }), Some(E::Claim("nbf"))),
        (json!({ "nbf": null }), None),
        (json!({ "cnf": { "jkt": "x" } }), Some(E::Bound)),
        (json!({ "tenant": 7 }), Some(E::Claim("tenant"))),
        (json!({ "tenant": "" }), Some(E::Claim("tenant"))),
        (json!({ "tenant": "a\nb" }), Some(E::Claim("tenant"))),
        (json!({ "tenant": ["acme"] }), Some(E::Claim("tenant"))),
    ] {
        assert_eq!(verify(settings(), &changes).err(), expected, "{changes}");
    }
}

/// The leeway is 30 s, and both ends are exact.
#[test]
fn times_have_a_leeway() {
    for (changes, expected) in [
        (json!({ "exp": NOW_S + 1 }), None),
        (json!({ "exp": NOW_S - 29 }), None),
        (json!({ "exp": NOW_S - 30 }), Some(E::Expired)),
        (json!({ "exp": 0 }), Some(E::Expired)),
        (json!({ "exp": 253_402_300_799_u64 }), None),
        (json!({ "exp": NOW_S as f64 - 29.5 }), None),
        (json!({ "nbf": NOW_S + 30 }), None),
        (json!({ "nbf": NOW_S + 31 }), Some(E::NotYetValid)),
    ] {
        assert_eq!(verify(settings(), &changes).err(), expected, "{changes}");
    }
}

#[test]
fn a_token_expires_while_it_is_cached() {
    let issuer = TestIssuer::new();
    let tested = Tested::new(settings(), issuer.keys());
    let token = issuer.token(&issuer::claims(NOW_S));
    for (seconds, expected) in [(0, None), (629, None), (630, Some(E::Expired)), (10, None)] {
        let verified = tested.verifier.verify(&token, after(seconds));
        assert_eq!(verified.err(), expected, "{seconds}");
    }
    let early = issuer.token(&issuer::claims(NOW_S + 100));
    for (seconds, expected) in [(0, Some(E::NotYetValid)), (70, None)] {
        let verified = tested.verifier.verify(&early, after(seconds));
        assert_eq!(verified.err(), expected, "{seconds}");
    }
}

#[test]
fn claims_are_found_by_name_path_and_pointer() {
    let claims = json!({
        "tenant": "t0", "a": { "b": { "c": "t1" } }, "https://x.example/tenant": "t2",
        "a/b": ["t3"], "a.b": "t4",
    });
    for (path, expected) in [
        ("tenant", Some("t0")),
        ("a.b.c", Some("t1")),
        ("/a/b/c", Some("t1")),
        ("https://x.example/tenant", Some("t2")),
        ("/a~1b/0", Some("t3")),
        ("a.b", Some("t4")),
        ("a.c", None),
        ("a.b.c.d", None),
        ("", None),
        ("/", None),
    ] {
        let found = ClaimPath::new(path).find(&claims).and_then(Value::as_str);
        assert_eq!(found, expected, "{path}");
    }
}

#[test]
fn tenant_and_groups_have_defaults() {
    let base = |tenant: Option<&str>, claim: Option<&str>, group: Option<&str>| TokenSettings {
        default_tenant: tenant.map(str::to_owned),
        group_claim: claim.map(ClaimPath::new),
        default_group: group.map(str::to_owned),
        ..settings()
    };
    let no_tenant = json!({ "tenant": null });
    let one = json!({ "groups": "a" });
    let list = json!({ "groups": ["a", 7, "", "b"] });
    let empty = json!({ "groups": [] });
    for (settings, changes, tenant, groups, needs_group) in [
        (base(None, None, None), &no_tenant, None, &[][..], false),
        (base(Some("t"), None, None), &no_tenant, Some("t"), &[], false),
        (base(Some("t"), None, None), &one, Some("acme"), &[], false),
        (base(None, Some("groups"), None), &one, Some("acme"), &["a"], true),
        (base(None, Some("groups"), None), &list, Some("acme"), &["a", "b"], true),
        (base(None, Some("groups"), Some("z")), &list, Some("acme"), &["a", "b", "z"], true),
        (base(None, Some("groups"), None), &empty, Some("acme"), &[], true),
        (base(None, Some("groups"), None), &no_tenant, None, &[], true),
        (base(None, None, Some("z")), &one, Some("acme"), &["z"], true),
    ] {
        let claims = verify(settings, changes).unwrap();
        assert_eq!(claims.tenant.as_deref(), tenant, "{changes}");
        assert_eq!(
            (claims.groups.as_slice(), claims.needs_group),
            (&groups.iter().map(|group| (*group).to_owned()).collect::<Vec<_>>()[..], needs_group)
        );
    }
    let many: Vec<String> = (0..300).map(|index| format!("g{index}")).collect();
    let claims = verify(base(None, Some("groups"), None), &json!({ "groups": many })).unwrap();
    assert_eq!(claims.groups.len(), 256);
}

/// Names are for logs and tables.
#[test]
fn names_are_escaped_bounded_and_distinct() {
    let name = |subject: &str| verify(settings(), &json!({ "sub": subject })).unwrap().name.clone();
    assert_eq!(name("auth0|5f"), "auth0|5f");
    assert_eq!(name("a b"), "a b");
    let long = "x".repeat(200);
    let names = ["a\nb", "a\\nb", "a\u{202e}b", "\"", &long, &long[1..]].map(name);
    for (index, name) in names.iter().enumerate() {
        assert!(name.len() <= 100 && !name.chars().any(char::is_control), "{name:?}");
        assert!(!name.contains('\u{202e}') && !names[..index].contains(name), "{name:?}");
    }
}
