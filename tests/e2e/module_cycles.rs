//! Modules import only from modules below them: no cycle but of a parent with its children.
//!
//! The length of functions is checked by Clippy (`too_many_lines`), that of files by
//! `source_tree.rs`.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use pointsman_tests::host::root;
use pointsman_tests::module_graph::ModuleGraph;
use toml::Table;

/// Returns the folders of all packages.
fn packages() -> Vec<String> {
    let manifest: Table = fs::read_to_string(root().join("Cargo.toml")).unwrap().parse().unwrap();
    let members = manifest["workspace"]["members"].as_array().unwrap();
    members.iter().map(|member| member.as_str().unwrap().to_owned()).collect()
}

/// Returns the root files of the crates of a package.
fn crate_roots(package: &str) -> Vec<PathBuf> {
    let folder = root().join(package);
    let programs = fs::read_dir(folder.join("src/bin")).into_iter().flatten();
    let programs = programs.map(|entry| entry.unwrap().path());
    let roots = ["src/lib.rs", "src/main.rs", "e2e/main.rs"].map(|file| folder.join(file));
    let roots: Vec<PathBuf> =
        roots.into_iter().filter(|file| file.exists()).chain(programs).collect();
    assert!(!roots.is_empty(), "{package} has no crates");
    roots
}

#[test]
fn modules_import_in_one_direction() {
    let mut failures = String::new();
    let mut count = 0;
    for package in packages() {
        let mut cycles = Vec::new();
        for file in crate_roots(&package) {
            let graph = ModuleGraph::read(&file, |path| fs::read_to_string(path).ok());
            count += graph.len();
            cycles.extend(graph.cycles());
        }
        for cycle in cycles {
            writeln!(failures, "{package}: {cycle}").unwrap();
        }
    }
    assert!(failures.is_empty(), "{failures}");
    assert!(count > 200, "only {count} modules were found");
}
