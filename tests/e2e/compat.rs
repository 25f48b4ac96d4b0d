//! Policies that were built for released versions of the contract, which every host must run.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use pointsman_tests::host::{program, root};
use pointsman_xtask::sha256;

use crate::FAKE_ENGINE;

/// The versions of the contract of which policies are preserved.
const VERSIONS: [&str; 2] = ["0.1.0", "0.1.2"];

/// Returns the preserved files and their digests.
fn preserved_files() -> Vec<(String, String)> {
    let list = fs::read_to_string(directory().join("compat.sha256")).unwrap();
    let line = |line: &str| {
        let (digest, file) = line.split_once("  ").unwrap();
        (file.to_owned(), digest.to_owned())
    };
    list.lines().map(line).collect()
}

fn directory() -> PathBuf {
    root().join("tests/compat")
}

#[test]
fn preserved_policies_are_unchanged() {
    let files = preserved_files();
    for (file, digest) in &files {
        assert_eq!(
            sha256(&fs::read(directory().join(file)).unwrap()),
            *digest,
            "{file} has changed"
        );
    }
    let names = files.iter().map(|(file, _)| file.as_str());
    let versions: BTreeSet<&str> = names.filter_map(|file| file.split('/').next()).collect();
    for entry in fs::read_dir(directory()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        assert!(
            !path.is_dir() || versions.contains(name.as_str()),
            "{name} is not in compat.sha256"
        );
    }
}

/// Each policy loads, and its golden cases pass as they did when it was built.
#[test]
fn policies_of_released_contract_versions_pass_golden_cases() {
    let cache = tempfile::tempdir().unwrap();
    let files = preserved_files();
    let policies: Vec<&str> =
        files.iter().filter_map(|(file, _)| file.strip_suffix("/policy.wasm")).collect();
    for policy in &policies {
        let mut command = Command::new(program(FAKE_ENGINE));
        command.args(["policy", "test"]).arg(directory().join(policy));
        let output = command.env("XDG_CACHE_HOME", cache.path()).output().unwrap();
        let (out, err) = (String::from_utf8_lossy(&output.stdout), &output.stderr);
        assert!(output.status.success(), "{policy}: {out}{}", String::from_utf8_lossy(err));
        let cases = fs::read_to_string(directory().join(policy).join("cases.jsonl")).unwrap();
        let passed = out.lines().filter(|line| line.starts_with("ok ")).count();
        assert_eq!(passed, cases.lines().count(), "{policy}: {out}");
    }
    for version in VERSIONS {
        assert!(policies.iter().any(|policy| policy.starts_with(version)), "{policies:?}");
    }
}

/// Otherwise a change could break a part of the contract unnoticed.
#[test]
fn preserved_policies_use_whole_contract() {
    let interfaces = ["types", "request", "fleet", "log", "metrics", "state", "lifecycle"];
    let hooks = ["on-request", "on-failure", "on-complete", "on-tick"];
    for version in VERSIONS {
        let components: Vec<String> = preserved_files()
            .iter()
            .filter(|(file, _)| file.starts_with(version) && file.ends_with(".wasm"))
            .map(|(file, _)| {
                String::from_utf8_lossy(&fs::read(directory().join(file)).unwrap()).into_owned()
            })
            .collect();
        for part in interfaces.into_iter().chain(hooks) {
            let name = format!("pointsman:policy/{part}@{version}");
            let uses = components.iter().any(|component| component.contains(&name));
            assert!(uses, "no policy uses {name}");
        }
    }
}
