//! An issuer of tokens, with keys of all types.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::rand::SystemRandom;
use ring::rsa::PublicKeyComponents;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _, RSA_PKCS1_SHA256,
    RsaKeyPair,
};
use serde_json::{Value, json};

use crate::tokens::{ClaimPath, PublicKeys, TokenAlgorithm, TokenSettings};

pub(crate) const ISSUER: &str = "https://issuer.example/realm";
pub(crate) const AUDIENCE: &str = "pointsman";

/// Made for these tests: ring does not generate RSA keys.
const RSA_KEY: &str = include_str!("rsa-test-key.base64");

/// The ids of the keys.
pub(crate) const ED: &str = "ed";
pub(crate) const EC: &str = "ec";
pub(crate) const RSA: &str = "rsa";

pub(crate) struct TestIssuer {
    pub(crate) ed: Ed25519KeyPair,
    pub(crate) ec: EcdsaKeyPair,
    pub(crate) rsa: RsaKeyPair,
    random: SystemRandom,
}

pub(crate) fn base64url(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

impl TestIssuer {
    pub(crate) fn new() -> Self {
        let random = SystemRandom::new();
        let ed = Ed25519KeyPair::generate_pkcs8(&random).unwrap();
        let algorithm = &ECDSA_P256_SHA256_FIXED_SIGNING;
        let ec = EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
        let rsa = STANDARD.decode(RSA_KEY.split_whitespace().collect::<String>()).unwrap();
        Self {
            ed: Ed25519KeyPair::from_pkcs8(ed.as_ref()).unwrap(),
            ec: EcdsaKeyPair::from_pkcs8(algorithm, ec.as_ref(), &random).unwrap(),
            rsa: RsaKeyPair::from_pkcs8(&rsa).unwrap(),
            random,
        }
    }

    pub(crate) fn ed_jwk(&self) -> Value {
        let x = base64url(self.ed.public_key());
        json!({ "kty": "OKP", "crv": "Ed25519", "kid": ED, "use": "sig", "x": x })
    }

    pub(crate) fn ec_jwk(&self) -> Value {
        let point = self.ec.public_key().as_ref();
        let (x, y) = (base64url(&point[1..33]), base64url(&point[33..]));
        json!({ "kty": "EC", "crv": "P-256", "kid": EC, "alg": "ES256", "x": x, "y": y })
    }

    pub(crate) fn rsa_jwk(&self) -> Value {
        let PublicKeyComponents::<Vec<u8>> { n, e } = self.rsa.public().into();
        json!({ "kty": "RSA", "kid": RSA, "n": base64url(n), "e": base64url(e) })
    }

    pub(crate) fn key_set(&self) -> Value {
        json!({ "keys": [self.ed_jwk(), self.ec_jwk(), self.rsa_jwk()] })
    }

    pub(crate) fn keys(&self) -> PublicKeys {
        keys_of(&self.key_set())
    }

    /// Signs with the key of this id, whatever the header says.
    pub(crate) fn sign(&self, key: &str, header: &Value, payload: &Value) -> String {
        self.sign_text(key, &header.to_string(), &payload.to_string())
    }

    pub(crate) fn sign_text(&self, key: &str, header: &str, payload: &str) -> String {
        let message = format!("{}.{}", base64url(header), base64url(payload));
        let signature = match key {
            ED => self.ed.sign(message.as_bytes()).as_ref().to_vec(),
            EC => self.ec.sign(&self.random, message.as_bytes()).unwrap().as_ref().to_vec(),
            RSA => {
                let mut signature = vec![0; self.rsa.public().modulus_len()];
                let (padding, message) = (&RSA_PKCS1_SHA256, message.as_bytes());
                self.rsa.sign(padding, &self.random, message, &mut signature).unwrap();
                signature
            }
            other => panic!("no key {other}"),
        };
        format!("{message}.{}", base64url(signature))
    }

    /// Returns a token with these claims, signed with Ed25519.
    pub(crate) fn token(&self, payload: &Value) -> String {
        self.sign(ED, &header(), payload)
    }
}

pub(crate) fn header() -> Value {
    json!({ "alg": "EdDSA", "kid": ED, "typ": "JWT" })
}

pub(crate) fn keys_of(set: &Value) -> PublicKeys {
    PublicKeys::parse(set.to_string().as_bytes(), &settings().algorithms).unwrap()
}

pub(crate) fn settings() -> TokenSettings {
    use TokenAlgorithm::{EdDsa, Es256, Rs256};
    let seconds = std::time::Duration::from_secs;
    TokenSettings {
        issuer: ISSUER.to_owned(),
        audiences: vec!["other".to_owned(), AUDIENCE.to_owned()],
        algorithms: vec![Rs256, Es256, EdDsa],
        leeway: seconds(30),
        grace: seconds(3600),
        tenant_claim: ClaimPath::new("tenant"),
        group_claim: None,
        default_tenant: None,
        default_group: None,
    }
}

/// Returns the claims of a token that is valid for ten minutes.
pub(crate) fn claims(now_s: u64) -> Value {
    json!({
        "iss": ISSUER, "aud": AUDIENCE, "sub": "u-1", "tenant": "acme", "nbf": now_s,
        "exp": now_s + 600,
    })
}

/// Returns the claims with some of them replaced, or removed if they are null here.
pub(crate) fn with(mut claims: Value, changes: &Value) -> Value {
    let members = claims.as_object_mut().unwrap();
    for (name, value) in changes.as_object().unwrap() {
        match value {
            Value::Null => drop(members.remove(name)),
            value => drop(members.insert(name.clone(), value.clone())),
        }
    }
    claims
}
