//! `pointsman policy install`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use pointsman_tests::deployment::{Deployment, chain, policy_dir};
use pointsman_tests::guests::Guest;
use serde_json::Value;

use crate::policy_simulation::{pointsman, text};
use crate::{FAKE_ENGINE, lane};

fn start() -> Deployment {
    let config = chain(&["p"], "") + &lane("a", &["auto"], &[]);
    Deployment::start(FAKE_ENGINE, policy_dir(&[version("one")]), &config)
}

fn version(reason: &str) -> Guest {
    Guest::new("p").reason(reason)
}

/// Writes a version into a folder that no host loads.
fn write(folder: &Path, guest: &Guest) -> PathBuf {
    guest.write_to(folder);
    folder.join("p")
}

/// Runs `policy install SOURCE --config CONFIG …`, without the variables of the host's secrets.
fn install(deployment: &Deployment, source: &Path, more: &[&str]) -> (i32, String, String) {
    let config = deployment.host.dir.path().join("pointsman.toml");
    pointsman(&[&["policy", "install", text(source), "--config", text(&config)], more].concat())
}

#[test]
fn installed_version_is_in_service_when_the_command_ends() {
    let mut deployment = start();
    let dir = tempfile::tempdir().unwrap();
    let source = write(dir.path(), &version("two"));
    let (code, out, err) = install(&deployment, &source, &[]);
    assert_eq!(code, 0, "{out}{err}");
    assert_eq!(deployment.reason("auto"), "two");
    let active = deployment.policy("p")["version"].as_str().unwrap().to_owned();
    assert!(out.contains(&active), "{out}");

    // An archive, of which other files are ignored; the version before stays next to the folder.
    let source = write(dir.path(), &version("three"));
    fs::write(source.join("notes.txt"), "x").unwrap();
    let file = dir.path().join("p.tar");
    let mut tar = Command::new("tar");
    tar.arg("-cf").arg(&file).arg("-C").arg(dir.path()).arg("p");
    assert!(tar.status().unwrap().success());
    let (code, out, err) = install(&deployment, &file, &[]);
    assert_eq!(code, 0, "{out}{err}");
    assert_eq!(deployment.reason("auto"), "three");
    let installed = deployment.policies();
    let mut names: Vec<_> =
        fs::read_dir(&installed).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, [".p.previous", "p"]);
    assert!(!installed.join("p/notes.txt").exists());
    deployment.admin("POST", "/policies/p/rollback", "{}");
    assert_eq!(deployment.reason("auto"), "two");

    // The host has rejected this version, so it refuses it.
    let (code, out, err) = install(&deployment, &file, &[]);
    assert!(code == 1 && err.contains("[version_rejected]"), "{out}{err}");
    assert_eq!(deployment.reason("auto"), "two");
    let events = deployment.policy("p")["events"].clone();
    let text = |event: &Value, key: &str| event[key].as_str().unwrap().to_owned();
    let events: Vec<_> = events
        .as_array()
        .unwrap()
        .iter()
        .map(|event| (text(event, "event"), text(event, "by")))
        .collect();
    let expected = [
        ("activated", "file"),
        ("activated", "file"),
        ("activated", "file"),
        ("rolled-back", "port"),
        ("refused", "file"),
    ];
    assert_eq!(events, expected.map(|(event, by)| (event.to_owned(), by.to_owned())));

    // Without a host, the files are installed.
    deployment.host.signal(rustix::process::Signal::TERM);
    assert!(deployment.host.wait_for_exit().success());
    let source = write(dir.path(), &version("four"));
    let (code, out, err) = install(&deployment, &source, &[]);
    assert_eq!(code, 0, "{out}{err}");
    let read = |folder: &Path| fs::read(folder.join("policy.wasm")).unwrap();
    assert_eq!(read(&source), read(&installed.join("p")));
}

#[test]
fn invalid_version_changes_nothing() {
    let deployment = start();
    let dir = tempfile::tempdir().unwrap();
    let source = write(dir.path(), &version("two"));
    let manifest = fs::read_to_string(source.join("policy.toml")).unwrap();
    let before = fs::read(deployment.policies().join("p/policy.wasm")).unwrap();
    let case = r#"{"name": "n", "request": {"body": {"model": "auto", "messages": []}},
        "fleet": {"lanes": [{"name": "a", "models": ["auto"]}]}, "expect": {"lane": "b"}}"#;
    for (limits, case, expected) in [
        ("[limits]\ndeadline = \"101ms\"", "", "[manifest_invalid]"),
        ("", "{", "[case_invalid]"),
        ("", &*case.replace('\n', " "), "[case_failed]"),
    ] {
        fs::write(source.join("policy.toml"), format!("{manifest}\n{limits}")).unwrap();
        fs::write(source.join("cases.jsonl"), case).unwrap();
        let (code, out, err) = install(&deployment, &source, &[]);
        assert!(code == 78 && err.contains(expected), "{code} {out}{err}");
        assert!(err.contains(text(&source)), "{err}");
        let names = fs::read_dir(deployment.policies()).unwrap().count();
        let now = fs::read(deployment.policies().join("p/policy.wasm")).unwrap();
        assert_eq!((names, now == before), (1, true));
    }
    let other = dir.path().join("other.tar");
    fs::write(&other, [1; 1024]).unwrap();
    let (code, _, err) = install(&deployment, &other, &[]);
    assert!(code != 0 && err.contains("[archive_invalid]"), "{err}");
    assert_eq!(deployment.reason("auto"), "one");
}
