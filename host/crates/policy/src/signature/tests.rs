use std::fs;

use proptest::prelude::*;

use super::{
    FILE, PublicKey, SignError, SignatureError, base64, bytes, message, pem, sign, verify,
};

const PRIVATE: &str = include_str!("../../fixtures/keys/private.pem");
const PUBLIC: &str = include_str!("../../fixtures/keys/public.pem");
const OTHER: &str = include_str!("../../fixtures/keys/other-public.pem");
const P256: &str = include_str!("../../fixtures/keys/p256.pem");
const P256_PUBLIC: &str = include_str!("../../fixtures/keys/p256-public.pem");
const ENCRYPTED: &str = include_str!("../../fixtures/keys/encrypted.pem");
/// Made with `openssl pkeyutl -sign -rawin -inkey private.pem` of the message for `a component` and `a manifest`.
const HEX: &str = "f7edc434cf914444e8cfc45367fc966212602bf40419270fce4e2f786e6408674b6a02e577b7ca995cd024c0f9bcca79f7477fadfb698d3ec3f14284c99d7c08";
/// The same with `openssl base64`.
const BASE64: &str =
    "9+3ENM+RREToz8RTZ/yWYhJgK/QEGScPzk4veG5kCGdLagLld7fKmVzQJMD5vMp5\n90d/rftpjT7D8UKEyZ18CA==\n";

fn keys() -> Vec<(String, PublicKey)> {
    let key = |name: &str, text: &str| (name.to_owned(), PublicKey::parse(text).unwrap());
    vec![key("other", OTHER), key("release", PUBLIC)]
}

#[test]
fn signatures_of_openssl_are_accepted() {
    let message = message(b"a component", b"a manifest");
    for signature in [HEX, BASE64, &HEX.to_uppercase(), &format!("\n  {HEX}\n")] {
        assert_eq!(verify(&keys(), &message, signature), Ok("release"), "{signature}");
    }
}

#[test]
fn whatever_differs_is_refused() {
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
    for place in 0..HEX.len() {
        let mut changed = HEX.as_bytes().to_vec();
        changed[place] = if changed[place] == b'0' { b'1' } else { b'0' };
        let changed = String::from_utf8(changed).unwrap();
        assert!(
            matches!(verify(good, &signed, &changed), Err(SignatureError::Unknown(_))),
            "{place}"
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

#[test]
fn keys_are_those_of_openssl() {
    let key = PublicKey::parse(PUBLIC).unwrap();
    let raw = pem(PUBLIC, "PUBLIC KEY").unwrap().split_off(12);
    let hex: String = raw.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(PublicKey::parse(&hex), Ok(key));
    assert_eq!(PublicKey::parse("Xv7Eujdc13T596D+UsVyuUrYwhiVNkpyBgRkFKJ2sKE="), Ok(key));
    for (text, sentence) in [
        (PRIVATE, "it is a private key"),
        (ENCRYPTED, "it is a private key"),
        (P256_PUBLIC, "it is of another algorithm"),
        (&PUBLIC.replace("MCow", "MCo"), "the PEM is damaged"),
        (&PUBLIC.replace("END", "end"), "the PEM is damaged"),
        (&PUBLIC.replace("sKE=", "sA=="), "it has the wrong length"),
        ("", "PEM, or 32 bytes"),
        (&hex[1..], "PEM, or 32 bytes"),
        (HEX, "PEM, or 32 bytes"),
    ] {
        let said = PublicKey::parse(text).unwrap_err().to_string();
        assert!(said.contains(sentence), "{text}: {said}");
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
fn what_is_signed_can_be_verified() {
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
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3, "nothing else is left");
    }
}

#[test]
fn what_cannot_be_signed_is_said() {
    let dir = policy();
    for (key, sentence) in [
        (PUBLIC, "no PEM with a `PRIVATE KEY`"),
        ("", "no PEM with a `PRIVATE KEY`"),
        (ENCRYPTED, "it is encrypted"),
        (P256, "it is no private ed25519 key"),
    ] {
        let said = sign(dir.path(), key).unwrap_err().to_string();
        assert!(said.contains(sentence), "{said}");
    }
    fs::remove_file(dir.path().join("policy.wasm")).unwrap();
    let said = sign(dir.path(), PRIVATE).unwrap_err();
    assert!(
        matches!(&said, SignError::File { file, .. } if file.ends_with("policy.wasm")),
        "{said}"
    );
    fs::write(dir.path().join("policy.toml"), "nonsense").unwrap();
    assert!(matches!(sign(dir.path(), PRIVATE), Err(SignError::Manifest(_))));
    assert!(!dir.path().join(FILE).exists());
}

#[test]
fn base64_has_one_text_for_everything() {
    for (text, decoded) in
        [("", ""), ("Zg==", "f"), ("Zm8=", "fo"), ("Zm9v", "foo"), ("Zm9v\r\nYmFy\n", "foobar")]
    {
        assert_eq!(base64(text).as_deref(), Some(decoded.as_bytes()), "{text}");
    }
    for text in ["Zg", "Zg=", "Zh==", "Zm9=", "Z===", "====", "=Zg=", "Zm9v!", "Zm-_", "Zg==Zg=="] {
        assert_eq!(base64(text), None, "{text}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_text_is_answered(text in "\\PC{0,200}") {
        drop(PublicKey::parse(&text));
        drop(PublicKey::parse(&format!("-----BEGIN PUBLIC KEY-----{text}-----END PUBLIC KEY-----")));
        prop_assert!(verify(&keys(), b"", &text).is_err());
        let _key = bytes::<32>(&text);
        prop_assert!(super::parse_private(&text).is_err());
    }
}
