//! Policies that were built for every version of the contract there ever was, which every host has to run.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use pointsman_tests::host::{program, root};
use pointsman_xtask::sha256;

use crate::FAKE_ENGINE;

/// What is kept, by file, with its digest.
fn kept() -> Vec<(String, String)> {
    let list = fs::read_to_string(folder().join("compat.sha256")).unwrap();
    let line = |line: &str| {
        let (digest, file) = line.split_once("  ").unwrap();
        (file.to_owned(), digest.to_owned())
    };
    list.lines().map(line).collect()
}

fn folder() -> PathBuf {
    root().join("tests/compat")
}

#[test]
fn what_is_kept_is_never_changed() {
    let kept = kept();
    for (file, digest) in &kept {
        assert_eq!(sha256(&fs::read(folder().join(file)).unwrap()), *digest, "{file} has changed");
    }
    let files = kept.iter().map(|(file, _)| file.as_str());
    let versions: BTreeSet<&str> = files.filter_map(|file| file.split('/').next()).collect();
    for entry in fs::read_dir(folder()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        assert!(
            !path.is_dir() || versions.contains(name.as_str()),
            "{name} is not in compat.sha256"
        );
    }
}

/// Each loads, and decides as it did when it was built.
#[test]
fn policies_of_every_version_of_the_contract_are_served() {
    let cache = tempfile::tempdir().unwrap();
    let kept = kept();
    let policies: Vec<&str> =
        kept.iter().filter_map(|(file, _)| file.strip_suffix("/policy.wasm")).collect();
    for policy in &policies {
        let mut command = Command::new(program(FAKE_ENGINE));
        command.args(["policy", "test"]).arg(folder().join(policy));
        let output = command.env("XDG_CACHE_HOME", cache.path()).output().unwrap();
        let said =
            String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success() && said.ends_with("all as they should be\n"),
            "{policy}: {said}"
        );
    }
    assert!(policies.iter().any(|policy| policy.starts_with("0.1.0/")), "{policies:?}");
}

/// Else a change could break what nobody noticed.
#[test]
fn the_policies_of_a_version_use_all_that_it_has() {
    let has = |text: &str, part: &str| text.contains(&format!("pointsman:policy/{part}@0.1.0"));
    let components: Vec<String> = kept()
        .iter()
        .filter(|(file, _)| file.starts_with("0.1.0/") && file.ends_with(".wasm"))
        .map(|(file, _)| {
            String::from_utf8_lossy(&fs::read(folder().join(file)).unwrap()).into_owned()
        })
        .collect();
    let interfaces = ["types", "request", "fleet", "log", "metrics", "state", "lifecycle"];
    for part in interfaces.into_iter().chain(["on-request", "on-failure", "on-complete", "on-tick"])
    {
        assert!(components.iter().any(|component| has(component, part)), "none has {part}");
    }
}
