//! `pointsman simulate`: the example scenarios, comparisons, sweeps, and errors.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use pointsman_tests::guests::Guest;
use pointsman_tests::host::{program, root};
use serde_json::Value;
use tempfile::TempDir;

use crate::FAKE_ENGINE;

/// A temporary directory with a compilation cache for `pointsman` commands.
struct TestDir(TempDir);

impl TestDir {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Runs a command; returns exit code, standard output and standard error.
    fn run(&self, arguments: &[&str]) -> (i32, String, String) {
        let mut command = Command::new(program(FAKE_ENGINE));
        command.args(arguments).env("XDG_CACHE_HOME", self.path("cache")).stdin(Stdio::null());
        let output = command.output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
    }

    /// Runs a simulation; returns its exit code and its JSON report.
    fn json(&self, scenario: &Path, more: &[&str]) -> (i32, Value) {
        let mut arguments = vec!["simulate", scenario.to_str().unwrap(), "--json", "-"];
        arguments.extend(more);
        let (code, out, err) = self.run(&arguments);
        (code, serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}{err}")))
    }
}

fn example(name: &str) -> PathBuf {
    root().join("examples/scenarios").join(name).with_extension("toml")
}

/// Writes a scenario with two lanes, a few requests and the `first-come` policy. `more` are further
/// keys of the scenario.
fn small_scenario(dir: &TestDir, more: &str) -> PathBuf {
    let policies = root().join("policies");
    let file = dir.path("small.toml");
    let text = format!(
        r#"title = "small"
duration = "10m"
{more}
[[fleet.lanes]]
name = "a"
models = ["auto"]
slots = 2
load = "always"
[[fleet.lanes]]
name = "b"
models = ["auto"]
slots = 2
load = "always"
[engines.default]
load = "1s"
service-time = {{ first-token = "200ms", rest = "4s" }}
[[policies]]
name = "first-come"
dir = "{}/first-come"
[[traffic]]
class = "all"
model = "auto"
rate = "30/min"
prompt = 100
output = 100
"#,
        policies.display()
    );
    fs::write(&file, text).unwrap();
    file
}

fn objectives_met(variant: &Value) -> Vec<bool> {
    variant["objectives"]
        .as_array()
        .unwrap()
        .iter()
        .map(|objective| objective["met"] == true)
        .collect()
}

/// Returns the names and contents of the committed plots of a scenario.
fn committed_plots(scenario: &str) -> Vec<(String, String)> {
    let folder = root().join("host/docs/simulation");
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if let Some((prefix, plot)) =
            name.strip_suffix(".svg").and_then(|name| name.split_once('.'))
            && prefix == scenario
        {
            found.push((format!("{plot}.svg"), fs::read_to_string(&path).unwrap()));
        }
    }
    found
}

/// Asserts that the policies of an example meet its objectives and that first come, first served
/// does not, and that the plots are identical to those of the documentation.
fn assert_example_meets_objectives(name: &str) {
    let dir = TestDir::new();
    let (svg, html) = (dir.path("svg"), dir.path("report.html"));
    let (svg, html) = (svg.to_str().unwrap(), html.to_str().unwrap());
    let (code, report) = dir.json(&example(name), &["--svg", svg, "--html", html]);
    let variants = report["variants"].as_array().unwrap();
    assert_eq!((code, variants.len()), (0, 2), "{report:#}");
    assert!(objectives_met(&variants[0]).iter().all(|met| *met), "{:#}", variants[0]["objectives"]);
    assert!(objectives_met(&variants[1]).iter().any(|met| !met), "{:#}", variants[1]["objectives"]);
    let plots = committed_plots(name);
    assert!(!plots.is_empty(), "host/docs/simulation has no plot of {name}");
    for (plot, committed) in plots {
        let now = fs::read_to_string(Path::new(svg).join(&plot)).unwrap_or_default();
        assert!(
            now == committed,
            "host/docs/simulation/{name}.{plot} is outdated; run `cargo xtask plots`"
        );
    }
    // One run at a time, and policies from the cache, give the same result.
    let again = dir.path("again.html");
    let (_, report_again) =
        dir.json(&example(name), &["--jobs", "1", "--html", again.to_str().unwrap()]);
    assert_eq!(report, report_again);
    assert!(
        fs::read(html).unwrap() == fs::read(again).unwrap(),
        "both HTML reports must be identical"
    );
}

#[test]
fn cortex_day_meets_objectives() {
    assert_example_meets_objectives("cortex-day");
}

#[test]
fn burst_meets_objectives() {
    assert_example_meets_objectives("burst");
}

#[test]
fn failing_gpu_meets_objectives() {
    assert_example_meets_objectives("failing-gpu");
}

#[test]
fn noisy_tenant_meets_objectives() {
    assert_example_meets_objectives("noisy-tenant");
}

#[test]
fn exit_code_reports_objectives() {
    let dir = TestDir::new();
    for (objective, code) in [("lost == 0", 0), ("wait.max < 1ms", 1)] {
        let file = small_scenario(&dir, &format!("objectives = [\"{objective}\"]"));
        let (exit, out, err) = dir.run(&["simulate", file.to_str().unwrap()]);
        assert_eq!(exit, code, "{out}{err}");
        assert!(out.contains(objective) && out.contains("first-come@0.1.0+"), "{out}");
    }
}

#[test]
fn chains_are_compared_with_same_traffic() {
    let dir = TestDir::new();
    let file = small_scenario(&dir, "seeds = 4\nobjectives = [\"lost == 0\"]");
    let spread = root().join("policies/spread");
    // A component may be given alone, with or without its manifest beside it.
    let component = dir.path("first-come-2.wasm");
    fs::copy(root().join("policies/first-come/policy.wasm"), &component).unwrap();
    let compared = ["--compare", component.to_str().unwrap(), spread.to_str().unwrap(), "none"];
    let (code, report) = dir.json(&file, &compared);
    assert_eq!(code, 0);
    let variants = report["variants"].as_array().unwrap();
    let names: Vec<&str> =
        variants.iter().map(|variant| variant["name"].as_str().unwrap()).collect();
    assert_eq!(names, compared[1..]);
    let accepted = |variant: &Value| -> Vec<u64> {
        let runs = variant["runs"].as_array().unwrap();
        runs.iter().map(|run| run["accepted"].as_u64().unwrap()).collect()
    };
    let first = accepted(&variants[0]);
    assert!(first.len() == 4 && first.iter().all(|count| *count > 200), "{first:?}");
    assert!(variants.iter().all(|variant| accepted(variant) == first));
    // One chain is compared with that of the scenario.
    let (_, alone) = dir.json(&file, &["--compare", "none"]);
    let variants_of_one = alone["variants"].as_array().unwrap();
    assert_eq!((variants_of_one.len(), &variants_of_one[1]["name"]), (2, &Value::from("none")));
    assert!(alone["comparison"].is_object(), "{alone:#}");
    let decided = |variant: &Value| variant["runs"][0]["policies"][0]["name"].to_string();
    assert!(
        decided(&variants[0]).contains("first-come@") && decided(&variants[1]).contains("spread@")
    );
    let (_, out, _) = dir.run(&[&["simulate", file.to_str().unwrap()], &compared[..]].concat());
    // Two lanes are better than one: the table shows a confidence interval.
    assert!(out.contains('±'), "{out}");
}

#[test]
fn parameter_is_swept_and_another_overridden() {
    let dir = TestDir::new();
    let file = small_scenario(&dir, "objectives = [\"lost == 0\"]");
    let more = [
        "--sweep",
        "fleet.lanes.a.slots=1,2,8",
        "--set",
        "traffic.all.rate=20/min",
        "--seeds",
        "2",
    ];
    let (code, report) = dir.json(&file, &more);
    assert_eq!(code, 0);
    let points = report["sweep"]["points"].as_array().unwrap();
    let waits: Vec<f64> = report["variants"]
        .as_array()
        .unwrap()
        .iter()
        .map(|variant| variant["runs"][0]["all"]["wait-mean-ms"].as_f64().unwrap_or(f64::MAX))
        .collect();
    assert_eq!(
        (points.len(), report["sweep"]["parameter"].as_str()),
        (3, Some("fleet.lanes.a.slots"))
    );
    assert!(
        waits[0] > waits[1] && waits[1] > waits[2],
        "more slots must give shorter waits: {waits:?}"
    );
}

/// Sends requests with images to lane 2, gold ones to lane 1, and others to lane 0.
const BY_HEADER_AND_MEDIA: &str = r#"
(USE request.header $header)
(ADVISE
  (call $header (TEXT "x-tier") (i32.const 3000))
  (i32.store (i32.const 2208) (select (i32.const 2)
    (i32.and (i32.load8_u (i32.const 3000))
      (i32.eq (i32.load8_u (i32.load (i32.const 3004))) (i32.const 103)))
    (local.get 13)))
  (i32.const 2048))"#;

#[test]
fn policies_route_by_headers_of_sessions_and_by_media() {
    let dir = TestDir::new();
    let policy = Guest::new("p").only(0).code(BY_HEADER_AND_MEDIA).write_to(&dir.path("policies"));
    let file = small_scenario(&dir, "");
    let text = fs::read_to_string(&file).unwrap();
    let (head, _) = text.split_once("[[policies]]").unwrap();
    let lane = "[[fleet.lanes]]\nname = \"c\"\nmodels = [\"auto\"]\nload = \"always\"\n";
    let policies = format!("[[policies]]\nname = \"p\"\ndir = {policy:?}\n");
    let stream = |class: &str, keys: &str| {
        format!(
            "[[traffic]]\nclass = \"{class}\"\nmodel = \"auto\"\nprompt = 9\noutput = 9\n{keys}\n"
        )
    };
    let tiers = "headers = { x-tier = { gold = 1, free = 1 } }\n\
                 sessions = { rate = \"30/min\", turns = 3, think-time = \"1s\" }";
    let traffic = [
        stream("tiers", tiers),
        stream("gold", "rate = \"9/min\"\nheaders = { x-tier = \"gold\" }"),
        stream("images", "rate = \"9/min\"\nmedia = 2"),
    ]
    .concat();
    fs::write(&file, format!("{head}{lane}{policies}{traffic}")).unwrap();
    let trace = dir.path("trace.jsonl");
    let (code, report) = dir.json(&file, &["--trace", trace.to_str().unwrap()]);
    assert_eq!(code, 0, "{report:#}");
    let mut lanes: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for line in fs::read_to_string(&trace).unwrap().lines() {
        let event: Value = serde_json::from_str(line).unwrap();
        if event["event"] == "decided" {
            let text = |key: &str| event[key].as_str().unwrap().to_owned();
            lanes.entry(text("class")).or_default().insert(text("lane"));
        }
    }
    let expected = [("gold", vec!["b"]), ("images", vec!["c"]), ("tiers", vec!["a", "b"])];
    let expected = expected.map(|(class, lanes)| {
        (class.to_owned(), lanes.into_iter().map(str::to_owned).collect::<BTreeSet<_>>())
    });
    assert_eq!(lanes, expected.into());
}

#[test]
fn scenario_with_a_refused_policy_is_named_once() {
    let dir = TestDir::new();
    let folder = dir.path("spread");
    fs::create_dir_all(folder.join("scenarios")).unwrap();
    for file in ["policy.toml", "policy.wasm"] {
        fs::copy(root().join("policies/spread").join(file), folder.join(file)).unwrap();
    }
    let text = fs::read_to_string(small_scenario(&dir, "")).unwrap();
    let text = text.replace("first-come", "spread");
    let text = text.replace("[[traffic]]", "config = { nonsense = 1 }\n[[traffic]]");
    let scenario = folder.join("scenarios/small.toml");
    fs::write(&scenario, text).unwrap();
    let (scenario, folder) = (scenario.to_str().unwrap(), folder.to_str().unwrap());
    for command in [["simulate", scenario].as_slice(), &["policy", "test", folder]] {
        let (code, _, err) = dir.run(command);
        assert_eq!(code, 78, "{err}");
        let count = |text: &str| err.matches(text).count();
        assert_eq!((count("small.toml"), count("nonsense")), (1, 1), "{err}");
    }
}

#[test]
fn errors_have_line_key_and_code() {
    let dir = TestDir::new();
    let file = small_scenario(&dir, "objektives = [\"lost == 0\"]");
    let file = file.to_str().unwrap();
    let (code, _, err) = dir.run(&["simulate", file]);
    assert_eq!(code, 78, "{err}");
    // The position, the code, and the key that was meant.
    let mut lines = err.lines().filter(|line| line.contains("small.toml:3: "));
    let line = lines.next().unwrap_or_else(|| panic!("no error in line 3: {err}"));
    assert!(line.ends_with("[unknown_key]") && line.contains("`objectives`"), "{err}");
    small_scenario(&dir, "objectives = [\"nosuch.wait.p99 < 3s\"]");
    let (code, _, err) = dir.run(&["simulate", file]);
    assert!(code == 78 && err.contains("small.toml:3: ") && err.contains("nosuch"), "{err}");
    assert!(err.contains("[unknown_name]"), "{err}");
    small_scenario(&dir, "");
    for (more, value) in [
        (["--set", "traffic.all.rates=1/h"], "rates"),
        (["--set", "nothing"], "nothing"),
        (["--compare", "nowhere"], "nowhere/policy.toml"),
    ] {
        let (code, out, err) = dir.run(&[&["simulate", file], &more[..]].concat());
        assert!(code != 0 && out.is_empty() && err.contains(value), "{more:?}: {err}");
    }
}

#[test]
fn policy_test_runs_scenarios() {
    let dir = TestDir::new();
    let folder = dir.path("first-come");
    fs::create_dir_all(folder.join("scenarios")).unwrap();
    for file in ["policy.toml", "policy.wasm", "cases.jsonl"] {
        fs::copy(root().join("policies/first-come").join(file), folder.join(file)).unwrap();
    }
    for (objective, code) in [("lost == 0", 0), ("wait.max < 1ms", 1)] {
        let text =
            fs::read_to_string(small_scenario(&dir, &format!("objectives = [\"{objective}\"]")))
                .unwrap();
        fs::write(folder.join("scenarios/small.toml"), text).unwrap();
        let (exit, out, err) = dir.run(&["policy", "test", folder.to_str().unwrap()]);
        assert_eq!(exit, code, "{out}{err}");
        // Ten golden cases and one scenario, which fails if its objective is not met.
        let passed = out.lines().filter(|line| line.starts_with("ok ")).count();
        let failed = out.lines().any(|line| line.starts_with("NOT MET "));
        assert_eq!((passed, failed), (10 + usize::from(code == 0), code == 1), "{out}");
    }
}
