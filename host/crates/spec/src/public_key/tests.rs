use proptest::prelude::*;

use super::{KeyError, PublicKey, PublicKeyError};
use crate::encoding::{decode, pem_section};

const PRIVATE: &str = include_str!("../../../policy/fixtures/keys/private.pem");
const PUBLIC: &str = include_str!("../../../policy/fixtures/keys/public.pem");
const P256_PUBLIC: &str = include_str!("../../../policy/fixtures/keys/p256-public.pem");
const ENCRYPTED: &str = include_str!("../../../policy/fixtures/keys/encrypted.pem");

#[test]
fn openssl_public_key_is_parsed() {
    let key = PublicKey::parse(PUBLIC).unwrap();
    let raw = pem_section(PUBLIC, "PUBLIC KEY").unwrap().split_off(12);
    let hex: String = raw.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(PublicKey::parse(&hex), Ok(key));
    assert_eq!(PublicKey::parse("Xv7Eujdc13T596D+UsVyuUrYwhiVNkpyBgRkFKJ2sKE="), Ok(key));
    for (text, error) in [
        (PRIVATE, PublicKeyError::PrivateKey),
        (ENCRYPTED, PublicKeyError::PrivateKey),
        (P256_PUBLIC, PublicKeyError::Invalid(KeyError::Algorithm)),
        (&PUBLIC.replace("MCow", "MCo"), PublicKeyError::Invalid(KeyError::Pem)),
        (&PUBLIC.replace("END", "end"), PublicKeyError::Invalid(KeyError::Pem)),
        (&PUBLIC.replace("sKE=", "sA=="), PublicKeyError::Invalid(KeyError::Length)),
        ("", PublicKeyError::Invalid(KeyError::Format)),
        (&hex[1..], PublicKeyError::Invalid(KeyError::Format)),
        (&"0".repeat(128), PublicKeyError::Invalid(KeyError::Format)),
    ] {
        assert_eq!(PublicKey::parse(text), Err(error), "{text}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn parsers_do_not_panic(text in "\\PC{0,200}") {
        // Only panics matter: a random text may be a valid key.
        PublicKey::parse(&text).ok();
        PublicKey::parse(&format!("-----BEGIN PUBLIC KEY-----{text}-----END PUBLIC KEY-----")).ok();
        decode::<32>(&text);
    }
}
