//! Faults of policies in simulations, and the helpers of the SDKs for tests.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use pointsman_tests::host::{program, root};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::FAKE_ENGINE;
use crate::policy_author::component;

pub(crate) fn pointsman(arguments: &[&str]) -> (i32, String, String) {
    let output = command(arguments).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

pub(crate) fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(program(FAKE_ENGINE));
    command.args(arguments).stdin(Stdio::null());
    command
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Returns a directory with a folder for a guest policy, with a golden case that expects this lane.
pub(crate) fn guest(name: &str, lane: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join(name);
    fs::create_dir(&folder).unwrap();
    let manifest = format!("name = {name:?}\nversion = \"1\"\napi = \"0.1\"\n");
    fs::write(folder.join("policy.toml"), manifest).unwrap();
    fs::write(folder.join("policy.wasm"), component(name)).unwrap();
    write_case(&folder, lane);
    dir
}

pub(crate) fn write_case(folder: &Path, lane: &str) {
    let case = json!({
        "name": "the only case", "request": { "body": { "model": "auto", "messages": [] } },
        "fleet": { "lanes": [{ "name": "a", "models": ["auto"] }] }, "expect": { "lane": lane },
    });
    fs::write(folder.join("cases.jsonl"), format!("{case}\n")).unwrap();
}

/// Returns the report and the text of a simulation of one policy.
pub(crate) fn simulate(dir: &Path, policy: &str, objectives: &[&str]) -> (i32, Value, String) {
    let scenario = dir.join("scenario.toml");
    let toml = format!(
        "title = \"one lane\"\nduration = \"1m\"\nseeds = 1\nobjectives = {objectives:?}\n\
         [[policies]]\nname = {policy:?}\ndir = {policy:?}\n\
         [[fleet.lanes]]\nname = \"a\"\nmodels = [\"auto\"]\nslots = 4\nload = \"always\"\n\
         [engines.a]\nprefill = 4000\ndecode = [[1, 40]]\n\
         [[traffic]]\nclass = \"people\"\nmodel = \"auto\"\nrate = \"20/min\"\nprompt = 100\n\
         output = 10\n"
    );
    fs::write(&scenario, toml).unwrap();
    let run =
        |more: &[&str]| pointsman(&[&["simulate", text(&scenario), "--quiet"][..], more].concat());
    let (code, json, err) = run(&["--json", "-"]);
    let report = serde_json::from_str(&json).unwrap_or_else(|error| panic!("{error}: {err}"));
    let (_, shown, _) = run(&[]);
    (code, report, shown)
}

#[test]
fn faults_errors_and_dropped_advice_are_metrics_of_a_simulation() {
    let objectives = ["policy.faults == 0", "policy.errors == 0", "policy.dropped == 0"];
    for (policy, metric, shown) in [
        ("unreachable", "faults", "unreachable"),
        ("policy-error", "errors", "budget"),
        ("edit-forbidden-field", "dropped", "/user"),
    ] {
        let dir = guest(policy, "a");
        let (code, report, text) = simulate(dir.path(), policy, &objectives);
        assert_eq!(code, 1, "{policy}: {text}");
        let variant = &report["variants"][0];
        let unmet: Vec<&Value> = variant["objectives"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|objective| objective["met"] == false)
            .map(|objective| &objective["objective"])
            .collect();
        assert_eq!(unmet, [&json!(format!("policy.{metric} == 0"))], "{policy}");
        let calls = &variant["runs"][0]["policy-calls"][0];
        assert!(calls[metric].as_u64().unwrap() > 0, "{policy}: {calls}");
        assert!(text.contains(shown), "{policy}: {text}");
    }
    // What a policy logs is shown; it is not a failure.
    let dir = guest("log-flood", "a");
    let (code, report, text) = simulate(dir.path(), "log-flood", &objectives);
    assert_eq!(code, 0, "{text}");
    let log = &report["variants"][0]["runs"][0]["policy-calls"][0]["log"];
    assert_eq!(log[0], "warn  a repeated line");
    assert!(text.contains("log  warn  a repeated line"), "{text}");
}

#[test]
fn helpers_of_the_sdks_run_cases_and_scenarios() {
    let dir = guest("no-opinion", "b");
    simulate(dir.path(), "no-opinion", &["people.served >= 1", "people.served < 1"]);
    let expected =
        ["the only case: lane: expected b, got a".to_owned(), "people.served < 1".to_owned()];
    let sdk = root().join("plugins/sdk");
    let script = format!(
        "import {{ failures, simulate, testPolicy }} from {:?};\n\
         console.log(JSON.stringify([failures(testPolicy(\"no-opinion\")), \
         failures(simulate(\"scenario.toml\", {{ seeds: 2 }}))]));\n",
        sdk.join("javascript/simulation.js")
    );
    fs::write(dir.path().join("run.mjs"), script).unwrap();
    // The module needs nothing of the package, whose other modules need the bindings.
    let python = format!(
        "import importlib.util, json\n\
         spec = importlib.util.spec_from_file_location(\"simulation\", {:?})\n\
         module = importlib.util.module_from_spec(spec)\nspec.loader.exec_module(module)\n\
         print(json.dumps([module.failures(module.run_tests(\"no-opinion\")), \
         module.failures(module.simulate(\"scenario.toml\", seeds=2))]))\n",
        sdk.join("python/pointsman/simulation.py")
    );
    fs::write(dir.path().join("run.py"), python).unwrap();
    for (interpreter, file) in [("node", "run.mjs"), ("python3", "run.py")] {
        let mut command = Command::new(interpreter);
        command
            .arg(file)
            .current_dir(dir.path())
            .env("POINTSMAN", program(FAKE_ENGINE))
            .env("PYTHONDONTWRITEBYTECODE", "1");
        let output = command.output().unwrap();
        let err = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{interpreter}: {err}");
        let found: [Vec<String>; 2] = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(found[0], [expected[0].clone()], "{interpreter}");
        assert!(found[1].len() == 1 && found[1][0].contains(&expected[1]), "{found:?}");
    }
}
