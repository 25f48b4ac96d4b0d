//! Fuzzing of keys files, and of what issuers and clients send.

use std::collections::HashSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pointsman_fuzz::Fuzz;

use crate::file::tests::whole;
use crate::tokens::tests::issuer::{ED, TestIssuer, claims, header, settings};
use crate::tokens::{ClaimPath, Claims, PublicKeys, TokenSettings, TokenVerifier};
use crate::{Definitions, KeySet};

const NOW_S: u64 = 1_800_000_000;
const WORDS: [&str; 12] =
    ["iss", "aud", "sub", "exp", "nbf", "cnf", "crit", "b64", "kid", "alg", "none", "tenant"];

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(NOW_S)
}

/// Returns the claims of a token with this header and payload, if it is valid.
fn verify(issuer: &TestIssuer, verifier: &TokenVerifier, parts: (&[u8], &[u8])) -> Option<Claims> {
    let (header, payload) = (str::from_utf8(parts.0).ok()?, str::from_utf8(parts.1).ok()?);
    let verified = verifier.verify(&issuer.sign_text(ED, header, payload), now());
    verified.ok().map(|claims| Claims::clone(&claims))
}

fn verifier(issuer: &TestIssuer) -> TokenVerifier {
    let settings = TokenSettings { group_claim: Some(ClaimPath::new("groups")), ..settings() };
    let verifier = TokenVerifier::new(settings, Box::new(|| ()));
    verifier.replace(issuer.keys(), now());
    verifier
}

/// The texts of an accepted token are within the limits that logs and tables rely on.
#[test]
fn token_payloads() {
    let issuer = TestIssuer::new();
    let (verifier, header) = (verifier(&issuer), header().to_string());
    let mut grouped = claims(NOW_S);
    grouped["groups"] = serde_json::json!(["a", "b"]);
    let fuzz = Fuzz::new("token_payloads").input(claims(NOW_S).to_string());
    fuzz.input(grouped.to_string()).words(&WORDS).run(|input| {
        let Some(claims) = verify(&issuer, &verifier, (header.as_bytes(), input)) else {
            return false;
        };
        let texts = claims.groups.iter().chain(&claims.tenant).chain([&claims.name]);
        for text in texts {
            assert!((1..=200).contains(&text.len()) && !text.chars().any(char::is_control));
        }
        assert!(claims.groups.len() <= 256 && claims.needs_group);
        assert!(claims.expires + Duration::from_secs(30) > now());
        true
    });
}

/// The header of an accepted token names the algorithm of the key, and nothing to understand.
#[test]
fn token_headers() {
    let issuer = TestIssuer::new();
    let (verifier, payload) = (verifier(&issuer), claims(NOW_S).to_string());
    let fuzz = Fuzz::new("token_headers").input(header().to_string()).words(&WORDS);
    fuzz.run(|input| {
        let accepted = verify(&issuer, &verifier, (input, payload.as_bytes())).is_some();
        if accepted {
            let header: serde_json::Value = serde_json::from_slice(input).unwrap();
            assert_eq!(header["alg"], "EdDSA");
            assert!(header["crit"].is_null() && header["b64"].is_null());
        }
        accepted
    });
}

/// Whatever keys are in an accepted set, only those of the issuer verify its tokens.
#[test]
fn key_sets() {
    let (issuer, other) = (TestIssuer::new(), TestIssuer::new());
    let set = issuer.key_set().to_string();
    let foreign = other.token(&claims(NOW_S));
    let words = ["keys", "kty", "RSA", "EC", "OKP", "crv", "P-256", "P-384", "use", "sig", "enc"];
    Fuzz::new("key_sets").input(set).words(&words).run(|input| {
        let settings = settings();
        let Ok(keys) = PublicKeys::parse(input, &settings.algorithms) else { return false };
        assert!((1..=64).contains(&keys.len()) && keys.has_all_of(&keys));
        let verifier = TokenVerifier::new(settings, Box::new(|| ()));
        verifier.replace(keys, now());
        assert!(verifier.verify(&foreign, now()).is_err());
        true
    });
}

/// Every error has a line of the file, and an accepted file makes a set of keys with unique names.
#[test]
fn keys_files() {
    let fuzz = Fuzz::new("keys_files").input(whole());
    let words = ["hashes", "week", "engine-seconds", "messages", "unix:/a", "parent", "expires"];
    fuzz.words(&words).run(|input| {
        let Ok(text) = std::str::from_utf8(input) else { return false };
        match Definitions::parse(text) {
            Ok(definitions) => {
                let ids: HashSet<&str> =
                    definitions.keys.iter().map(|key| key.id.as_str()).collect();
                assert_eq!(ids.len(), definitions.keys.len());
                assert!(definitions.keys.iter().all(|key| !key.hashes.is_empty()));
                let set = KeySet::from_definitions(&definitions);
                assert!(!set.is_open());
                true
            }
            Err(errors) => {
                let lines = text.lines().count() + 1;
                assert!(!errors.is_empty());
                assert!(errors.iter().all(|error| (1..=lines).contains(&error.line)), "{errors:?}");
                false
            }
        }
    });
}
