//! The version, which is that of the workspace in everything that is shipped.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use pointsman_tests::host::{program, root};

use crate::FAKE_ENGINE;

/// Returns `workspace.package.version`.
fn workspace_version() -> String {
    let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let manifest: toml::Table = manifest.parse().unwrap();
    manifest["workspace"]["package"]["version"].as_str().unwrap().to_owned()
}

/// Adds all files below a path.
fn files(path: &Path, found: &mut Vec<PathBuf>) {
    if path.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            files(&entry.unwrap().path(), found);
        }
    } else if path.exists() {
        found.push(path.to_owned());
    }
}

/// Returns the numbers with three parts in the lines that are about the version of Pointsman: tags
/// of its images, and keys named `version`.
fn versions(text: &str) -> Vec<&str> {
    let is_key = |line: &str| {
        let key = line.trim_start().to_lowercase();
        ["version", "appversion"].iter().any(|name| {
            key.strip_prefix(name).is_some_and(|rest| rest.trim_start().starts_with([':', '=']))
        })
    };
    let is_tag = |line: &str| {
        let mut words = line.split(|c: char| c.is_whitespace() || "\"'=".contains(c));
        words.any(|word| word.split('/').next_back().is_some_and(|w| w.starts_with("pointsman")))
    };
    let lines = text.lines().filter(|line| is_key(line) || is_tag(line));
    let numbers = lines.flat_map(|line| line.split(|c: char| !c.is_ascii_digit() && c != '.'));
    numbers
        .filter(|number| number.split('.').filter(|part| !part.is_empty()).count() == 3)
        .collect()
}

#[test]
fn versions_are_found_in_packages() {
    let text = "version: 1.2.3\nappVersion: \"1.2.4\"\nversion = \"1.2.5\";\n\
                image: registry/pointsman-x:${V:-1.2.6}\nImage=localhost/pointsman:1.2.7\n\
                kubeVersion: >=9.9.9\n# systemd 9.9.9\nother:9.9.9\nlisten: pointsman 127.0.0.1\n";
    assert_eq!(versions(text), ["1.2.3", "1.2.4", "1.2.5", "1.2.6", "1.2.7"]);
}

#[test]
fn packages_have_the_version_of_the_workspace() {
    let expected = workspace_version();
    let mut all = Vec::new();
    for path in ["flake.nix", "host/packaging"] {
        files(&root().join(path), &mut all);
    }
    for file in all {
        let text = fs::read_to_string(&file).unwrap_or_default();
        let found = versions(&text);
        assert!(found.iter().all(|version| *version == expected), "{}: {found:?}", file.display());
        if file.ends_with("Chart.yaml") {
            assert_eq!(found.len(), 2, "{}: version and appVersion", file.display());
        }
    }
}

#[test]
fn program_tells_its_version_and_that_of_wasmtime() {
    let output = Command::new(program(FAKE_ENGINE)).arg("--version").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], format!("pointsman {}", workspace_version()));
    assert!(lines[1].starts_with("commit "), "{text}");
    assert!(lines[2].starts_with("wasmtime "), "{text}");
}
