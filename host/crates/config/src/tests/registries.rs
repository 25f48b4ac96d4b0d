//! Tests of `[[registries]]` and of policies that come from registries.

use super::*;

const TAG: &str = "source = \"oci://r.example/p:stable\"";

/// Returns a configuration with a policy that has these keys.
fn with_policy(keys: &str) -> String {
    format!("{LANE}[state]\ndir = \"state\"\n[[policies.chain]]\nname = \"p\"\n{keys}\n")
}

fn with_registry(keys: &str) -> String {
    format!("{LANE}[[registries]]\n{keys}\n")
}

#[test]
fn policy_comes_from_a_digest_or_from_a_tag_that_is_followed() {
    let digest = "0123456789abcdef".repeat(4);
    let policy = |keys: &str| parse(&with_policy(keys)).unwrap().policies.chain.policies.remove(0);
    let folder = policy("");
    assert!(folder.source.is_none() && folder.dir == Path::new("/conf/policies/p"));
    let pinned = policy(&format!("source = \"oci://r.example/p@sha256:{digest}\""));
    assert_eq!(pinned.dir, Path::new("/conf/state/registry/artifacts").join(&digest));
    assert_eq!(pinned.source.unwrap().follow, None);
    let followed = policy(&format!("{TAG}\nfollow = true"));
    assert_eq!(followed.dir.parent(), Some(Path::new("/conf/state/registry/tags")));
    let other = policy("source = \"oci://r.example/p:canary\"\nfollow = true");
    assert_ne!(other.dir, followed.dir);
    assert_eq!(followed.source.unwrap().follow, Some(Duration::from_secs(60)));
    let often = policy(&format!("{TAG}\nfollow = true\nfollow-interval = \"5s\""));
    assert_eq!(often.source.unwrap().follow, Some(Duration::from_secs(5)));
}

#[test]
fn errors_in_sources_have_key_and_code() {
    let rejects = |keys: &str, key: &str, code: Code| {
        assert_rejects(&with_policy(keys), &format!("policies.chain[0].{key}"), code);
    };
    let pinned = format!("source = \"oci://r.example/p@sha256:{}\"", "0".repeat(64));
    rejects("source = \"r.example/p:1\"", "source", Code::InvalidValue);
    rejects("source = \"oci://r.example/p\"", "source", Code::InvalidValue);
    rejects(TAG, "source", Code::Conflict);
    rejects(&format!("{pinned}\nfollow = true"), "follow", Code::Conflict);
    rejects(&format!("{pinned}\nfollow-interval = \"5s\""), "follow-interval", Code::Conflict);
    rejects("follow = true", "follow", Code::Conflict);
    rejects("follow-interval = \"5s\"", "follow-interval", Code::Conflict);
    let often = format!("{TAG}\nfollow = true\nfollow-interval = \"999ms\"");
    rejects(&often, "follow-interval", Code::OutOfRange);
}

#[test]
fn registries_have_safe_defaults_and_complete_credentials() {
    let registries = |keys: &str| parse(&with_registry(keys)).unwrap().policies.chain.registries;
    let registry = registries("host = \"r.example:5000\"").remove(0);
    assert!(!registry.plain_http && registry.credentials.is_none() && registry.ca.is_none());
    assert_eq!((registry.mirrors.len(), registry.token_host), (0, None));
    // A variable that every process has.
    let credentials = "username-env = \"PATH\"\npassword-env = \"PATH\"";
    let registry = registries(&format!("host = \"r.example\"\n{credentials}")).remove(0);
    assert_eq!(registry.credentials.unwrap().password, std::env::var("PATH").unwrap());
    let rejects = |keys: &str, key: &str, code: Code| {
        assert_rejects(&with_registry(keys), key, code);
    };
    let host = "host = \"r.example\"";
    rejects("mirrors = []", "registries[0].host", Code::MissingKey);
    rejects("host = \"https://r.example\"", "registries[0].host", Code::InvalidValue);
    rejects("host = \"R.example\"", "registries[0].host", Code::InvalidValue);
    let key = "registries[0].mirrors";
    rejects(&format!("{host}\nmirrors = [\"a/b\"]"), key, Code::InvalidValue);
    let many = format!("{host}\nmirrors = {:?}", ["m"; 9]);
    rejects(&many, key, Code::OutOfRange);
    let key = "registries[0].token-host";
    rejects(&format!("{host}\ntoken-host = \"u@h\""), key, Code::InvalidValue);
    rejects(&format!("{host}\nca = \"missing.pem\""), "registries[0].ca", Code::Unavailable);
    rejects(&format!("{host}\nusername-env = \"PATH\""), "registries[0]", Code::Conflict);
    let twice = format!("{host}\n[[registries]]\n{host}");
    rejects(&twice, "registries[1].host", Code::Duplicate);
}
