//! The commands for policy authors: `pointsman policy new`, `build`, `test`, `bench` and `sign`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use pointsman_tests::guests::build;
use pointsman_tests::host::{program, root};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::FAKE_ENGINE;
use crate::clients::prepared_dir;

/// Runs `pointsman policy …` with an empty compilation cache; returns exit code, standard output
/// and standard error.
pub(crate) fn policy(arguments: &[&str]) -> (i32, String, String) {
    let cache = tempfile::tempdir().unwrap();
    let mut command = Command::new(program(FAKE_ENGINE));
    command.arg("policy").args(arguments).env("XDG_CACHE_HOME", cache.path());
    let output = command.stdin(Stdio::null()).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

/// Returns a copy of the Cortex policy that a test may change.
fn cortex() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("cortex");
    fs::create_dir(&folder).unwrap();
    for file in ["policy.toml", "policy.wasm", "cases.jsonl"] {
        fs::copy(root().join("policies/cortex").join(file), folder.join(file)).unwrap();
    }
    (dir, folder)
}

/// Returns a directory with a guest policy without golden cases.
fn guest(name: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(
        dir.path().join("policy.toml"),
        format!("name = {name:?}\nversion = \"1\"\napi = \"0.1\"\n"),
    )
    .unwrap();
    fs::write(dir.path().join("policy.wasm"), build(name)).unwrap();
    dir
}

/// Returns the words of a line.
fn words(line: &str) -> Vec<&str> {
    line.split_whitespace().collect()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Applies a change to every golden case.
fn edit_cases(folder: &Path, change: impl Fn(usize, &mut Value)) {
    let file = folder.join("cases.jsonl");
    let cases = fs::read_to_string(&file).unwrap();
    let changed = cases.lines().enumerate().map(|(index, line)| {
        let mut case: Value = serde_json::from_str(line).unwrap();
        change(index, &mut case);
        format!("{case}\n")
    });
    let changed: String = changed.collect();
    fs::write(file, changed).unwrap();
}

/// Returns the numbers in a text.
fn numbers(text: &str) -> Vec<usize> {
    text.split(|letter: char| !letter.is_ascii_digit())
        .filter_map(|part| part.parse().ok())
        .collect()
}

/// Returns the number of golden cases that passed.
fn passed_cases(out: &str) -> usize {
    out.lines().filter(|line| line.starts_with("ok ")).count()
}

#[test]
fn policy_test_runs_golden_cases_and_shows_differences() {
    let (_dir, folder) = cortex();
    let all = fs::read_to_string(folder.join("cases.jsonl")).unwrap().lines().count();
    let (code, out, err) = policy(&["test", text(&folder)]);
    assert_eq!((code, err.as_str()), (0, ""), "{out}");
    assert!(out.starts_with("cortex 0.1.0 "), "{out}");
    assert!(numbers(out.lines().last().unwrap()).contains(&all), "{out}");
    assert_eq!(passed_cases(&out), all, "{out}");
    assert!(!out.contains('\u{1b}'), "no colours without a terminal");

    edit_cases(&folder, |index, case| {
        if index == 1 {
            case["expect"] =
                json!({ "lane": "governance", "fallback": ["x"], "why": case["expect"]["why"] });
        }
    });
    let (code, out, err) = policy(&["test", text(&folder)]);
    assert_eq!((code, err.as_str()), (1, ""), "{out}");
    let lines: Vec<&str> = out.lines().collect();
    let failed = lines.iter().position(|line| line.starts_with("DIFFERS")).unwrap();
    assert_eq!(words(lines[failed]), ["DIFFERS", "2", "coder", "by", "name"]);
    assert_eq!(words(lines[failed + 1]), ["lane", "expected", "governance"]);
    assert_eq!(words(lines[failed + 2]).last(), Some(&"coder"));
    assert!(
        lines[failed + 3].contains("fallback") && lines[failed + 3].ends_with(r#"["x"]"#),
        "{out}"
    );
    let summary = numbers(lines.last().unwrap());
    assert!(summary.contains(&all) && summary.contains(&1), "{out}");
    assert_eq!(passed_cases(&out), all - 1, "{out}");
    // A host reports the same failure.
    let config = folder.parent().unwrap().join("pointsman.toml");
    fs::write(
        &config,
        "[policies]\ndir = \".\"\n[[policies.chain]]\nname = \"cortex\"\n[[lanes]]\n\
        name = \"a\"\n[lanes.engine]\ndriver = \"external\"\n\
        url = \"http://127.0.0.1:1/v1\"\n",
    )
    .unwrap();
    let check = Command::new(program(FAKE_ENGINE)).arg("check").arg(&config).output().unwrap();
    let err = String::from_utf8_lossy(&check.stderr).into_owned();
    for part in ["[case_failed]", "cases.jsonl", "`coder by name`", "governance", "coder"] {
        assert!(err.contains(part), "{part}: {err}");
    }

    let (code, out, _) = policy(&["test", text(&folder), "--case", "orchestrator by", "--times"]);
    assert_eq!(code, 0, "{out}");
    let line = out.lines().find(|line| line.starts_with("ok ")).unwrap();
    assert!(line.ends_with("µs") || line.ends_with("ms"), "{out}");
    assert_eq!(passed_cases(&out), 1, "{out}");
    let (code, _, err) = policy(&["test", text(&folder), "--case", "no such case"]);
    assert!(code == 1 && err.contains("cortex") && err.contains("no such case"), "{err}");
}

#[test]
fn unloadable_policy_has_its_own_exit_code() {
    let (_dir, folder) = cortex();
    let broken = [
        ("policy.toml", "colour = 5\n", "[manifest_invalid]"),
        ("cases.jsonl", "{\"name\": \"x\"}\n", "[case_invalid]"),
        ("policy.wasm", "", "[component_invalid]"),
    ];
    for (file, content, error_code) in broken {
        let before = fs::read(folder.join(file)).unwrap();
        let after = if file == "policy.toml" {
            [content.as_bytes(), &before].concat()
        } else {
            content.as_bytes().to_vec()
        };
        fs::write(folder.join(file), after).unwrap();
        let (code, out, err) = policy(&["test", text(&folder)]);
        assert!(
            code == 78 && out.is_empty() && err.contains(file) && err.contains(error_code),
            "{file}: {code} {err}"
        );
        fs::write(folder.join(file), before).unwrap();
    }
    let (code, _, err) = policy(&["test", "/nowhere"]);
    assert!(code == 78 && err.contains("/nowhere/policy.toml"), "{err}");
    assert!(err.contains("[file_missing]"), "{err}");
    let trap = guest("trap-in-configure");
    let (code, _, err) = policy(&["test", text(trap.path())]);
    assert!(code == 78 && err.contains("[configure_failed]"), "{err}");
    let fine = guest("no-opinion");
    let (code, out, _) = policy(&["test", text(fine.path())]);
    // Without golden cases, the command points to the file in which a host looks for them.
    assert!(code == 0 && out.contains("cases.jsonl") && passed_cases(&out) == 0, "{out}");
}

#[test]
fn policy_bench_measures_calls() {
    let (dir, folder) = cortex();
    let fleet = dir.path().join("fleet.json");
    fs::write(&fleet, r#"{"lanes": [{"name": "coder"}, {"name": "writer", "state": "unloaded"}]}"#)
        .unwrap();
    let body = dir.path().join("body.json");
    fs::write(&body, r#"{"model": "coder", "messages": []}"#).unwrap();
    let (code, out, err) = policy(&[
        "bench",
        text(&folder),
        "--json",
        "--fresh",
        "--lanes",
        "1,8,64",
        "--calls",
        "200",
        "--fleet",
        text(&fleet),
        "--body",
        text(&body),
    ]);
    assert_eq!(code, 0, "{err}");
    let report: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((&report["policy"], &report["version"]), (&json!("cortex"), &json!("0.1.0")));
    assert_eq!(
        report["component_bytes"],
        json!(fs::metadata(folder.join("policy.wasm")).unwrap().len())
    );
    assert!(report["compiled_in_us"].as_f64().unwrap() > 0.0);
    let rows = report["measured"].as_array().unwrap();
    let kinds: Vec<(Value, Value, Value)> = rows
        .iter()
        .map(|row| (row["lanes"].clone(), row["instance"].clone(), row["calls"].clone()))
        .collect();
    let expected = [1, 8, 64].into_iter().flat_map(|lanes| {
        [(json!(lanes), json!("warm"), json!(200)), (json!(lanes), json!("new"), json!(20))]
    });
    assert_eq!(kinds, expected.collect::<Vec<_>>());
    for row in rows {
        let [p50, p99, max] = ["p50_us", "p99_us", "max_us"].map(|key| row[key].as_f64().unwrap());
        assert!(0.0 < p50 && p50 <= p99 && p99 <= max, "{row}");
        assert_eq!(row["no_advice"], 0, "{row}");
        assert_eq!(
            row["memory_bytes"].as_u64().is_some_and(|bytes| bytes > 0),
            row["instance"] == "warm",
            "{row}"
        );
    }

    // Failed calls are counted and not timed, and the reason of the first one is shown.
    let failing = guest("policy-error");
    let (code, out, err) = policy(&["bench", text(failing.path()), "--calls", "10"]);
    assert_eq!(code, 0, "{err}");
    // The error of the guest is `out-of-budget`.
    assert!(out.contains("budget"), "{out}");
    let row = out.lines().map(words).find(|row| row.contains(&"warm")).unwrap();
    let columns = row.iter().skip_while(|word| **word != "warm").copied().collect::<Vec<_>>();
    assert_eq!(columns[..5], ["warm", "10", "-", "-", "-"], "{out}");
    assert_eq!(columns.last(), Some(&"10"), "{out}");
    let (code, _, err) = policy(&["bench", text(&folder), "--lanes", "0"]);
    assert!(code == 2 && err.contains("--lanes") && err.contains("1024"), "{err}");
    let (code, _, err) = policy(&["bench", text(&folder), "--body", "/nowhere.json"]);
    assert!(code == 1 && err.contains("/nowhere.json"), "{err}");
}

#[test]
fn signed_policy_is_loaded_where_signatures_are_required() {
    let (dir, folder) = cortex();
    let fixtures = root().join("host/crates/policy/fixtures/keys");
    let (private, public) = (fixtures.join("private.pem"), fixtures.join("public.pem"));
    let config = dir.path().join("pointsman.toml");
    fs::write(
        &config,
        format!(
            "[policies]\ndir = \".\"\nsigners = [{{ name = \"release\", file = {public:?} }}]\n\
         [[policies.chain]]\nname = \"cortex\"\n[[lanes]]\nname = \"a\"\n[lanes.engine]\n\
         driver = \"external\"\nurl = \"http://127.0.0.1:1/v1\"\n"
        ),
    )
    .unwrap();
    let check = || {
        let output = Command::new(program(FAKE_ENGINE)).arg("check").arg(&config).output().unwrap();
        (output.status.code().unwrap(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, err) = check();
    assert!(code == 78 && err.contains("[signature_missing]"), "{err}");
    let (code, out, err) = policy(&["sign", text(&folder), "--key", text(&private)]);
    assert!(code == 0 && out.contains("policy.sig"), "{err}");
    let (code, err) = check();
    assert_eq!(code, 0, "{err}");
    let manifest = fs::read_to_string(folder.join("policy.toml")).unwrap();
    fs::write(folder.join("policy.toml"), manifest.replace("16MiB", "17MiB")).unwrap();
    let (code, err) = check();
    assert!(code == 78 && err.contains("[signature_untrusted]"), "{err}");
    let (code, _, err) = policy(&["sign", text(&folder), "--key", text(&public)]);
    assert!(code == 1 && err.contains(text(&public)) && err.contains("ed25519"), "{err}");
}

#[test]
fn policy_new_creates_folder_and_prints_next_step() {
    let dir = tempfile::tempdir().unwrap();
    let parent = dir.path().join("policies");
    for (language, name) in [("js", "mine"), ("python", "hers"), ("c", "his"), ("rust", "theirs")] {
        let (code, out, err) = policy(&["new", name, "--lang", language, "--dir", text(&parent)]);
        assert_eq!(code, 0, "{err}");
        let folder = parent.join(name);
        assert!(out.contains(&format!("pointsman policy build {}", text(&folder))), "{out}");
        assert!(folder.join("cases.jsonl").exists() && folder.join("README.md").exists());
    }
    let (code, _, err) = policy(&["new", "mine", "--lang", "c", "--dir", text(&parent)]);
    assert!(code == 1 && err.contains(text(&parent.join("mine"))), "{err}");
    let (code, _, err) = policy(&["new", "x", "--lang", "cobol", "--dir", text(&parent)]);
    assert!(code == 2 && err.contains("cobol") && err.contains("javascript"), "{err}");
    let (code, _, err) = policy(&["test", text(&parent.join("mine"))]);
    let parts = ["policy.wasm", "policy build", "[file_missing]"];
    assert!(code == 78 && parts.iter().all(|part| err.contains(part)), "{err}");
}

/// Needs only the JavaScript tool, which the build finds beside the policy.
#[test]
fn new_policy_is_built_and_tested() {
    let dir = tempfile::tempdir().unwrap();
    let (code, _, err) =
        policy(&["new", "mine", "--lang", "javascript", "--dir", text(dir.path())]);
    assert_eq!(code, 0, "{err}");
    let folder = dir.path().join("mine");
    let modules = prepared_dir("POINTSMAN_NODE", "node").join("node_modules");
    std::os::unix::fs::symlink(modules, folder.join("node_modules")).unwrap();
    let (code, out, err) = policy(&["build", text(&folder), "--verbose"]);
    assert_eq!(code, 0, "{err}");
    assert!(out.starts_with(text(&folder.join("policy.wasm"))), "{out}");
    assert!(err.contains("componentize-qjs"), "{err}");
    // The same source is the same version, unless the author asks for another build.
    let built = fs::read(folder.join("policy.wasm")).unwrap();
    let (code, _, err) = policy(&["build", text(&folder), "--verbose"]);
    assert!(code == 0 && !err.contains("componentize-qjs"), "{err}");
    assert_eq!(fs::read(folder.join("policy.wasm")).unwrap(), built);
    // The SDK of an earlier program is replaced by the one of this program.
    let sdk = folder.join("sdk/random.js");
    let current = fs::read_to_string(&sdk).unwrap();
    fs::write(&sdk, "// old").unwrap();
    let (code, _, err) = policy(&["build", text(&folder), "--update-sdk"]);
    assert_eq!((code, fs::read_to_string(&sdk).unwrap()), (0, current), "{err}");
    let (code, _, err) = policy(&["build", text(&folder), "--verbose", "--force"]);
    assert!(code == 0 && err.contains("componentize-qjs"), "{err}");
    let (code, out, err) = policy(&["test", text(&folder)]);
    // Four golden cases and one scenario.
    assert!(code == 0 && out.contains("Long prompts"), "{out}{err}");
    assert_eq!(passed_cases(&out), 5, "{out}");

    // An error in the source is reported with its file, and the existing component is kept.
    let before = fs::read(folder.join("policy.wasm")).unwrap();
    fs::write(folder.join("src/policy.js"), "export default {{{").unwrap();
    let (code, _, err) = policy(&["build", text(&folder)]);
    assert!(code == 1 && err.contains("policy.js"), "{err}");
    assert_eq!(fs::read(folder.join("policy.wasm")).unwrap(), before);
}
