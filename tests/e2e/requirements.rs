//! The table of requirements in `host/docs/cortex.md`: its tests and keys exist.

use std::fs;
use std::path::{Path, PathBuf};

use pointsman_tests::host::root;

/// Returns the words in backquotes of a cell.
fn words(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

/// Returns the rows of the table of requirements, as cells.
fn rows(page: &str) -> Vec<Vec<&str>> {
    let (_, table) = page.split_once("\n| where |").unwrap();
    let lines = table.lines().skip(2).take_while(|line| line.starts_with('|'));
    lines.map(|line| line.trim_matches('|').split(" | ").map(str::trim).collect()).collect()
}

/// Returns all Rust files of a folder and of the folders below it.
pub(crate) fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

#[test]
fn requirements_name_tests_and_keys_that_exist() {
    let page = fs::read_to_string(root().join("host/docs/cortex.md")).unwrap();
    let keys = fs::read_to_string(root().join("examples/pointsman.toml")).unwrap();
    let sources: Vec<(PathBuf, String)> = ["host", "tests"]
        .iter()
        .flat_map(|folder| rust_files(&root().join(folder)))
        .map(|path| (path.clone(), fs::read_to_string(path).unwrap()))
        .collect();
    let rows = rows(&page);
    assert!(rows.len() > 20, "{} rows", rows.len());
    let mut missing = Vec::new();
    for row in rows {
        let [_, requirement, how, row_keys, tests] = row[..] else { panic!("{row:?}") };
        assert!(!how.is_empty() && !tests.is_empty(), "{requirement}");
        for key in words(row_keys) {
            let last = key.rsplit('.').next().unwrap();
            let is_key = keys.contains(&format!("{last} = ")) || keys.contains(&format!("{key}]"));
            if !is_key {
                missing.push(format!("{requirement}: the key {key}"));
            }
        }
        for test in words(tests) {
            let (module, name) = test.rsplit_once("::").unwrap_or(("", test));
            let file =
                (!module.is_empty()).then(|| format!("e2e/{}.rs", module.replace("::", "/")));
            let head = format!("fn {name}()");
            let has_test = |(path, text): &(PathBuf, String)| {
                file.as_ref().is_none_or(|file| path.ends_with(file))
                    && text.lines().any(|line| line.trim_start().starts_with(&head))
            };
            if !sources.iter().any(has_test) {
                missing.push(format!("{requirement}: the test {test}"));
            }
        }
    }
    assert!(missing.is_empty(), "host/docs/cortex.md names what does not exist:\n{missing:#?}");
}
