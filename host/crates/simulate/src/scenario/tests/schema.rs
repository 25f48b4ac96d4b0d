//! The schema agrees with the reader, in all tests of the reader.

use std::sync::OnceLock;

use pointsman_fuzz::json_schema::accepts;

use super::*;

fn is_accepted(source: &str) -> Option<bool> {
    static SCHEMA: OnceLock<serde_json::Value> = OnceLock::new();
    let schema = SCHEMA.get_or_init(|| schema().unwrap());
    let table: toml::Table = source.parse().ok()?;
    Some(accepts(schema, &serde_json::to_value(table).unwrap()))
}

/// Asserts that the schema accepts what the reader accepts, and rejects unknown keys.
pub(super) fn assert_agrees(source: &str, read: &Result<Scenario, Vec<Diagnostic>>) {
    let Some(is_accepted) = is_accepted(source) else { return };
    match read {
        Ok(_) => assert!(is_accepted, "the schema rejects\n{source}"),
        Err(errors) => {
            let is_unknown = |error: &&Diagnostic| error.code == Code::UnknownKey;
            let unknown: Vec<&Diagnostic> = errors.iter().filter(is_unknown).collect();
            // The schema does not know what the keys of a variant replace.
            let is_seen = unknown.is_empty() || source.contains("[[variants]]");
            assert!(!is_accepted || is_seen, "the schema accepts\n{source}\n{unknown:?}");
        }
    }
}

#[test]
fn examples_are_accepted() {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../examples/scenarios");
    let mut count = 0;
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|kind| kind == "toml") {
            let source = std::fs::read_to_string(&path).unwrap();
            assert_eq!(is_accepted(&source), Some(true), "{}", path.display());
            assert!(!description(&source).contains(":schema"));
            count += 1;
        }
    }
    assert!(count >= 4);
}

#[test]
fn invalid_values_are_rejected() {
    let rest = "duration = \"1h\"\nfleet.config = \"p.toml\"";
    for (keys, expected) in [
        ("", true),
        ("seeds = 3", true),
        ("seeds = [3]", true),
        ("seed = 3", false),
        ("title = 3", false),
        ("traffic = [{ model = \"a\", rate = \"1/h\", prompt = 1, output = 1 }]", true),
        ("traffic = [{ modell = \"a\", rate = \"1/h\", prompt = 1, output = 1 }]", false),
        ("engines.a.kv-tokens = 7", true),
        ("engines.a.kv-token = 7", false),
        ("tenants = [{ name = \"a\", weight = 0 }]", false),
        ("failures = [{ lane = \"a\", kind = \"crush\", at = \"1h\" }]", false),
    ] {
        assert_eq!(is_accepted(&format!("{keys}\n{rest}")), Some(expected), "{keys}");
    }
}
