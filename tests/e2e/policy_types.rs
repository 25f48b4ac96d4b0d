//! The types of the SDKs: type checkers accept the templates, and find errors in policies.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

use crate::clients::prepared_dir;
use crate::policy_cli::policy;
use crate::policy_simulation::text;

/// Creates a policy with the tools of Node.
fn new_policy(language: &str) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let (code, _, err) = policy(&["new", "mine", "--lang", language, "--dir", text(dir.path())]);
    assert_eq!(code, 0, "{err}");
    let folder = dir.path().join("mine");
    let modules = prepared_dir("POINTSMAN_NODE", "node").join("node_modules");
    symlink(modules, folder.join("node_modules")).unwrap();
    (dir, folder)
}

/// Runs a program of `node_modules` in a folder.
fn run(folder: &Path, program: &str, arguments: &[&str]) -> (bool, String) {
    let program = folder.join("node_modules/.bin").join(program);
    output(Command::new(program).args(arguments).current_dir(folder))
}

fn output(command: &mut Command) -> (bool, String) {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = [stdout, stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    (status.success(), text)
}

#[test]
fn typescript_template_is_checked_tested_and_built() {
    let (_dir, folder) = new_policy("typescript");
    for project in [".", "test"] {
        let (passed, out) = run(&folder, "tsc", &["--noEmit", "--project", project]);
        assert!(passed, "{project}: {out}");
    }
    let source = folder.join("src/policy.ts");
    let original = fs::read_to_string(&source).unwrap();
    let check = |change: (&str, &str)| {
        assert!(original.contains(change.0), "{change:?}");
        fs::write(&source, original.replace(change.0, change.1)).unwrap();
        run(&folder, "tsc", &["--noEmit", "--pretty", "false"])
    };
    let (call, end) = ("call.fleet.candidates();", "return blend(");
    for (change, code) in [
        ((call, "call.fleet.kandidates();"), "TS2551"),
        ((call, "call.fleet.candidates(); fetch(\"http://x\");"), "TS2304"),
        ((call, "call.fleet.candidates(); setTimeout(() => {}, 1);"), "TS2304"),
        ((end, "return undefined; return blend("), "TS2322"),
    ] {
        let (passed, out) = check(change);
        assert!(!passed && out.contains(code), "{change:?}: {out}");
    }
    // What a component has besides the language.
    let (passed, out) = check((call, "call.fleet.candidates(); console.log(new TextEncoder());"));
    assert!(passed, "{out}");
    fs::write(&source, &original).unwrap();

    let (passed, out) = output(Command::new("npm").arg("test").current_dir(&folder));
    assert!(passed && out.contains("# pass 2") && out.contains("# skipped 1"), "{out}");
    let (code, _, err) = policy(&["build", text(&folder)]);
    assert_eq!(code, 0, "{err}");
    let (code, out, err) = policy(&["test", text(&folder)]);
    assert_eq!(code, 0, "{out}{err}");
}

#[test]
fn python_template_passes_the_type_checker() {
    let (_dir, folder) = new_policy("python");
    let (passed, out) = run(&folder, "pyright", &["--outputjson"]);
    let report: serde_json::Value = serde_json::from_str(&out).unwrap_or_else(|_| panic!("{out}"));
    assert!(passed && report["summary"]["errorCount"] == 0, "{out}");
    assert!(report["summary"]["filesAnalyzed"].as_u64().unwrap() > 0, "{out}");
    let source = folder.join("src/policy.py");
    let original = fs::read_to_string(&source).unwrap();
    let wrong = original.replace("call.fleet.candidates()", "call.fleet.kandidates()");
    assert_ne!(wrong, original);
    fs::write(&source, wrong).unwrap();
    let (passed, out) = run(&folder, "pyright", &["--outputjson"]);
    assert!(!passed && out.contains("reportAttributeAccessIssue"), "{out}");
}
