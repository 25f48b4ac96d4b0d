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

/// Asserts that the schema accepts what the reader accepts, and rejects unknown keys and wrong
/// types.
pub(super) fn assert_agrees(source: &str, read: &Result<Config, Vec<Diagnostic>>) {
    let Some(is_accepted) = is_accepted(source) else { return };
    match read {
        Ok(_) => assert!(is_accepted, "the schema rejects\n{source}"),
        Err(errors) => {
            let is_seen = |code| matches!(code, Code::UnknownKey | Code::WrongType);
            let seen: Vec<&Diagnostic> =
                errors.iter().filter(|error| is_seen(error.code)).collect();
            assert!(!is_accepted || seen.is_empty(), "the schema accepts\n{source}\n{seen:?}");
        }
    }
}

#[test]
fn examples_are_accepted() {
    for name in ["pointsman.toml", "quickstart.toml", "cortex.toml"] {
        let source = std::fs::read_to_string(example(name)).unwrap();
        assert_eq!(is_accepted(&source), Some(true), "{name}");
    }
}

#[test]
fn invalid_values_are_rejected() {
    for (keys, expected) in [
        ("", true),
        ("queue.total = 5", true),
        ("queue.total = -1", false),
        ("queue.totl = 5", false),
        ("queue.max-wait = \"5s\"", true),
        ("queue.max-wait = \"5\"", false),
        ("queue.max-wait = \"${WAIT}\"", true),
        ("server.response-model = \"asked\"", true),
        ("server.response-model = \"other\"", false),
        ("server.response-model = \"${NAME:-asked}\"", true),
        ("groups = [{ name = \"g\" }]", false),
        ("groups = [{ name = \"g\", memory = \"1GiB\" }]", true),
    ] {
        assert_eq!(is_accepted(&format!("{keys}\n{LANE}")), Some(expected), "{keys}");
    }
    assert_eq!(is_accepted("queue.total = 5"), Some(false));
    let external = "[[lanes]]\nname = \"a\"\nengine = { driver = \"external\" }\n";
    assert_eq!(is_accepted(external), Some(false));
    assert_eq!(is_accepted(&LANE.replace("external", "vllm")), Some(false));
}
