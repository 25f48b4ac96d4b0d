//! Policies that somebody has to have signed.

use std::fs;
use std::path::{Path, PathBuf};

use pointsman_tests::guests::{Guest, swap};
use pointsman_tests::host::root;
use pointsman_tests::site::{Site, chain, folder};
use ring::signature::Ed25519KeyPair;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::{config, new, old};
use crate::FAKE_ENGINE;

fn key(name: &str) -> PathBuf {
    root().join("host/crates/policy/fixtures/keys").join(name)
}

/// Sign what is in the policy's folder, by the book and not with the host's own code.
fn signed(policies: &Path) {
    let folder = policies.join("p");
    let pem = fs::read_to_string(key("private.pem")).unwrap();
    let base64: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
    let key = Ed25519KeyPair::from_pkcs8_maybe_unchecked(&decoded(&base64)).unwrap();
    let digest = |file: &str| Sha256::digest(fs::read(folder.join(file)).unwrap());
    let message =
        [b"pointsman policy v1\n", &digest("policy.wasm")[..], &digest("policy.toml")[..]].concat();
    let signature: String =
        key.sign(&message).as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    swap(&folder.join("policy.sig"), signature.as_bytes());
}

/// Base64 whose length is a multiple of four.
fn decoded(text: &str) -> Vec<u8> {
    let alphabet = ('A'..='Z').chain('a'..='z').chain('0'..='9').chain(['+', '/']);
    let alphabet: Vec<char> = alphabet.collect();
    let bits = |letter: char| alphabet.iter().position(|known| *known == letter).unwrap() as u32;
    let letters: Vec<u32> = text.trim_end_matches('=').chars().map(bits).collect();
    let groups = letters.chunks(4).flat_map(|group| {
        let all = group.iter().fold(0, |all, bits| all << 6 | bits) << (6 * (4 - group.len()));
        all.to_be_bytes()[1..group.len()].to_vec()
    });
    groups.collect()
}

fn signers(name: &str) -> String {
    let file = key(name);
    config(&format!(
        "[[policies.signers]]\nname = \"release\"\nfile = {file:?}\n{}",
        chain(&["p"], "")
    ))
}

#[test]
fn only_what_was_signed_as_it_is_comes_into_service() {
    let dir = folder(&[old()]);
    let policies = dir.path().join("policies");
    signed(&policies);
    let site = Site::start(FAKE_ENGINE, dir, &signers("public.pem"));
    assert!(site.host.log().contains("the signature is good"));
    let refused = |guest: &Guest, what: &str, sentence: &str| {
        let shown = site.take_up(guest);
        let error = shown["error"]["what"].as_str().unwrap_or("none");
        assert!(error.contains(sentence), "{what}: {error}");
        assert_eq!(site.why("auto"), "old", "{what}");
    };
    refused(
        &new(),
        "another component",
        "policy.sig: it was made by none of the keys `release`, or for another component",
    );
    let manifest = old().manifest("[allow]\nmodel = true\n");
    refused(&manifest, "another manifest", "policy.sig: it was made by none of the keys `release`");
    fs::remove_file(site.policies().join("p/policy.sig")).unwrap();
    refused(&new(), "no signature", "p/policy.sig is missing");
    swap(&site.policies().join("p/policy.sig"), b"signed, honestly");
    refused(
        &new(),
        "no signature at all",
        "policy.sig: it is no signature: 64 bytes as hexadecimal",
    );

    site.put(&new());
    signed(&site.policies());
    site.reload();
    assert_eq!((site.why("auto").as_str(), &site.policy("p")["error"]), ("new", &Value::Null));
    // Cases of the operator's own need no signature.
    fs::write(site.policies().join("p/cases.jsonl"), "").unwrap();
    site.reload();
    assert_eq!(site.policy("p")["error"], Value::Null);
}

#[test]
fn a_key_of_somebody_else_is_no_key() {
    let dir = folder(&[old()]);
    signed(&dir.path().join("policies"));
    let site = Site::start(FAKE_ENGINE, dir, &signers("other-public.pem"));
    let shown = site.policy("p");
    let error = shown["error"]["what"].as_str().unwrap_or("none");
    assert!(error.contains("it was made by none of the keys `release`"), "{error}");
    assert_eq!((shown["state"].as_str(), site.why("auto")), (Some("failed"), String::new()));
    // The operator names the right key, and need not touch the policy for it.
    site.configure(&signers("public.pem"));
    site.reload();
    assert_eq!(site.why("auto"), "old");
    let broken = signers("private.pem");
    site.configure(&broken);
    site.reload();
    let error = site.host.status()["config"]["error"].as_str().unwrap().to_owned();
    assert!(error.contains("it is a private key, and a public one is wanted"), "{error}");
    assert_eq!(site.why("auto"), "old");
}

#[test]
fn whoever_asks_for_signatures_later_hears_of_what_has_none() {
    let site = Site::start(FAKE_ENGINE, folder(&[old()]), &config(&chain(&["p"], "")));
    assert_eq!((site.why("auto").as_str(), &site.policy("p")["error"]), ("old", &Value::Null));
    site.configure(&signers("public.pem"));
    site.reload();
    let shown = site.policy("p");
    assert!(
        shown["error"]["what"].as_str().unwrap().contains("p/policy.sig is missing"),
        "{shown}"
    );
    // It was proven when nobody asked for that, and no request is refused because of it.
    assert_eq!(site.why("auto"), "old");
    signed(&site.policies());
    site.reload();
    assert_eq!(site.policy("p")["error"], Value::Null);
}
