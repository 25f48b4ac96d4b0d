//! Tests of `[fleet]` and `[[peers]]`.

use std::fs;

use super::*;

const SECRET: &str = "0123456789abcdef";

/// Reads a configuration beside which there are some secrets.
fn read(more: &str) -> Result<Config, Vec<(String, Code)>> {
    let folder = tempfile::tempdir().unwrap();
    for (file, secret) in [("one", SECRET), ("two", "fedcba9876543210"), ("short", "0123456789")] {
        fs::write(folder.path().join(file), secret).unwrap();
    }
    let config = Config::parse(&format!("{LANE}{more}"), &folder.path().join("p.toml"));
    config.map_err(|errors| errors.into_iter().map(|error| (error.key, error.code)).collect())
}

#[test]
fn hosts_are_alone_by_default() {
    let config = read("").unwrap();
    assert!(config.peers.is_empty());
    assert_eq!(config.fleet.peering, pointsman_fleet::Peering::default());
    let stale = config.fleet.peering.stale;
    assert_eq!((stale.degraded, stale.down), (Duration::from_secs(1), Duration::from_secs(5)));
}

#[test]
fn hosts_with_the_same_salt_have_the_same_hashes() {
    let key = |file: &str| {
        let config = read(&format!("[fleet]\nname = \"gpu-1\"\nsalt-file = {file:?}\n")).unwrap();
        assert_eq!(config.fleet.peering.name, "gpu-1");
        assert!(!format!("{config:?}").contains(SECRET));
        config.fleet.peering.prompt_key.expect("there is a salt")
    };
    assert!(key("one") == key("one") && key("one") != key("two"));
}

#[test]
fn peers_have_a_name_and_a_key_of_their_own() {
    let peer =
        |name: &str, file: &str| format!("[[peers]]\nname = {name:?}\nkey-file = {file:?}\n");
    let config = read(&(peer("a", "one") + &peer("b", "two"))).unwrap();
    let names: Vec<_> = config.peers.iter().map(|peer| peer.name.as_str()).collect();
    assert_eq!((names, config.peers[0].key.reveal()), (vec!["a", "b"], SECRET));
    for (text, key, code) in [
        (peer("a", "one") + &peer("a", "two"), "peers[1].name", Code::Duplicate),
        (peer("a", "one") + &peer("b", "one"), "peers[1].key-env", Code::Duplicate),
        (peer("a", "short"), "peers[0].key-env", Code::OutOfRange),
        (peer("a", "none"), "peers[0].key-file", Code::Unavailable),
        (peer("a\n", "one"), "peers[0].name", Code::InvalidValue),
        ("[[peers]]\nname = \"a\"\n".to_owned(), "peers[0].key-env", Code::MissingKey),
        ("[[peers]]\nkey-file = \"one\"\n".to_owned(), "peers[0].name", Code::MissingKey),
        ("[fleet]\nsalt-file = \"short\"\n".to_owned(), "fleet.salt-env", Code::OutOfRange),
        ("[fleet]\nstale-after = \"100ms\"\n".to_owned(), "fleet.stale-after", Code::OutOfRange),
        ("[fleet]\ndown-after = \"1s\"\n".to_owned(), "fleet.down-after", Code::OutOfRange),
    ] {
        assert_eq!(read(&text).map(drop), Err(vec![(key.to_owned(), code)]), "{text}");
    }
}
