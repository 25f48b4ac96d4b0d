//! Signed policies.

use std::fs;
use std::path::{Path, PathBuf};

use pointsman_tests::deployment::{Deployment, chain, policy_dir};
use pointsman_tests::guests::{Guest, replace_file};
use pointsman_tests::host::root;
use ring::signature::Ed25519KeyPair;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::{config, new, old};
use crate::FAKE_ENGINE;

fn key(name: &str) -> PathBuf {
    root().join("host/crates/policy/fixtures/keys").join(name)
}

/// Signs the files in the policy's folder according to the specification, without the host's code.
fn sign_policy(policies: &Path) {
    let folder = policies.join("p");
    let pem = fs::read_to_string(key("private.pem")).unwrap();
    let base64: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
    let key = Ed25519KeyPair::from_pkcs8_maybe_unchecked(&decode_base64(&base64)).unwrap();
    let digest = |file: &str| Sha256::digest(fs::read(folder.join(file)).unwrap());
    let message =
        [b"pointsman policy v1\n", &digest("policy.wasm")[..], &digest("policy.toml")[..]].concat();
    let signature: String =
        key.sign(&message).as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    replace_file(&folder.join("policy.sig"), signature.as_bytes());
}

/// Decodes base64 whose length is a multiple of four.
fn decode_base64(text: &str) -> Vec<u8> {
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
fn only_correctly_signed_policies_are_activated() {
    let dir = policy_dir(&[old()]);
    let policies = dir.path().join("policies");
    sign_policy(&policies);
    let deployment = Deployment::start(FAKE_ENGINE, dir, &signers("public.pem"));
    deployment.host.wait_for_event("signature_verified", &[("policy", "p"), ("signer", "release")]);
    let assert_not_loaded = |guest: &Guest, what: &str, code: &str| {
        let status = deployment.deploy(guest);
        assert_eq!(status["error"]["code"], code, "{what}: {status}");
        let message = status["error"]["message"].as_str().unwrap();
        assert!(message.contains("p/policy.sig"), "{what}: {message}");
        assert_eq!(deployment.reason("auto"), "old", "{what}");
    };
    assert_not_loaded(&new(), "another component", "signature_untrusted");
    let manifest = old().manifest("[allow]\nmodel = true\n");
    assert_not_loaded(&manifest, "another manifest", "signature_untrusted");
    fs::remove_file(deployment.policies().join("p/policy.sig")).unwrap();
    assert_not_loaded(&new(), "no signature file", "signature_missing");
    replace_file(&deployment.policies().join("p/policy.sig"), b"signed, honestly");
    assert_not_loaded(&new(), "invalid signature file", "signature_invalid");

    deployment.write_policy(&new());
    sign_policy(&deployment.policies());
    deployment.reload();
    assert_eq!(
        (deployment.reason("auto").as_str(), &deployment.policy("p")["error"]),
        ("new", &Value::Null)
    );
    // The golden cases of the operator are not part of the signature.
    fs::write(deployment.policies().join("p/cases.jsonl"), "").unwrap();
    deployment.reload();
    assert_eq!(deployment.policy("p")["error"], Value::Null);
}

#[test]
fn signature_by_unknown_key_is_rejected() {
    let dir = policy_dir(&[old()]);
    sign_policy(&dir.path().join("policies"));
    let deployment = Deployment::start(FAKE_ENGINE, dir, &signers("other-public.pem"));
    let status = deployment.policy("p");
    assert_eq!(status["error"]["code"], "signature_untrusted", "{status}");
    assert_eq!(
        (status["state"].as_str(), deployment.reason("auto")),
        (Some("failed"), String::new())
    );
    // With the right key in the configuration, the unchanged policy is loaded.
    deployment.write_config(&signers("public.pem"));
    deployment.reload();
    assert_eq!(deployment.reason("auto"), "old");
    let broken = signers("private.pem");
    deployment.write_config(&broken);
    deployment.reload();
    let error = deployment.host.status()["config"]["error"].as_str().unwrap().to_owned();
    // The file of the key that is not a public key.
    assert!(error.contains("policies.signers") && error.contains("private.pem"), "{error}");
    assert!(error.contains('['), "a code at the end of the line: {error}");
    assert_eq!(deployment.reason("auto"), "old");
}

#[test]
fn unsigned_active_version_stays_when_signatures_become_required() {
    let deployment =
        Deployment::start(FAKE_ENGINE, policy_dir(&[old()]), &config(&chain(&["p"], "")));
    assert_eq!(
        (deployment.reason("auto").as_str(), &deployment.policy("p")["error"]),
        ("old", &Value::Null)
    );
    deployment.write_config(&signers("public.pem"));
    deployment.reload();
    let status = deployment.policy("p");
    assert_eq!(status["error"]["code"], "signature_missing", "{status}");
    // The version was validated before signatures were required, so it still serves requests.
    assert_eq!(deployment.reason("auto"), "old");
    sign_policy(&deployment.policies());
    deployment.reload();
    assert_eq!(deployment.policy("p")["error"], Value::Null);
}
