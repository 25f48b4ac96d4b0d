//! Bad tokens, each with the reason for which it is refused.

use proptest::prelude::*;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
use serde_json::{Value, json};

use super::issuer::{self, EC, ED, RSA, TestIssuer, base64url, header, settings, with};
use super::*;
use TokenError as E;

fn tested(issuer: &TestIssuer) -> Tested {
    Tested::new(settings(), issuer.keys())
}

fn claims() -> Value {
    issuer::claims(NOW_S)
}

#[track_caller]
fn assert_refused(tested: &Tested, token: &str, expected: TokenError) {
    assert_eq!(tested.verify(token).err(), Some(expected), "{token}");
}

#[test]
fn tokens_of_all_key_types_are_accepted() {
    let issuer = TestIssuer::new();
    let tested = tested(&issuer);
    for (key, algorithm) in [(ED, "EdDSA"), (EC, "ES256"), (RSA, "RS256")] {
        for kind in [json!("JWT"), json!("at+jwt"), json!("application/AT+JWT"), Value::Null] {
            // One key of each type, so that the id can be left out.
            for id in [json!(key), Value::Null] {
                let header = json!({ "alg": algorithm, "typ": kind, "kid": id });
                let token = issuer.sign(key, &header, &claims());
                let verified = tested.verify(&token).unwrap();
                assert_eq!(verified.tenant.as_deref(), Some("acme"), "{header}");
            }
        }
    }
    assert_eq!(tested.wanted(), 0);
}

#[test]
fn algorithm_of_the_token_is_not_believed() {
    let issuer = TestIssuer::new();
    let tested = tested(&issuer);
    let (payload, sign) = (claims(), |key, header: &Value| issuer.sign(key, header, &claims()));
    for name in ["none", "None", "NONE", "", "HS256", "HS512", "ES384", "PS256", "RS1", "EDDSA"] {
        let token = sign(ED, &json!({ "alg": name, "kid": ED }));
        assert_refused(&tested, &token, E::Algorithm);
    }
    let unsigned =
        format!("{}.{}.", base64url(r#"{"alg":"none"}"#), base64url(payload.to_string()));
    assert_refused(&tested, &unsigned, E::Algorithm);
    // The public key as the secret of an HMAC, in the forms in which attackers have it.
    for secret in [issuer.rsa_jwk()["n"].to_string(), issuer.key_set().to_string()] {
        let head = base64url(r#"{"alg":"HS256","kid":"rsa"}"#);
        let message = format!("{head}.{}", base64url(payload.to_string()));
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, secret.as_bytes());
        let tag = ring::hmac::sign(&key, message.as_bytes());
        assert_refused(&tested, &format!("{message}.{}", base64url(tag)), E::Algorithm);
    }
    // A key is used only with algorithms of its type.
    let mixed = [("RS256", ED), ("ES256", RSA), ("EdDSA", EC), ("ES256", ED), ("EdDSA", RSA)];
    for (name, key) in mixed {
        let token = sign(key, &json!({ "alg": name, "kid": key }));
        assert_refused(&tested, &token, E::UnknownKey);
    }
}

#[test]
fn keys_inside_of_tokens_are_ignored() {
    let (issuer, attacker) = (TestIssuer::new(), TestIssuer::new());
    let tested = tested(&issuer);
    let url = "https://attacker.example/keys";
    for (member, value) in [
        ("jwk", attacker.ed_jwk()),
        ("jku", json!(url)),
        ("x5u", json!(url)),
        ("x5c", json!(["MIIB"])),
    ] {
        for (id, expected) in [("mine", E::UnknownKey), (ED, E::Signature)] {
            let header = with(header(), &json!({ "kid": id, member: value }));
            assert_refused(&tested, &attacker.sign(ED, &header, &claims()), expected);
        }
        // They do no harm in tokens of the issuer.
        let header = with(header(), &json!({ member: value }));
        tested.verify(&issuer.sign(ED, &header, &claims())).unwrap();
    }
    for id in ["../../dev/null", "' OR 1=1 --", "ed\0", "ED", " ed", ""] {
        let token = attacker.sign(ED, &json!({ "alg": "EdDSA", "kid": id }), &claims());
        assert_refused(&tested, &token, E::UnknownKey);
    }
}

#[test]
fn headers_that_must_be_understood_are_refused() {
    let issuer = TestIssuer::new();
    let tested = tested(&issuer);
    for (changes, expected) in [
        (json!({ "crit": ["exp"] }), E::Header("crit")),
        (json!({ "crit": [] }), E::Header("crit")),
        (json!({ "crit": false }), E::Header("crit")),
        (json!({ "b64": false }), E::Header("b64")),
        (json!({ "typ": "logout+jwt" }), E::Header("typ")),
        (json!({ "typ": "dpop+jwt" }), E::Header("typ")),
        (json!({ "typ": "JWE" }), E::Header("typ")),
        (json!({ "typ": 1 }), E::Form("header")),
        (json!({ "kid": 1 }), E::Form("header")),
        (json!({ "alg": 1 }), E::Form("header")),
        (json!({ "alg": null }), E::Form("header")),
    ] {
        let header = with(header(), &changes);
        assert_refused(&tested, &issuer.sign(ED, &header, &claims()), expected);
    }
}

#[test]
fn signatures_belong_to_header_and_payload() {
    let (issuer, other) = (TestIssuer::new(), TestIssuer::new());
    let tested = tested(&issuer);
    let token = issuer.token(&claims());
    let parts: Vec<&str> = token.split('.').collect();
    let admin = base64url(with(claims(), &json!({ "tenant": "admin" })).to_string());
    let longer = base64url(header().to_string() + " ");
    let cut = &parts[2][..parts[2].len() - 4];
    let zero = base64url([0; 64]);
    let ec = issuer.sign(EC, &json!({ "alg": "ES256", "kid": EC }), &claims());
    let (ec_message, _) = ec.rsplit_once('.').unwrap();
    let random = ring::rand::SystemRandom::new();
    let der = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random).unwrap();
    let der = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, der.as_ref(), &random);
    let der = der.unwrap().sign(&random, ec_message.as_bytes()).unwrap();
    for token in [
        format!("{}.{admin}.{}", parts[0], parts[2]),
        format!("{longer}.{}.{}", parts[1], parts[2]),
        format!("{}.{}.", parts[0], parts[1]),
        format!("{}.{}.{cut}", parts[0], parts[1]),
        format!("{}.{}.{zero}", parts[0], parts[1]),
        format!("{token}="),
        format!("{token}A"),
        format!("{token} "),
        format!("{ec_message}.{zero}"),
        format!("{ec_message}.{}", base64url(der)),
        other.token(&claims()),
    ] {
        assert_refused(&tested, &token, E::Signature);
    }
}

#[test]
fn form_is_strict() {
    let issuer = TestIssuer::new();
    let tested = tested(&issuer);
    let token = issuer.token(&claims());
    let parts: Vec<&str> = token.split('.').collect();
    let other = issuer.sign(EC, &json!({ "alg": "ES256", "kid": EC }), &claims());
    let second = other.rsplit('.').next().unwrap();
    let number = E::Form("number of parts");
    for (token, expected) in [
        (String::new(), number),
        (".".to_owned(), number),
        ("..".to_owned(), E::Form("header")),
        (format!("{}.{}", parts[0], parts[1]), number),
        (format!("{token}.{second}"), number),
        (format!("{token}.."), number),
        (format!("{}\n.{}.{}", parts[0], parts[1], parts[2]), E::Form("header")),
        (format!("{}==.{}.{}", parts[0], parts[1], parts[2]), E::Form("header")),
        (format!("+/+/.{}.{}", parts[1], parts[2]), E::Form("header")),
        (json!({ "payload": parts[1], "signatures": [] }).to_string(), number),
        ("e30.e30.e30".to_owned(), E::Form("header")),
        ("W10.e30.e30".to_owned(), E::Form("header")),
        ("\u{e4}.\u{e4}.\u{e4}".to_owned(), E::Form("header")),
        ("a".repeat(MAX_TOKEN + 1), E::TooLarge),
    ] {
        assert_refused(&tested, &token, expected);
    }
    // A reader that takes the last of two members would see another algorithm.
    for header in [
        r#"{"alg":"EdDSA","kid":"ed","alg":"none"}"#,
        r#"{"alg":"none","kid":"ed","alg":"EdDSA"}"#,
        r#"{"alg":"EdDSA","kid":"ed","kid":"ed"}"#,
        r#"{"alg":"EdDSA","kid":"ed"}{}"#,
    ] {
        let token = issuer.sign_text(ED, header, &claims().to_string());
        assert_refused(&tested, &token, E::Form("header"));
    }
    let nested = "[".repeat(1000) + &"]".repeat(1000);
    let header = header().to_string();
    for (payload, expected) in [
        ("", E::Form("payload")),
        ("{", E::Form("payload")),
        (nested.as_str(), E::Form("payload")),
        ("[]", E::Claim("iss")),
        ("null", E::Claim("iss")),
        ("\"iss\"", E::Claim("iss")),
    ] {
        assert_refused(&tested, &issuer.sign_text(ED, &header, payload), expected);
    }
}

#[test]
fn size_is_limited() {
    let issuer = TestIssuer::new();
    let tested = tested(&issuer);
    let padded =
        |length: usize| issuer.token(&with(claims(), &json!({ "padding": "x".repeat(length) })));
    let fits = padded(5_500);
    assert!(fits.len() <= MAX_TOKEN);
    tested.verify(&fits).unwrap();
    assert_refused(&tested, &padded(6_500), E::TooLarge);
}

/// A flood of bad tokens asks for new keys only if their keys are unknown, and is not cached.
#[test]
fn bad_tokens_leave_nothing_behind() {
    let (issuer, attacker) = (TestIssuer::new(), TestIssuer::new());
    let tested = tested(&issuer);
    for index in 0..50 {
        let claims = with(claims(), &json!({ "sub": format!("u-{index}") }));
        assert_refused(&tested, &attacker.token(&claims), E::Signature);
    }
    assert_eq!(tested.wanted(), 0);
    let unknown = attacker.sign(ED, &json!({ "alg": "EdDSA", "kid": "x" }), &claims());
    for count in 1..=50 {
        assert_refused(&tested, &unknown, E::UnknownKey);
        assert_eq!(tested.wanted(), count);
    }
    let current = tested.verifier.current.load();
    let cache = &current.as_ref().unwrap().checked;
    cache.run_pending_tasks();
    assert_eq!(cache.entry_count(), 0);
    assert_eq!(tested.verifier.status(now()).refused, 100);
}

/// An error says nothing of the token.
#[test]
fn errors_quote_nothing() {
    let issuer = TestIssuer::new();
    let tested = tested(&issuer);
    let secret = json!({ "iss": "s3cret", "sub": "s3cret" });
    let error = tested.verify(&issuer.token(&with(claims(), &secret))).unwrap_err();
    assert!(!format!("{error} {error:?}").contains("s3cret"));
    let debug = format!("{:?}", tested.verifier);
    let numbers = [issuer.ed_jwk()["x"].to_string(), issuer.rsa_jwk()["n"].to_string()];
    assert!(!numbers.iter().any(|number| debug.contains(number.trim_matches('"'))), "{debug}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// No byte of a token can be changed.
    #[test]
    fn changed_tokens_are_refused(place: prop::sample::Index, byte in 33_u8..127) {
        let issuer = TestIssuer::new();
        let tested = tested(&issuer);
        let token = issuer.token(&claims());
        let mut changed = token.clone().into_bytes();
        let place = place.index(changed.len());
        changed[place] = byte;
        let changed = String::from_utf8(changed).unwrap();
        prop_assert_eq!(tested.verify(&changed).is_ok(), changed == token);
    }

    #[test]
    fn arbitrary_text_is_refused(text in "\\PC{0,200}", parts in "[A-Za-z0-9_.-]{0,200}") {
        let tested = tested(&TestIssuer::new());
        prop_assert!(tested.verify(&text).is_err());
        prop_assert!(tested.verify(&parts).is_err());
        let object = format!("{}.{}.", base64url(&text), base64url(&text));
        prop_assert!(tested.verify(&object).is_err());
    }
}
