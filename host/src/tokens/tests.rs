//! Tests of the key set that is kept for a restart.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};

use super::*;

const KEYS: &str = r#"{"keys":[{"kty":"OKP","crv":"Ed25519","kid":"k",
    "x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;

fn tokens(dir: &Path, keys: &str) -> Tokens {
    let file = dir.join("host.toml");
    let lane = "[[lanes]]\nname = \"a\"\n[lanes.engine]\ndriver = \"external\"\nurl = \
                \"http://127.0.0.1:1\"\n";
    let issuer = "issuer = \"https://i.example\"\naudience = [\"a\"]";
    fs::write(&file, format!("{lane}[access.tokens]\n{issuer}\n{keys}")).unwrap();
    pointsman_config::Config::load(&file).unwrap().tokens.unwrap()
}

fn stored(issuer: &str, source: &str, keys: &str) -> String {
    let (issuer, source, keys) = (issuer.to_owned(), source.to_owned(), keys.to_owned());
    let stored = Stored { issuer, source, fetched_ms: 1_800_000_000_000, keys };
    serde_json::to_string(&stored).unwrap()
}

#[test]
fn stored_keys_belong_to_issuer_and_source() {
    let dir = tempfile::tempdir().unwrap();
    let tokens = tokens(dir.path(), "");
    let url = "https://i.example/.well-known/openid-configuration";
    let file = dir.path().join(FILE);
    let found = || initial_keys(&tokens, Some(dir.path())).unwrap();
    assert!(found().is_none());
    for (text, is_used) in [
        (stored("https://i.example", url, KEYS), true),
        (stored("https://i.example/", url, KEYS), false),
        (stored("https://i.example", "https://i.example/keys", KEYS), false),
        (stored("https://i.example", url, "{\"keys\":[]}"), false),
        ("{".to_owned(), false),
        (String::new(), false),
        ("x".repeat(2 << 20), false),
    ] {
        fs::write(&file, &text).unwrap();
        assert_eq!(found().is_some(), is_used, "{}", &text[..text.len().min(200)]);
    }
    fs::write(&file, stored("https://i.example", url, KEYS)).unwrap();
    let (keys, fetched) = found().unwrap();
    assert_eq!((keys.len(), unix_ms(fetched)), (1, 1_800_000_000_000));
    assert!(initial_keys(&tokens, None).unwrap().is_none());
    // Another user could have written it.
    fs::set_permissions(&file, fs::Permissions::from_mode(0o666)).unwrap();
    assert!(found().is_none());
    let other = dir.path().join("other");
    fs::rename(&file, &other).unwrap();
    fs::set_permissions(&other, fs::Permissions::from_mode(0o600)).unwrap();
    symlink(&other, &file).unwrap();
    assert!(found().is_none());
}

#[test]
fn a_file_of_the_configuration_must_be_usable() {
    let dir = tempfile::tempdir().unwrap();
    let tokens = tokens(dir.path(), "jwks-file = \"keys.json\"");
    let file = dir.path().join("keys.json");
    let describe = || describe(Some(&tokens), None);
    assert!(describe().is_err());
    fs::write(&file, "{}").unwrap();
    assert!(describe().is_err());
    fs::write(&file, KEYS).unwrap();
    assert_eq!(describe().unwrap().len(), 2);
    let mut registry = Registry::default();
    let keys = TokenKeys::open(Some(tokens.clone()), None, &mut registry).unwrap();
    assert!(keys.added_to(Keys::default()).token_status().unwrap().usable);
    let keys = TokenKeys::open(None, None, &mut registry).unwrap();
    assert!(keys.added_to(Keys::default()).is_open());
}
