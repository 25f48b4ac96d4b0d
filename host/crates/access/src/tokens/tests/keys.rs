//! Key sets: what is read of them, how they are replaced, and when they are fetched.

use serde_json::{Value, json};

use super::issuer::{self, EC, ED, RSA, TestIssuer, keys_of, settings, with};
use super::*;
use TokenError as E;

fn parse(set: &Value) -> Result<usize, String> {
    let algorithms = settings().algorithms;
    let parsed = PublicKeys::parse(set.to_string().as_bytes(), &algorithms);
    parsed.map(|keys| keys.len()).map_err(|error| error.to_string())
}

#[test]
fn keys_for_other_purposes_are_left_out() {
    let issuer = TestIssuer::new();
    let good = issuer.ed_jwk();
    let bad = [
        with(issuer.ec_jwk(), &json!({ "use": "enc" })),
        with(issuer.ec_jwk(), &json!({ "key_ops": ["sign"] })),
        with(issuer.ec_jwk(), &json!({ "alg": "ES256K" })),
        with(issuer.ec_jwk(), &json!({ "alg": "ES384" })),
        with(issuer.ec_jwk(), &json!({ "crv": "P-521" })),
        with(issuer.ec_jwk(), &json!({ "crv": "secp256k1" })),
        with(issuer.ec_jwk(), &json!({ "x": "not base64!" })),
        with(issuer.ec_jwk(), &json!({ "y": null })),
        with(issuer.ec_jwk(), &json!({ "kty": null })),
        with(issuer.ec_jwk(), &json!({ "kid": 7 })),
        with(issuer.rsa_jwk(), &json!({ "alg": "RSA-OAEP" })),
        with(issuer.rsa_jwk(), &json!({ "alg": "PS256" })),
        json!({ "kty": "oct", "kid": "hmac", "k": "c2VjcmV0" }),
        json!({ "kty": "AKP", "kid": "new", "pub": "AA" }),
        json!("text"),
        Value::Null,
    ];
    for key in &bad {
        assert_eq!(parse(&json!({ "keys": [key, good] })), Ok(1), "{key}");
        assert!(parse(&json!({ "keys": [key] })).is_err(), "{key}");
    }
    for set in [json!({ "keys": [] }), json!({}), json!([good]), json!(null)] {
        assert!(parse(&set).is_err(), "{set}");
    }
}

#[test]
fn sets_are_bounded() {
    let issuer = TestIssuer::new();
    let set = |count: usize| json!({ "keys": vec![issuer.ed_jwk(); count] });
    assert_eq!(parse(&set(64)), Ok(64));
    assert!(parse(&set(65)).is_err());
    let padded = with(set(1), &json!({ "padding": "x".repeat(MAX_KEY_SET) }));
    assert!(parse(&padded).is_err());
}

/// Keys that a verifier accepts must not be too short: 1024 bits of RSA.
#[test]
fn short_rsa_keys_verify_nothing() {
    let issuer = TestIssuer::new();
    let short =
        json!({ "kty": "RSA", "kid": RSA, "n": issuer::base64url([0xc5; 128]), "e": "AQAB" });
    let tested = Tested::new(settings(), keys_of(&json!({ "keys": [short] })));
    let header = json!({ "alg": "RS256", "kid": RSA });
    let token = issuer.sign(RSA, &header, &issuer::claims(NOW_S));
    assert_eq!(tested.verify(&token).err(), Some(E::Signature));
}

#[test]
fn a_token_without_key_id_needs_a_single_key() {
    let (issuer, other) = (TestIssuer::new(), TestIssuer::new());
    let second = with(other.ed_jwk(), &json!({ "kid": "ed-2" }));
    let set = json!({ "keys": [issuer.ed_jwk(), second, issuer.ec_jwk()] });
    let tested = Tested::new(settings(), keys_of(&set));
    let sign = |key, header: &Value| issuer.sign(key, header, &issuer::claims(NOW_S));
    let verified = tested.verify(&sign(ED, &json!({ "alg": "EdDSA" })));
    assert_eq!(verified.err(), Some(E::NoKeyId));
    tested.verify(&sign(EC, &json!({ "alg": "ES256" }))).unwrap();
    let verified = tested.verify(&sign(RSA, &json!({ "alg": "RS256" })));
    assert_eq!(verified.err(), Some(E::UnknownKey));
}

/// A new key is added, then the old one goes: with it go the tokens that it has signed, also those
/// that were checked before.
#[test]
fn keys_rotate() {
    let (old, new) = (TestIssuer::new(), TestIssuer::new());
    let new_key = with(new.ed_jwk(), &json!({ "kid": "ed-2" }));
    let tested = Tested::new(settings(), keys_of(&json!({ "keys": [old.ed_jwk()] })));
    let claims = issuer::claims(NOW_S);
    let old_token = old.token(&claims);
    let new_token = new.sign(ED, &json!({ "alg": "EdDSA", "kid": "ed-2" }), &claims);
    let results = || [&old_token, &new_token].map(|token| tested.verify(token).err());
    assert_eq!(results(), [None, Some(E::UnknownKey)]);
    assert_eq!(tested.wanted(), 1);
    let replace = |set: Value| tested.verifier.replace(keys_of(&set), now());
    replace(json!({ "keys": [new_key, old.ed_jwk()] }));
    assert_eq!(results(), [None, None]);
    replace(json!({ "keys": [new_key] }));
    assert_eq!(results(), [Some(E::UnknownKey), None]);
    // The same id with another key.
    replace(json!({ "keys": [with(old.ed_jwk(), &json!({ "kid": "ed-2" }))] }));
    assert_eq!(results(), [Some(E::UnknownKey), Some(E::Signature)]);
}

#[test]
fn keys_are_used_until_the_end_of_the_grace_time() {
    let issuer = TestIssuer::new();
    let tested = Tested::new(settings(), issuer.keys());
    let token = issuer.token(&with(issuer::claims(NOW_S), &json!({ "exp": NOW_S + 100_000 })));
    let verify = |seconds| tested.verifier.verify(&token, after(seconds)).err();
    assert_eq!([0, 3600, 3601].map(verify), [None, None, Some(E::NoKeys)]);
    assert_eq!(tested.wanted(), 1);
    let status = tested.verifier.status(after(3601));
    assert_eq!((status.keys, status.age_s, status.usable), (3, Some(3601), false));
    tested.verifier.set_problem("unreachable".to_owned());
    assert_eq!(tested.verifier.status(now()).problem.as_deref(), Some("unreachable"));
    tested.verifier.replace(issuer.keys(), after(3601));
    assert_eq!(verify(3601), None);
    assert_eq!(tested.verifier.status(now()).problem, None);
    // The clock was set back.
    assert_eq!(verify(0), None);
    assert_eq!(tested.verifier.status(now()).age_s, Some(0));
}

#[test]
fn without_keys_no_token_can_be_checked() {
    let verifier = TokenVerifier::new(settings(), Box::new(|| ()));
    let token = TestIssuer::new().token(&issuer::claims(NOW_S));
    assert_eq!(verifier.verify(&token, now()).err(), Some(E::NoKeys));
    assert_eq!((verifier.status(now()).keys, verifier.status(now()).age_s), (0, None));
}

#[test]
fn unknown_keys_fetch_at_most_every_half_minute() {
    let seconds = Duration::from_secs;
    let mut schedule = Schedule::new(seconds(900));
    assert_eq!(schedule.next(), Duration::ZERO);
    schedule.ended(seconds(1), true);
    assert_eq!(schedule.next(), seconds(901));
    let mut fetches = 0;
    // A flood of unknown keys for ten minutes.
    for second in 2..=601 {
        schedule.want();
        if seconds(second) >= schedule.next() {
            schedule.ended(seconds(second), true);
            fetches += 1;
        }
    }
    assert_eq!(fetches, 20);
    let mut quick = Schedule::new(seconds(5));
    quick.ended(seconds(1), true);
    quick.want();
    assert_eq!(quick.next(), seconds(6));
}

#[test]
fn failed_fetches_are_retried_with_growing_pauses() {
    let seconds = Duration::from_secs;
    let mut schedule = Schedule::new(seconds(900));
    let mut pauses = Vec::new();
    let mut time = seconds(100);
    for _ in 0..8 {
        schedule.ended(time, false);
        // Bad tokens do not shorten the pause.
        schedule.want();
        pauses.push((schedule.next() - time).as_secs());
        time = schedule.next();
    }
    assert_eq!(pauses, [1, 2, 4, 8, 16, 30, 30, 30]);
    schedule.ended(time, true);
    assert_eq!(schedule.next(), time + seconds(900));
}
