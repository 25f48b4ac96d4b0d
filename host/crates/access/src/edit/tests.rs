use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use pointsman_domain::Endpoint;

use super::*;
use crate::limits::{Budget, Period};
use crate::secret::SecretHash;
use crate::{KeySet, Keys, Unauthorized};

const NOW: Duration = Duration::from_secs(1_800_000_000);

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + NOW
}

fn key(tenant: &str) -> NewKey {
    NewKey { tenant: tenant.to_owned(), ..NewKey::default() }
}

fn check(path: &Path, secret: &str) -> Result<String, Unauthorized> {
    let keys = Keys::from_set(KeySet::from_definitions(&Definitions::load(path).unwrap()));
    let headers = [(http::header::AUTHORIZATION, format!("Bearer {secret}").parse().unwrap())];
    keys.identity(&http::HeaderMap::from_iter(headers)).map(|identity| identity.name.clone())
}

#[test]
fn new_file_is_private_and_has_the_key() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("keys.toml");
    let mut file = KeysFile::lock(&path).unwrap();
    let whole = NewKey {
        id: Some("alice".to_owned()),
        expires: Some(now()),
        grants: Grants {
            models: Some(vec!["fast_*".to_owned()]),
            endpoints: Some(vec![Endpoint::Messages]),
            engine_admin: Some(true),
            priority: Some(-1..=1),
            ..Grants::default()
        },
        limits: Limits {
            tokens_per_minute: Some(5),
            budgets: vec![Budget {
                period: Period::Week,
                tokens: Some(7),
                requests: None,
                engine_seconds: None,
            }],
            ..Limits::default()
        },
        ..key("acme")
    };
    let (id, secret) = file.add(whole.clone()).unwrap();
    file.save().unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.starts_with('#') && !text.contains(secret.reveal()), "{text}");
    let read = Definitions::load(&path).unwrap().keys.remove(0);
    assert_eq!((id.as_str(), read.id.as_str(), read.expires), ("alice", "alice", whole.expires));
    assert_eq!((read.grants, read.limits), (whole.grants, whole.limits));
    let mut file = KeysFile::lock(&path).unwrap();
    let again = NewKey { id: Some("alice".to_owned()), ..key("acme") };
    assert!(matches!(file.add(again), Err(EditError::Duplicate(_))));
    // The file is checked as a whole before it is written.
    file.add(NewKey { group: Some("none".to_owned()), ..key("acme") }).unwrap();
    assert!(matches!(file.save(), Err(EditError::Invalid(_))));
    assert_eq!(fs::read_to_string(&path).unwrap(), text);
}

#[test]
fn comments_order_and_permissions_stay() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("keys.toml");
    let hash = |secret| SecretHash::of_secret(secret);
    let text = format!(
        "# Head.\n[[keys]] # one\nid = \"a\"\nhash = \"{}\"\ntenant = \"t\"   # of a\n\n# Two.\n\
         [[keys]]\nid = \"b\"\nhash = \"{}\"\ntenant = \"t\"\n\n[[groups]]\nname = \"g\" # last\n",
        hash("a"),
        hash("b")
    );
    fs::write(&path, &text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    let link = dir.path().join("link");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    let mut file = KeysFile::lock(&link).unwrap();
    let (id, secret) = file.add(NewKey { group: Some("g".to_owned()), ..key("t") }).unwrap();
    file.save().unwrap();
    assert!(link.symlink_metadata().unwrap().is_symlink());
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
    let added = fs::read_to_string(&path).unwrap();
    assert_eq!(check(&path, secret.reveal()).as_deref(), Ok(id.as_str()));
    let mut file = KeysFile::lock(&path).unwrap();
    file.remove(&id).unwrap();
    assert!(matches!(file.remove(&id), Err(EditError::UnknownKey(_))));
    file.save().unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), text, "{added}");
    assert_eq!(check(&path, secret.reveal()), Err(Unauthorized::UnknownKey));
}

#[test]
fn head_of_the_file_survives_its_last_key() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("keys.toml");
    let text = || fs::read_to_string(&path).unwrap();
    for _ in 0..2 {
        let mut file = KeysFile::lock(&path).unwrap();
        let ids = [(), ()].map(|()| file.add(key("t")).unwrap().0);
        file.save().unwrap();
        assert!(text().starts_with(HEADER), "{}", text());
        for id in ids {
            let mut file = KeysFile::lock(&path).unwrap();
            file.remove(&id).unwrap();
            file.save().unwrap();
            assert!(text().starts_with(HEADER), "{}", text());
        }
    }
}

#[test]
fn rotated_secrets_are_valid_until_the_end_of_their_grace() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("keys.toml");
    let mut file = KeysFile::lock(&path).unwrap();
    let (id, first) = file.add(key("t")).unwrap();
    file.save().unwrap();
    let rotate = |grace: u64| {
        let mut file = KeysFile::lock(&path).unwrap();
        let until = (grace > 0).then(|| now() + Duration::from_secs(grace));
        let secret = file.rotate(&id, until, now()).unwrap();
        file.save().unwrap();
        secret
    };
    let hashes = || Definitions::load(&path).unwrap().keys[0].hashes.clone();
    let second = rotate(100);
    let until = |seconds| Some(now() + Duration::from_secs(seconds));
    assert_eq!(hashes(), [(second.hash(), None), (first.hash(), until(100))]);
    let third = rotate(200);
    let expected = [(third.hash(), None), (second.hash(), until(200)), (first.hash(), until(100))];
    assert_eq!(hashes(), expected);
    let fourth = rotate(0);
    assert_eq!(hashes(), [(fourth.hash(), None)]);
    let mut file = KeysFile::lock(&path).unwrap();
    assert!(matches!(file.rotate("none", None, now()), Err(EditError::UnknownKey(_))));
}

#[test]
fn commands_do_not_lose_changes_of_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let path = &dir.path().join("keys.toml");
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(move || {
                for _ in 0..4 {
                    let mut file = KeysFile::lock(path).unwrap();
                    file.add(key("t")).unwrap();
                    file.save().unwrap();
                }
            });
        }
    });
    assert_eq!(Definitions::load(path).unwrap().keys.len(), 32);
}
