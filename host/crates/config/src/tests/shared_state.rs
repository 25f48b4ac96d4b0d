//! Tests of `[shared-state]`.

use pointsman_spec::{SharedAddress, StateScope};

use super::*;

fn with(keys: &str) -> String {
    format!("{LANE}[shared-state]\n{keys}\n")
}

fn shared(keys: &str) -> SharedState {
    parse(&with(keys)).unwrap().shared_state.unwrap()
}

#[test]
fn nothing_is_shared_by_default() {
    assert!(parse(LANE).unwrap().shared_state.is_none());
}

#[test]
fn addresses_and_defaults() {
    let url = "redis://127.0.0.1:6379".to_owned();
    let state = shared("url = \"redis://127.0.0.1:6379\"");
    assert_eq!(state.address, SharedAddress::Single(url.clone()));
    assert_eq!((state.prefix.as_str(), state.interval), ("pointsman", Duration::from_millis(50)));
    assert_eq!((state.max_pending, state.replicas, state.ca), (100_000, 1, None));
    let sentinel = "sentinel = { urls = [\"redis://a:1\"], master = \"main\" }";
    let address = SharedAddress::Sentinel {
        sentinels: vec!["redis://a:1".to_owned()],
        master: "main".to_owned(),
        node: Some(url),
    };
    let keys = format!("{sentinel}\nurl = \"redis://127.0.0.1:6379\"");
    assert_eq!(shared(&keys).address, address);
    let cluster = shared("cluster = [\"redis://a:1\", \"rediss://b:2\"]").address;
    let urls = vec!["redis://a:1".to_owned(), "rediss://b:2".to_owned()];
    assert_eq!(cluster, SharedAddress::Cluster(urls));
}

#[test]
fn invalid_addresses_are_rejected_without_showing_them() {
    let rejects = |keys: &str, key: &str, code| {
        assert_rejects(&with(keys), &format!("shared-state.{key}"), code);
    };
    rejects("prefix = \"p\"", "url", Code::MissingKey);
    rejects("url = \"http://a\"", "url", Code::InvalidValue);
    rejects("url = \"redis://a\"\nprefix = \"a{b}\"", "prefix", Code::InvalidValue);
    rejects("url = \"redis://a\"\ninterval = \"1ms\"", "interval", Code::OutOfRange);
    rejects("url-env = \"POINTSMAN_NO_SUCH_VARIABLE\"", "url-env", Code::Unavailable);
    rejects("url = \"redis://a\"\nca-file = \"/none\"", "ca-file", Code::Unavailable);
    rejects("sentinel = { urls = [\"redis://a\"] }", "sentinel.master", Code::MissingKey);
    let both = "cluster = [\"redis://a\"]\nsentinel = { urls = [\"redis://a\"], master = \"m\" }";
    rejects(both, "cluster", Code::Conflict);
    let secret = with("url = \"redis://:hunter2@a\"");
    assert_rejects(&secret, "shared-state.url", Code::InvalidValue);
    assert!(!format!("{:?}", parse(&secret).unwrap_err()).contains("hunter2"));
    assert!(!format!("{:?}", shared("url = \"redis://user@a\"")).contains("user"));
}

#[test]
fn policies_share_their_state_only_with_a_store() {
    let chain = "[[policies.chain]]\nname = \"quota\"\nstate = \"shared\"\n";
    let text = format!("{LANE}{chain}");
    assert_rejects(&text, "policies.chain[0].state", Code::Conflict);
    let config = parse(&format!("{text}[shared-state]\nurl = \"redis://a\"\n")).unwrap();
    assert_eq!(config.policies.chain.policies[0].state, StateScope::Shared);
    let config = parse(&text.replace("shared", "local")).unwrap();
    assert_eq!(config.policies.chain.policies[0].state, StateScope::Local);
}
