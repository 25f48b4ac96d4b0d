//! The commands for those who write policies: new, build, test, bench, sign.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use pointsman_tests::guests::build;
use pointsman_tests::host::{program, root};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::FAKE_ENGINE;
use crate::clients::prepared;

/// Run `pointsman policy …` where compiled policies are kept in a folder of its own: exit code, standard output and error.
fn policy(arguments: &[&str]) -> (i32, String, String) {
    let cache = tempfile::tempdir().unwrap();
    let mut command = Command::new(program(FAKE_ENGINE));
    command.arg("policy").args(arguments).env("XDG_CACHE_HOME", cache.path());
    let output = command.stdin(Stdio::null()).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

/// A copy of Cortex's policy, to be changed.
fn cortex() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("cortex");
    fs::create_dir(&folder).unwrap();
    for file in ["policy.toml", "policy.wasm", "cases.jsonl"] {
        fs::copy(root().join("policies/cortex").join(file), folder.join(file)).unwrap();
    }
    (dir, folder)
}

/// A folder with a policy of a few lines, without golden cases.
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

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Change what golden cases say.
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

#[test]
fn golden_cases_are_run_and_a_broken_one_shows_how_it_differs() {
    let (_dir, folder) = cortex();
    let all = fs::read_to_string(folder.join("cases.jsonl")).unwrap().lines().count();
    let (code, out, err) = policy(&["test", text(&folder)]);
    assert_eq!((code, err.as_str()), (0, ""), "{out}");
    assert!(out.starts_with("cortex 0.1.0 in "), "{out}");
    assert!(out.ends_with(&format!("\n{all} golden cases, all as they should be\n")), "{out}");
    assert_eq!(out.lines().filter(|line| line.starts_with("ok ")).count(), all, "{out}");
    assert!(!out.contains('\u{1b}'), "no colours where nobody sees them");

    edit_cases(&folder, |index, case| {
        if index == 1 {
            case["expect"] =
                json!({ "lane": "governance", "fallback": ["x"], "why": case["expect"]["why"] });
        }
    });
    let (code, out, err) = policy(&["test", text(&folder)]);
    assert_eq!((code, err.as_str()), (1, ""), "{out}");
    let lines: Vec<&str> = out.lines().collect();
    let differs = lines.iter().position(|line| line.starts_with("DIFFERS")).unwrap();
    assert_eq!(lines[differs], "DIFFERS     2  coder by name");
    assert_eq!(
        lines[differs + 1].split_whitespace().collect::<Vec<_>>(),
        ["lane", "expected", "governance"]
    );
    assert_eq!(lines[differs + 2].split_whitespace().collect::<Vec<_>>(), ["got", "coder"]);
    assert!(
        lines[differs + 3].contains("fallback") && lines[differs + 3].ends_with(r#"["x"]"#),
        "{out}"
    );
    assert_eq!(
        *lines.last().unwrap(),
        format!("{all} golden cases, 1 of them otherwise than expected")
    );
    // The same that a host says of it.
    let config = folder.parent().unwrap().join("pointsman.toml");
    fs::write(&config, "[policies]\ndir = \".\"\n[[policies.chain]]\nname = \"cortex\"\n[[lanes]]\nname = \"a\"\n[lanes.engine]\ndriver = \"external\"\nurl = \"http://127.0.0.1:1/v1\"\n").unwrap();
    let check = Command::new(program(FAKE_ENGINE)).arg("check").arg(&config).output().unwrap();
    let said = String::from_utf8_lossy(&check.stderr).into_owned();
    assert!(
        said.contains("golden case 2 (`coder by name`): expected lane governance, got coder"),
        "{said}"
    );

    let (code, out, _) = policy(&["test", text(&folder), "--case", "orchestrator by", "--times"]);
    assert_eq!(code, 0, "{out}");
    let line = out.lines().find(|line| line.starts_with("ok ")).unwrap();
    assert!(line.ends_with("µs") || line.ends_with("ms"), "{out}");
    assert!(out.ends_with("1 golden case, all as they should be\n"), "{out}");
    let (code, _, err) = policy(&["test", text(&folder), "--case", "no such case"]);
    assert_eq!(
        (code, err.trim()),
        (1, "no golden case of `cortex` has \"no such case\" in its name")
    );
}

#[test]
fn a_policy_that_no_host_would_load_is_told_apart_from_one_that_decides_otherwise() {
    let (_dir, folder) = cortex();
    let broken = [
        ("policy.toml", "colour = 5\n", "unknown field `colour`"),
        ("cases.jsonl", "{\"name\": \"x\"}\n", "missing field `request`"),
        ("policy.wasm", "", "no WebAssembly component"),
    ];
    for (file, content, said) in broken {
        let before = fs::read(folder.join(file)).unwrap();
        let after = if file == "policy.toml" {
            [content.as_bytes(), &before].concat()
        } else {
            content.as_bytes().to_vec()
        };
        fs::write(folder.join(file), after).unwrap();
        let (code, out, err) = policy(&["test", text(&folder)]);
        assert!(
            code == 78 && out.is_empty() && err.contains(file) && err.contains(said),
            "{file}: {code} {err}"
        );
        fs::write(folder.join(file), before).unwrap();
    }
    let (code, _, err) = policy(&["test", "/nowhere"]);
    assert!(code == 78 && err.contains("/nowhere/policy.toml is missing"), "{err}");
    let trap = guest("trap-in-configure");
    let (code, _, err) = policy(&["test", text(trap.path())]);
    assert!(code == 78 && err.contains("failed when it was configured"), "{err}");
    let fine = guest("no-opinion");
    let (code, out, _) = policy(&["test", text(fine.path())]);
    assert!(
        code == 0 && out.contains("no golden cases") && out.contains("note: a host looks for"),
        "{out}"
    );
}

#[test]
fn calls_are_timed() {
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
    let figures: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((&figures["policy"], &figures["version"]), (&json!("cortex"), &json!("0.1.0")));
    assert_eq!(
        figures["component_bytes"],
        json!(fs::metadata(folder.join("policy.wasm")).unwrap().len())
    );
    assert!(figures["compiled_in_us"].as_f64().unwrap() > 0.0);
    let rows = figures["measured"].as_array().unwrap();
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

    // What fails is counted and not timed, and the reason is shown.
    let failing = guest("policy-error");
    let (code, out, err) = policy(&["bench", text(failing.path()), "--calls", "10"]);
    assert_eq!(code, 0, "{err}");
    assert!(
        out.contains("a short chat") && out.contains("\nthe first call without advice: "),
        "{out}"
    );
    let row = out.lines().find(|line| line.starts_with("as given")).unwrap();
    assert_eq!(
        row.split_whitespace().skip(2).collect::<Vec<_>>()[..5],
        ["warm", "10", "-", "-", "-"],
        "{out}"
    );
    assert!(row.ends_with(" 10"), "{out}");
    let (code, _, err) = policy(&["bench", text(&folder), "--lanes", "0"]);
    assert!(code == 2 && err.contains("from 1 to 1024"), "{err}");
    let (code, _, err) = policy(&["bench", text(&folder), "--body", "/nowhere.json"]);
    assert!(code == 1 && err.contains("/nowhere.json cannot be read"), "{err}");
}

#[test]
fn a_signed_policy_is_taken_where_signatures_are_wanted() {
    let (dir, folder) = cortex();
    let fixtures = root().join("host/crates/policy/fixtures/keys");
    let (private, public) = (fixtures.join("private.pem"), fixtures.join("public.pem"));
    let config = dir.path().join("pointsman.toml");
    fs::write(&config, format!(
        "[policies]\ndir = \".\"\nsigners = [{{ name = \"release\", file = {public:?} }}]\n[[policies.chain]]\nname = \"cortex\"\n[[lanes]]\nname = \"a\"\n[lanes.engine]\ndriver = \"external\"\nurl = \"http://127.0.0.1:1/v1\"\n"
    )).unwrap();
    let check = || {
        let output = Command::new(program(FAKE_ENGINE)).arg("check").arg(&config).output().unwrap();
        (output.status.code().unwrap(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, said) = check();
    assert!(code == 78 && said.contains("policy.sig is missing"), "{said}");
    let (code, out, err) = policy(&["sign", text(&folder), "--key", text(&private)]);
    assert!(code == 0 && out.contains("policy.sig: signed"), "{err}");
    let (code, said) = check();
    assert_eq!(code, 0, "{said}");
    let manifest = fs::read_to_string(folder.join("policy.toml")).unwrap();
    fs::write(folder.join("policy.toml"), manifest.replace("16MiB", "17MiB")).unwrap();
    let (code, said) = check();
    assert!(code == 78 && said.contains("for another component or manifest"), "{said}");
    let (code, _, err) = policy(&["sign", text(&folder), "--key", text(&public)]);
    assert!(
        code == 1 && err.contains(text(&public)) && err.contains("no private ed25519 key"),
        "{err}"
    );
}

#[test]
fn a_new_policy_has_a_folder_that_says_what_comes_next() {
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
    assert!(code == 1 && err.contains("is there already"), "{err}");
    let (code, _, err) = policy(&["new", "x", "--lang", "cobol", "--dir", text(&parent)]);
    assert!(code == 2 && err.contains("there are rust, javascript, python and c"), "{err}");
    let (code, _, err) = policy(&["test", text(&parent.join("mine"))]);
    assert!(code == 78 && err.contains("policy.wasm is missing"), "{err}");
}

/// With the one tool that JavaScript needs, which is found beside the policy.
#[test]
fn a_new_policy_is_built_tested_and_timed() {
    let dir = tempfile::tempdir().unwrap();
    let (code, _, err) =
        policy(&["new", "mine", "--lang", "javascript", "--dir", text(dir.path())]);
    assert_eq!(code, 0, "{err}");
    let folder = dir.path().join("mine");
    let modules = prepared("POINTSMAN_NODE", "node").join("node_modules");
    std::os::unix::fs::symlink(modules, folder.join("node_modules")).unwrap();
    let (code, out, err) = policy(&["build", text(&folder), "--verbose"]);
    assert_eq!(code, 0, "{err}");
    assert!(
        out.starts_with(text(&folder.join("policy.wasm"))) && out.contains(" MiB, built in "),
        "{out}"
    );
    assert!(err.contains("componentize-qjs"), "{err}");
    let (code, out, err) = policy(&["test", text(&folder)]);
    assert!(
        code == 0 && out.contains("\n4 golden cases, all as they should be\nok       Long prompts"),
        "{out}{err}"
    );

    // A mistake in the source is said with its place, and what was built before stays.
    let before = fs::read(folder.join("policy.wasm")).unwrap();
    fs::write(folder.join("src/policy.js"), "export default {{{").unwrap();
    let (code, _, err) = policy(&["build", text(&folder)]);
    assert!(code == 1 && err.contains("policy.js"), "{err}");
    assert_eq!(fs::read(folder.join("policy.wasm")).unwrap(), before);
}
