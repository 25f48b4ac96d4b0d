//! `pointsman check`.

use std::process::Command;

use pointsman_tests::host::{program, root};

use crate::{FAKE_ENGINE, lane};

fn check(file: &std::path::Path) -> (Option<i32>, String, String) {
    let output = Command::new(program(FAKE_ENGINE)).arg("check").arg(file).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn every_example_is_good() {
    let mut count = 0;
    for entry in std::fs::read_dir(root().join("examples")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|kind| kind == "toml") {
            let (code, out, err) = check(&path);
            assert_eq!(code, Some(0), "{}: {out}{err}", path.display());
            assert!(out.contains("cortex@"), "{out}");
            count += 1;
        }
    }
    assert!(count >= 3, "{count} examples");
}

#[test]
fn all_mistakes_are_told_with_file_line_and_key() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("bad.toml");
    std::fs::write(&file, "[server]\nlisten = \"here\"\n[queue]\nmax-wait = 5\n").unwrap();
    let (code, _, err) = check(&file);
    assert_eq!(code, Some(78));
    let name = file.display();
    for line in [
        format!("{name}:2: server.listen: "),
        format!("{name}:4: queue.max-wait: "),
        format!("{name}:1: lanes: there is no lane"),
    ] {
        assert!(err.contains(&line), "{line}\n{err}");
    }
    let (code, _, err) = check(&dir.path().join("none.toml"));
    assert!(code == Some(78) && err.contains("cannot be read"), "{err}");
}

#[test]
fn policies_are_loaded_too() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("p.toml");
    std::fs::write(
        &file,
        format!("[[policies.chain]]\nname = \"none\"\n{}", lane("a", &["a"], &[])),
    )
    .unwrap();
    let (code, _, err) = check(&file);
    assert_eq!(code, Some(78));
    assert!(err.contains("policy `none`") && err.contains("policy.toml is missing"), "{err}");
}
