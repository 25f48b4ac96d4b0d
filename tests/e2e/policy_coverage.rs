//! `pointsman policy test --coverage`.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use serde_json::Value;

use crate::clients::prepared_dir;
use crate::policy_cli::policy;
use crate::policy_simulation::text;

/// Code that no golden case and no scenario takes, on lines of its own.
const EXTRA: &str = "\
export function unused() {
  return 1;
}
const before = (call) =>
  call.request.model() === \"x\"
    ? 1
    : 2;
";

/// The regions of a file that were not taken, as line and kind.
fn not_taken(report: &Value) -> Vec<(u64, String)> {
    let regions = report["coverage"]["not_taken"].as_array().unwrap();
    let region = |region: &Value| {
        assert!(region["file"].as_str().unwrap().starts_with("src/policy."), "{region}");
        (region["line"].as_u64().unwrap(), region["what"].as_str().unwrap().to_owned())
    };
    regions.iter().map(region).collect()
}

fn json(output: &str) -> Value {
    serde_json::from_str(output).unwrap_or_else(|error| panic!("{error}: {output}"))
}

/// Creates and builds a policy with [`EXTRA`] at the end, and returns the number of lines before.
fn build_with_extra(dir: &Path, language: &str, source: &str) -> u64 {
    let (code, _, err) = policy(&["new", language, "--lang", language, "--dir", text(dir)]);
    assert_eq!(code, 0, "{err}");
    let folder = dir.join(language);
    let modules = prepared_dir("POINTSMAN_NODE", "node").join("node_modules");
    symlink(modules, folder.join("node_modules")).unwrap();
    let source = folder.join(source);
    let typed = if language == "typescript" { "(call: Call)" } else { "(call)" };
    let original = fs::read_to_string(&source).unwrap();
    let lines = original.lines().count() as u64;
    let called = original.replace(
        "const candidates = call.fleet.candidates();",
        "const candidates = call.fleet.candidates(); before(call);",
    );
    assert_ne!(called, original);
    fs::write(&source, called + &EXTRA.replace("(call)", typed)).unwrap();
    let (code, _, err) = policy(&["build", text(&folder)]);
    assert_eq!(code, 0, "{err}");
    lines
}

#[test]
fn coverage_names_the_branches_that_are_not_taken() {
    for (language, source) in [("javascript", "src/policy.js"), ("typescript", "src/policy.ts")] {
        let dir = tempfile::tempdir().unwrap();
        let lines = build_with_extra(dir.path(), language, source);
        let folder = dir.path().join(language);
        let component = fs::read(folder.join("policy.wasm")).unwrap();
        let test = |more: &[&str]| {
            let common = ["test", text(&folder), "--format", "json", "--coverage"];
            policy(&[&common[..], more].concat())
        };
        let (code, out, err) = test(&[]);
        assert_eq!(code, 0, "{language}: {out}{err}");
        let report = json(&out);
        let missed = not_taken(&report);
        for region in [(1, "function unused"), (6, "?")] {
            let region = (lines + region.0, region.1.to_owned());
            assert!(missed.contains(&region), "{language}: {region:?} in {missed:?}");
        }
        // The template's own cases take both ways of its first condition, and `:` is taken.
        assert!(!missed.contains(&(lines + 7, ":".to_owned())), "{language}: {missed:?}");
        let coverage = &report["coverage"];
        let count = |key: &str| coverage[key].as_u64().unwrap();
        assert_eq!(count("total") - count("taken"), missed.len() as u64, "{language}");
        assert!(count("taken") >= 6, "{language}: {coverage}");
        assert_eq!(coverage["warnings"], serde_json::json!([]));
        let cases = report["cases"].as_array().unwrap();
        assert!(cases.iter().all(|case| case["log"] == serde_json::json!([])), "{out}");

        // A part of the cases takes fewer branches.
        let (_, out, _) = test(&["--case", "long"]);
        assert!(json(&out)["coverage"]["taken"].as_u64().unwrap() < count("taken"), "{out}");
        let (code, out, err) = test(&["--coverage-min", "99.5"]);
        assert_eq!((code, &json(&out)["passed"]), (1, &Value::Bool(false)), "{err}");
        assert_eq!(json(&out)["coverage"]["code"], "coverage_below_minimum");
        assert!(err.contains("[coverage_below_minimum]"), "{err}");
        // The component in the folder stays the plain one.
        assert!(fs::read(folder.join("policy.wasm")).unwrap() == component, "{language}");
    }
}

#[test]
fn minimum_is_a_percentage() {
    for minimum in ["101", "-1", "many"] {
        let (code, _, err) = policy(&["test", ".", &format!("--coverage-min={minimum}")]);
        assert!(code == 2 && err.contains("--coverage-min"), "{minimum}: {err}");
    }
}
