//! `pointsman check`.

use std::process::Command;

use pointsman_tests::host::{program, root};

use crate::{FAKE_ENGINE, lane};

fn check(file: &std::path::Path) -> (Option<i32>, String, String) {
    let output = Command::new(program(FAKE_ENGINE)).arg("check").arg(file).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn examples_are_valid() {
    let mut count = 0;
    for entry in std::fs::read_dir(root().join("examples")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|kind| kind == "toml") {
            let (code, out, err) = check(&path);
            assert_eq!(code, Some(0), "{}: {out}{err}", path.display());
            assert!(out.contains("cortex@"), "{out}");
            count += 1;
        }
    }
    assert!(count >= 3, "{count} examples");
}

#[test]
fn all_errors_have_file_line_key_and_code() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("bad.toml");
    std::fs::write(&file, "[server]\nlisten = \"here\"\n[queue]\nmax-wait = 5\n").unwrap();
    let (code, _, err) = check(&file);
    assert_eq!(code, Some(78));
    let name = file.display();
    for (position, error_code) in [
        (format!("{name}:2: server.listen: "), "[invalid_value]"),
        (format!("{name}:4: queue.max-wait: "), "[wrong_type]"),
        (format!("{name}:1: lanes: "), "[missing_key]"),
    ] {
        let mut lines = err.lines();
        let found = lines.any(|line| line.starts_with(&position) && line.ends_with(error_code));
        assert!(found, "{position} … {error_code} is not in\n{err}");
    }
    let (code, _, err) = check(&dir.path().join("none.toml"));
    assert!(code == Some(78) && err.contains("none.toml"), "{err}");
    assert!(err.trim_end().ends_with("[unreadable]"), "{err}");
}

#[test]
fn names_of_lanes_are_printed() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("p.toml");
    let engine = "driver = \"vllm\"\nmodel = \"org/name\"\nadapters = { sql = \"/l/sql\" }\n";
    let lane = format!("[[lanes]]\nname = \"a\"\nmodels = [\"m\"]\n[lanes.engine]\n{engine}");
    std::fs::write(&file, lane).unwrap();
    let (code, out, err) = check(&file);
    assert_eq!(code, Some(0), "{err}");
    let line = out.lines().find_map(|line| line.trim().strip_prefix("models: "));
    assert_eq!(line, Some("m, a:sql, sql, a; also org/name, name"));
}

#[test]
fn one_problem_is_reported_once_and_missing_programs_are_warned_about() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("p.toml");
    let model = dir.path().join("model.safetensors");
    std::fs::write(&model, "").unwrap();
    let lane = "[[lanes]]\nname = \"a\"\ngroup = \"g\"\nmax-context = 1024\n[lanes.engine]\n";
    let group = "[[groups]]\nname = \"g\"\nmemory = \"9GiB\"\n";
    let engine = format!("driver = \"vllm\"\nmodel = {model:?}\n");
    std::fs::write(&file, format!("{group}{lane}{engine}")).unwrap();
    let (code, _, err) = check(&file);
    assert_eq!((code, err.matches("lanes[0].engine.model").count()), (Some(78), 1), "{err}");
    let lane = "[[lanes]]\nname = \"a\"\n[lanes.engine]\ndriver = \"command\"\n";
    for (program, is_missing) in [("no-such-program", true), ("./no-such", true), ("sh", false)] {
        let engine = format!("command = [{program:?}, \"{{port}}\"]\n");
        std::fs::write(&file, format!("{lane}{engine}")).unwrap();
        let (code, out, err) = check(&file);
        assert_eq!(code, Some(0), "{err}");
        let warns = out.lines().any(|line| {
            line.trim().starts_with("warning") && line.contains(&format!("`{program}`"))
        });
        assert_eq!(warns, is_missing, "{out}");
    }
}

#[test]
fn variables_are_named_and_secrets_are_not_shown() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("p.toml");
    let lane = "[[lanes]]\nname = \"a\"\nmodels = [\"${TEAM_TOKEN}\"]\n[lanes.engine]\n\
                driver = \"llama-cpp\"\nmodel = \"${MODEL_DIR}/m.gguf\"\n";
    std::fs::write(&file, lane).unwrap();
    let mut command = Command::new(program(FAKE_ENGINE));
    command.arg("check").arg(&file).env("MODEL_DIR", dir.path()).env("TEAM_TOKEN", "s3cret");
    let output = command.output().unwrap();
    let out = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{out}");
    let model = dir.path().join("m.gguf");
    let warns = |line: &str| line.trim().starts_with("warning: the model ");
    let warning = out.lines().find(|line| warns(line)).unwrap();
    assert!(warning.contains(&*model.to_string_lossy()), "{warning}");
    assert!(out.contains("\n  variable MODEL_DIR: lanes[0].engine.model\n"), "{out}");
    assert!(out.contains("models: ${TEAM_TOKEN}") && !out.contains("s3cret"), "{out}");
    std::fs::write(&model, "").unwrap();
    let out = String::from_utf8(command.output().unwrap().stdout).unwrap();
    assert!(!out.lines().any(warns), "{out}");

    // Values are not parsed as TOML, and errors do not show them either.
    command.env("TEAM_TOKEN", "x\"\n[queue]\ntotal = 0\ns3cret\n");
    command.env_remove("MODEL_DIR");
    let output = command.output().unwrap();
    let err = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(78), "{err}");
    assert!(err.contains("p.toml:6: lanes[0].engine.model: ") && !err.contains("s3cret"), "{err}");
    assert!(err.trim_end().ends_with("[unavailable]"), "{err}");
}

#[test]
fn check_loads_policies() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("p.toml");
    std::fs::write(
        &file,
        format!("[[policies.chain]]\nname = \"none\"\n{}", lane("a", &["a"], &[])),
    )
    .unwrap();
    let (code, _, err) = check(&file);
    assert_eq!(code, Some(78));
    assert!(err.contains("none/policy.toml") && err.contains("[file_missing]"), "{err}");
    assert!(err.starts_with(&format!("{}:2: policies.chain[0].name: ", file.display())), "{err}");
}

#[test]
fn invalid_policy_configuration_is_reported_with_file_line_and_key() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("p.toml");
    let policies = root().join("policies");
    let chain =
        "[[policies.chain]]\nname = \"quota\"\nconfig = { tenants = { a = { wrong = 1 } } }\n";
    let text = format!("[policies]\ndir = {policies:?}\n{chain}{}", lane("a", &["a"], &[]));
    std::fs::write(&file, text).unwrap();
    let (code, _, err) = check(&file);
    assert_eq!(code, Some(78));
    let position = format!("{}:5: policies.chain[0].config.tenants.a.wrong: ", file.display());
    assert!(err.starts_with(&position), "{err}");
    assert!(err.trim_end().ends_with("[config_invalid]"), "{err}");
}

#[test]
fn limits_above_the_maximums_are_refused_with_their_line() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("p.toml");
    let folder = dir.path().join("policies/cortex");
    std::fs::create_dir_all(&folder).unwrap();
    for name in ["policy.toml", "policy.wasm", "cases.jsonl"] {
        std::fs::copy(root().join("policies/cortex").join(name), folder.join(name)).unwrap();
    }
    let lane = lane("a", &["a"], &[]);
    let config = |limits: &str| {
        let text = format!("[[policies.chain]]\nname = \"cortex\"\n{limits}{lane}");
        std::fs::write(&file, text).unwrap();
        check(&file)
    };
    let (code, _, err) = config("deadline = \"500ms\"\nmemory = \"2GiB\"\n");
    assert_eq!(code, Some(78));
    for (line, key) in [(3, "deadline"), (4, "memory")] {
        let position = format!("{}:{line}: policies.chain[0].{key}: ", file.display());
        let found = err.lines().find(|line| line.starts_with(&position));
        assert!(found.is_some_and(|line| line.ends_with("[out_of_range]")), "{err}");
    }
    assert_eq!(config("deadline = \"100ms\"\nmemory = \"256MiB\"\n").0, Some(0));

    // In the manifest, `build` and `test` refuse them as well.
    let manifest = folder.join("policy.toml");
    let text = std::fs::read_to_string(&manifest).unwrap();
    std::fs::write(&manifest, text.replace("memory = \"16MiB\"", "memory = \"2GiB\"")).unwrap();
    let policy = |command: &str| {
        let mut policy = Command::new(program(FAKE_ENGINE));
        let output = policy.args(["policy", command]).arg(&folder).output().unwrap();
        (output.status.code(), String::new(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    for (code, _, err) in [config(""), policy("build"), policy("test")] {
        assert!(code != Some(0) && err.contains("[manifest_invalid]"), "{err}");
        assert!(
            err.contains(&format!("{}: ", manifest.display())) && err.contains("line 9"),
            "{err}"
        );
    }
}
