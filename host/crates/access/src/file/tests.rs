use std::os::unix::fs::PermissionsExt as _;

use pointsman_domain::Endpoint;

use super::*;
use crate::limits::{Budget, Period};

const HASH: &str = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
const OTHER: &str = "sha256:0000000000000000000000000000000000000000000000000000000000000000";

const WHOLE: &str = r#"
[[tenants]]
name = "acme"
weight = 3
limits = { tokens-per-minute = 200_000, budget = [{ period = "month", tokens = 50_000_000 }] }
[[groups]]
name = "staff"
shared-limits = { requests-per-minute = 600 }
[[groups]]
name = "interns"
parent = "staff"
models = ["coder", "fast_*"]
lanes = ["a"]
endpoints = ["chat-completions"]
listeners = ["127.0.0.1:8000", "unix:/run/a.sock"]
engine-admin = false
priority = { min = -10, max = 10 }
limits = { requests-per-minute = 60, concurrent = 4, queued = 0 }
[[keys]]
id = "k_1"
hash = "HASH"
tenant = "acme"
group = "interns"
expires = "2027-01-01T00:00:00Z"
[[keys]]
id = "k_2"
tenant = "other"
hashes = [{ hash = "OTHER", expires = 2027-01-01T00:00:00Z }]
limits = { budget = [{ period = "day", requests = 5, engine-seconds = 60 }] }
"#;

/// Returns a keys file with every key.
pub(crate) fn whole() -> String {
    WHOLE.replace("HASH", HASH).replace("OTHER", OTHER)
}

#[test]
fn whole_file_is_read() {
    let read = Definitions::parse(&whole()).unwrap();
    assert_eq!(
        (read.tenants[0].weight, read.tenants[0].limits.tokens_per_minute),
        (3, Some(200_000))
    );
    let interns = &read.groups[1];
    assert_eq!(interns.grants.endpoints, Some(vec![Endpoint::ChatCompletions]));
    assert_eq!(interns.grants.priority, Some(-10..=10));
    assert_eq!(
        (interns.grants.engine_admin, read.groups[0].grants.engine_admin),
        (Some(false), None)
    );
    assert_eq!((interns.limits.concurrent, interns.limits.queued), (Some(4), Some(0)));
    let new_year = parse_time("2027-01-01").unwrap();
    assert_eq!(read.keys[0].expires, Some(new_year));
    assert_eq!(read.keys[1].hashes[0].1, Some(new_year));
    let day =
        Budget { period: Period::Day, tokens: None, requests: Some(5), engine_seconds: Some(60) };
    assert_eq!(read.keys[1].limits.budgets, [day]);
}

#[test]
fn all_errors_are_reported_with_line_and_code() {
    let key = |more: &str| format!("[[keys]]\nid = \"k\"\ntenant = \"t\"\n{more}\n");
    let hash = format!("hash = \"{HASH}\"\n");
    for (text, line, code, path) in [
        (key(""), 1, "missing_key", "keys[0]"),
        (key("hash = \"pm_secret\""), 4, "invalid_value", "keys[0].hash"),
        (key(&format!("{hash}grup = \"g\"")), 5, "unknown_key", "keys[0].grup"),
        (key(&format!("{hash}group = \"g\"")), 5, "unknown_name", "keys[0].group"),
        (key(&format!("{hash}expires = \"soon\"")), 5, "invalid_value", "keys[0].expires"),
        (key(&format!("{hash}endpoints = [\"chat\"]")), 5, "unknown_name", "keys[0].endpoints"),
        (key(&format!("{hash}listeners = [\"x\"]")), 5, "invalid_value", "keys[0].listeners"),
        (
            key(&format!("{hash}priority = {{ min = 2, max = 1 }}")),
            5,
            "out_of_range",
            "keys[0].priority.min",
        ),
        (
            key(&format!("{hash}limits = {{ concurrent = 0 }}")),
            5,
            "out_of_range",
            "keys[0].limits.concurrent",
        ),
        (
            key(&format!("{hash}limits = {{ budget = [{{ period = \"day\" }}] }}")),
            5,
            "missing_key",
            "keys[0].limits.budget[0]",
        ),
        (
            key(&format!("{hash}limits = {{ budget = [{{ period = \"hour\", tokens = 1 }}] }}")),
            5,
            "invalid_value",
            "keys[0].limits.budget[0].period",
        ),
        (key(&hash) + &key(&format!("hash = \"{OTHER}\"")), 7, "duplicate", "keys[1].id"),
        (key(&hash) + &key(&hash).replace("\"k\"", "\"l\""), 9, "duplicate", "keys[1].hash"),
        (
            "[[groups]]\nname = \"a\"\nparent = \"b\"".to_owned(),
            3,
            "unknown_name",
            "groups[0].parent",
        ),
        ("[[groups]]\nname = \"a\"\nparent = \"a\"".to_owned(), 3, "conflict", "groups[0].parent"),
        (
            "[[tenants]]\nname = \"a\"\nweight = 0".to_owned(),
            3,
            "out_of_range",
            "tenants[0].weight",
        ),
        (
            "[[tenants]]\nname = \"a\"\n[[tenants]]\nname = \"a\"".to_owned(),
            4,
            "duplicate",
            "tenants[1].name",
        ),
    ] {
        let errors = Definitions::parse(&text).unwrap_err();
        let found = (errors[0].line, errors[0].code.as_str());
        assert_eq!(found, (line, code), "{errors:?}");
        assert!(errors[0].key.starts_with(path), "{errors:?}");
        assert!(!errors[0].message.contains("pm_secret"), "{errors:?}");
    }
    let errors = Definitions::parse("[[keys]]\nx = 1\n[[groups]]\ny = 2\n").unwrap_err();
    assert!(errors.len() >= 5, "{errors:?}");
}

#[test]
fn cycles_and_deep_groups_are_refused() {
    let chain = |count: usize, last: &str| -> String {
        let group = |at: usize| {
            let next =
                if at + 1 < count { format!("parent = \"g{}\"", at + 1) } else { last.to_owned() };
            format!("[[groups]]\nname = \"g{at}\"\n{next}\n")
        };
        (0..count).map(group).collect()
    };
    assert!(Definitions::parse(&chain(16, "")).is_ok());
    assert!(Definitions::parse(&chain(40, "")).is_err());
    let cycle = Definitions::parse(&chain(3, "parent = \"g0\"")).unwrap_err();
    assert_eq!(cycle.len(), 3, "{cycle:?}");
}

#[test]
fn files_that_others_can_write_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("keys.toml");
    std::fs::write(&file, whole()).unwrap();
    let set =
        |mode| std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
    set(0o640);
    assert!(Definitions::load(&file).is_ok());
    // Mounted secrets are links.
    let link = dir.path().join("link");
    std::os::unix::fs::symlink(&file, &link).unwrap();
    assert!(Definitions::load(&link).is_ok());
    for mode in [0o660, 0o602] {
        set(mode);
        let error = Definitions::load(&file).unwrap_err();
        assert_eq!(error.diagnostics()[0].code, Code::Unreadable, "{error}");
    }
    let missing = Definitions::load(&dir.path().join("none")).unwrap_err();
    assert_eq!(missing.diagnostics()[0].code, Code::Unreadable);
}
