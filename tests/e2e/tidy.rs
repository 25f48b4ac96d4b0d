//! What should stay true of the tree.

use std::fs;
use std::path::{Path, PathBuf};

use pointsman_tests::host::root;
use pointsman_xtask::{guest_inputs_sha256, sha256};

/// Lines of a file of code, and of one of tests.
const MOST_LINES: (usize, usize) = (420, 600);

/// All files of the tree with that ending, as paths from its root.
fn files(ending: &str) -> Vec<PathBuf> {
    fn walk(dir: &Path, ending: &str, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            let hidden =
                name.starts_with('.') && name != ".ci" && name != ".cargo" && name != ".config";
            if path.is_dir() && !hidden && name != "target" && name != "node_modules" {
                walk(&path, ending, found);
            } else if name.ends_with(ending) {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    walk(&root(), ending, &mut found);
    assert!(!found.is_empty(), "no files end with {ending}");
    found
}

fn is_test(path: &Path) -> bool {
    let path = path.strip_prefix(root()).unwrap();
    path.ends_with("tests.rs")
        || path
            .components()
            .any(|part| ["tests", "benches"].iter().any(|of| part.as_os_str() == *of))
}

#[test]
fn files_are_short() {
    for path in files(".rs") {
        let most = if is_test(&path) { MOST_LINES.1 } else { MOST_LINES.0 };
        let text = fs::read_to_string(&path).unwrap();
        // Tests at the end of a file count as tests.
        let code = text.split("\n#[cfg(test)]\nmod tests {").next().unwrap().lines().count();
        assert!(
            code <= most,
            "{} has {code} lines, and {most} are the limit: would two files be better?",
            path.display()
        );
    }
}

#[test]
fn nothing_is_left_undone() {
    let left =
        ["todo!(", "unimplemented!(", "#[ignore", "FIXME", "TODO"].map(|word| word.to_owned());
    for path in files(".rs").into_iter().filter(|path| !path.ends_with("tidy.rs")) {
        let text = fs::read_to_string(&path).unwrap();
        for word in &left {
            assert!(!text.contains(word.as_str()), "{}: {word}", path.display());
        }
        assert!(
            text.ends_with('\n') && !text.lines().any(|line| line.ends_with(' ')),
            "{}: stray blanks",
            path.display()
        );
    }
}

#[test]
fn paths_of_no_machine_are_in_the_tree() {
    let home = ["/home/", "/root/"];
    for ending in [".rs", ".toml", ".md", ".py", ".mjs", ".jsonl", "run"] {
        for path in files(ending).into_iter().filter(|path| !path.ends_with("tidy.rs")) {
            let text = fs::read_to_string(&path).unwrap();
            assert!(!home.iter().any(|home| text.contains(home)), "{}", path.display());
        }
    }
    for path in files(".wasm") {
        let bytes = fs::read(&path).unwrap();
        for part in ["/root/", "/home/", "/rustc/"] {
            assert!(
                !bytes.windows(part.len()).any(|window| window == part.as_bytes()),
                "{}: {part}",
                path.display()
            );
        }
    }
}

#[test]
fn every_policy_is_small_tested_and_fresh() {
    for entry in fs::read_dir(root().join("policies")).unwrap() {
        let folder = entry.unwrap().path();
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        let manifest = fs::read_to_string(folder.join("policy.toml")).unwrap();
        let value = |key: &str| {
            let line = manifest
                .lines()
                .find(|line| line.starts_with(&format!("{key} = ")))
                .unwrap_or_else(|| panic!("{name}: no {key}"));
            line.split('"').nth(1).unwrap().to_owned()
        };
        let wasm = fs::read(folder.join("policy.wasm")).unwrap();
        assert!(wasm.len() < 100_000, "{name}: {} bytes", wasm.len());
        let cases = fs::read_to_string(folder.join("cases.jsonl")).unwrap().lines().count();
        assert!(cases >= 10, "{name} has {cases} golden cases");
        let stale = "its sources have changed; run `cargo xtask guests`";
        assert_eq!(
            guest_inputs_sha256(&root(), &value("source"), &value("api")).unwrap(),
            value("inputs-sha256"),
            "{name}: {stale}"
        );
        assert_eq!(sha256(&wasm), value("component-sha256"), "{name}: {stale}");
    }
}

/// A released contract never changes: what is added makes a new version of it.
#[test]
fn the_contract_is_frozen() {
    let list = fs::read_to_string(root().join("wit/0.1/wit.sha256")).unwrap();
    assert_eq!(list.lines().count(), 3);
    for line in list.lines() {
        let (digest, file) = line.split_once("  ").unwrap();
        let text = fs::read(root().join("wit/0.1").join(file)).unwrap();
        assert_eq!(sha256(&text), digest, "{file} has changed; see wit/README.md");
    }
}

/// Which crate may know which.
#[test]
fn arrows_between_crates_go_one_way() {
    let arrows = [
        ("build", vec![]),
        ("domain", vec![]),
        ("openai", vec!["domain"]),
        ("policy", vec!["domain"]),
        ("fleet", vec!["domain"]),
        ("record", vec!["domain"]),
        ("gateway", vec!["domain", "fleet", "openai", "record"]),
        ("settings", vec!["domain", "policy"]),
        ("simulate", vec!["domain", "openai", "policy", "record", "settings"]),
    ];
    for (name, allowed) in &arrows {
        let manifest =
            fs::read_to_string(root().join("host/crates").join(name).join("Cargo.toml")).unwrap();
        for (other, _) in &arrows {
            let depends = manifest.contains(&format!("pointsman-{other} ="));
            assert_eq!(depends, allowed.contains(other), "{name} -> {other}");
        }
        assert_eq!(manifest.contains("wasmtime ="), *name == "policy");
    }
}
