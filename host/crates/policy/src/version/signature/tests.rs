use std::fs;

use proptest::prelude::*;

use super::{FILE, PrivateKeyError, PublicKey, SignError, SignatureError, message, sign, verify};

const PRIVATE: &str = include_str!("../../../fixtures/keys/private.pem");
const PUBLIC: &str = include_str!("../../../fixtures/keys/public.pem");
const OTHER: &str = include_str!("../../../fixtures/keys/other-public.pem");
const P256: &str = include_str!("../../../fixtures/keys/p256.pem");
const ENCRYPTED: &str = include_str!("../../../fixtures/keys/encrypted.pem");
/// Made with `openssl pkeyutl -sign -rawin -inkey private.pem` from the message for `a component`
/// and `a manifest`.
const HEX: &str = concat!(
    "f7edc434cf914444e8cfc45367fc966212602bf40419270fce4e2f786e640867",
    "4b6a02e577b7ca995cd024c0f9bcca79f7477fadfb698d3ec3f14284c99d7c08"
);
/// The signature [`HEX`], encoded with `openssl base64`.
const BASE64: &str =
    "9+3ENM+RREToz8RTZ/yWYhJgK/QEGScPzk4veG5kCGdLagLld7fKmVzQJMD5vMp5\n90d/rftpjT7D8UKEyZ18CA==\n";

fn keys() -> Vec<(String, PublicKey)> {
    let key = |name: &str, text: &str| (name.to_owned(), PublicKey::parse(text).unwrap());
    vec![key("other", OTHER), key("release", PUBLIC)]
}

#[test]
fn openssl_signature_is_accepted() {
    let message = message(b"a component", b"a manifest");
    for signature in [HEX, BASE64, &HEX.to_uppercase(), &format!("\n  {HEX}\n")] {
        assert_eq!(verify(&keys(), &message, signature), Ok("release"), "{signature}");
    }
}

#[test]
fn changed_signature_message_or_key_is_rejected() {
    let signed = message(b"a component", b"a manifest");
    let (other, good) = (&keys()[..1], &keys()[1..]);
    assert_eq!(verify(other, &signed, HEX), Err(SignatureError::Unknown("`other`".into())));
    assert_eq!(verify(&[], &signed, HEX), Err(SignatureError::NoKeys));
    for message in [
        message(b"a component.", b"a manifest"),
        message(b"a component", b"a manifest."),
        message(b"a manifest", b"a component"),
        signed[1..].to_vec(),
        Vec::new(),
    ] {
        assert!(matches!(verify(good, &message, HEX), Err(SignatureError::Unknown(_))));
    }
    for position in 0..HEX.len() {
        let mut changed = HEX.as_bytes().to_vec();
        changed[position] = if changed[position] == b'0' { b'1' } else { b'0' };
        let changed = String::from_utf8(changed).unwrap();
        assert!(
            matches!(verify(good, &signed, &changed), Err(SignatureError::Unknown(_))),
            "{position}"
        );
    }
    for text in [
        "",
        "00",
        &HEX[1..],
        &HEX[2..],
        &format!("{HEX}00"),
        &HEX.replace('f', "g"),
        "é",
        &BASE64[4..],
    ] {
        assert_eq!(verify(good, &signed, text), Err(SignatureError::Format), "{text}");
    }
}

fn policy() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("policy.toml"), "name = \"small\"\nversion = \"1\"\napi = \"0.1\"\n")
        .unwrap();
    fs::write(dir.path().join("policy.wasm"), "a component").unwrap();
    dir
}

#[test]
fn signed_policy_verifies() {
    let dir = policy();
    for round in 0..2 {
        let file = sign(dir.path(), PRIVATE).unwrap();
        assert_eq!(file, dir.path().join(FILE));
        let manifest = fs::read(dir.path().join("policy.toml")).unwrap();
        let signature = fs::read_to_string(&file).unwrap();
        assert_eq!(
            verify(&keys(), &message(b"a component", &manifest), &signature),
            Ok("release"),
            "{round}"
        );
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3, "temporary files were left");
    }
}

#[test]
fn sign_rejects_invalid_keys_and_policies() {
    let dir = policy();
    for key in [PUBLIC, ""] {
        let error = sign(dir.path(), key).unwrap_err();
        assert!(matches!(error, SignError::Key(PrivateKeyError::NoPem)), "{error}");
    }
    let error = sign(dir.path(), ENCRYPTED).unwrap_err();
    assert!(matches!(error, SignError::Key(PrivateKeyError::Encrypted)), "{error}");
    let error = sign(dir.path(), P256).unwrap_err();
    assert!(matches!(error, SignError::Key(PrivateKeyError::Rejected(_))), "{error}");
    fs::remove_file(dir.path().join("policy.wasm")).unwrap();
    let error = sign(dir.path(), PRIVATE).unwrap_err();
    assert!(matches!(&error, SignError::Read(error) if error.is_not_found()), "{error}");
    fs::write(dir.path().join("policy.toml"), "nonsense").unwrap();
    assert!(matches!(sign(dir.path(), PRIVATE), Err(SignError::Manifest(_))));
    assert!(!dir.path().join(FILE).exists());
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn parsers_do_not_panic(text in "\\PC{0,200}") {
        prop_assert!(verify(&keys(), b"", &text).is_err());
        prop_assert!(super::parse_private(&text).is_err());
    }
}
