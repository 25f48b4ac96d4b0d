//! `pointsman simulate`: the example scenarios, the ways to compare, and what it says about mistakes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use pointsman_tests::host::{program, root};
use serde_json::Value;
use tempfile::TempDir;

use crate::FAKE_ENGINE;

/// A desk with a cache of its own.
struct Desk(TempDir);

impl Desk {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Run a command: exit code, standard output and error.
    fn run(&self, arguments: &[&str]) -> (i32, String, String) {
        let mut command = Command::new(program(FAKE_ENGINE));
        command.args(arguments).env("XDG_CACHE_HOME", self.path("cache")).stdin(Stdio::null());
        let output = command.output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
    }

    /// Simulate, and read the figures.
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

/// Two lanes, a few requests, and the cortex policy.
fn small(desk: &Desk, more: &str) -> PathBuf {
    let policies = root().join("policies");
    let file = desk.path("small.toml");
    let text = format!(
        r#"title = "small"
lasts = "10m"
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
service = {{ first = "200ms", rest = "4s" }}
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

fn met(variant: &Value) -> Vec<bool> {
    variant["objectives"].as_array().unwrap().iter().map(|judged| judged["met"] == true).collect()
}

/// Names of the checked-in plots of a scenario.
fn checked_in(scenario: &str) -> Vec<(String, String)> {
    let folder = root().join("host/docs/simulation");
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if let Some((of, plot)) = name.strip_suffix(".svg").and_then(|name| name.split_once('.'))
            && of == scenario
        {
            found.push((format!("{plot}.svg"), fs::read_to_string(&path).unwrap()));
        }
    }
    found
}

/// The policies that an example is about meet its objectives; first come, first served does not. And whatever comes out is the same
/// as when the documentation was made, to the byte.
fn example_is_good(name: &str) {
    let desk = Desk::new();
    let (svg, html) = (desk.path("svg"), desk.path("report.html"));
    let (svg, html) = (svg.to_str().unwrap(), html.to_str().unwrap());
    let (code, figures) = desk.json(&example(name), &["--svg", svg, "--html", html]);
    let variants = figures["variants"].as_array().unwrap();
    assert_eq!((code, variants.len()), (0, 2), "{figures:#}");
    assert!(met(&variants[0]).iter().all(|met| *met), "{:#}", variants[0]["objectives"]);
    assert!(met(&variants[1]).iter().any(|met| !met), "{:#}", variants[1]["objectives"]);
    let plots = checked_in(name);
    assert!(!plots.is_empty(), "host/docs/simulation has no plot of {name}");
    for (plot, drawn) in plots {
        let now = fs::read_to_string(Path::new(svg).join(&plot)).unwrap_or_default();
        assert!(
            now == drawn,
            "host/docs/simulation/{name}.{plot} is not what comes out; run `cargo xtask plots`"
        );
    }
    // One run at a time, and policies from the cache.
    let again = desk.path("again.html");
    let (_, figures_again) =
        desk.json(&example(name), &["--jobs", "1", "--html", again.to_str().unwrap()]);
    assert_eq!(figures, figures_again);
    assert!(fs::read(html).unwrap() == fs::read(again).unwrap(), "two runs, two pages");
}

#[test]
fn the_day_of_cortex() {
    example_is_good("cortex-day");
}

#[test]
fn the_burst() {
    example_is_good("burst");
}

#[test]
fn the_failing_gpu() {
    example_is_good("failing-gpu");
}

#[test]
fn the_noisy_tenant() {
    example_is_good("noisy-tenant");
}

#[test]
fn objectives_are_the_exit_code() {
    let desk = Desk::new();
    for (objective, code) in [("lost == 0", 0), ("wait.max < 1ms", 1)] {
        let file = small(&desk, &format!("objectives = [\"{objective}\"]"));
        let (exit, out, err) = desk.run(&["simulate", file.to_str().unwrap()]);
        assert_eq!(exit, code, "{out}{err}");
        assert!(out.contains(objective) && out.contains("first-come@0.1.0+"), "{out}");
    }
}

#[test]
fn chains_are_compared_on_the_same_traffic() {
    let desk = Desk::new();
    let file = small(&desk, "seeds = 4\nobjectives = [\"lost == 0\"]");
    let spread = root().join("policies/spread");
    // As somebody builds it: the component alone, with the manifest beside it or without.
    let component = desk.path("first-come-2.wasm");
    fs::copy(root().join("policies/first-come/policy.wasm"), &component).unwrap();
    let compared = ["--compare", component.to_str().unwrap(), spread.to_str().unwrap(), "none"];
    let (code, figures) = desk.json(&file, &compared);
    assert_eq!(code, 0);
    let variants = figures["variants"].as_array().unwrap();
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
    let decided = |variant: &Value| variant["runs"][0]["policies"][0]["what"].to_string();
    assert!(
        decided(&variants[0]).contains("first-come@") && decided(&variants[1]).contains("spread@")
    );
    let (_, out, _) = desk.run(&[&["simulate", file.to_str().unwrap()], &compared[..]].concat());
    assert!(out.contains("±") && out.contains("better"), "two lanes are better than one: {out}");
}

#[test]
fn a_setting_is_swept_and_another_one_changed() {
    let desk = Desk::new();
    let file = small(&desk, "objectives = [\"lost == 0\"]");
    let more = [
        "--sweep",
        "fleet.lanes.a.slots=1,2,8",
        "--set",
        "traffic.all.rate=20/min",
        "--seeds",
        "2",
    ];
    let (code, figures) = desk.json(&file, &more);
    assert_eq!(code, 0);
    let points = figures["sweep"]["points"].as_array().unwrap();
    let waits: Vec<f64> = figures["variants"]
        .as_array()
        .unwrap()
        .iter()
        .map(|variant| variant["runs"][0]["all"]["wait-mean-ms"].as_f64().unwrap_or(f64::MAX))
        .collect();
    assert_eq!(
        (points.len(), figures["sweep"]["parameter"].as_str()),
        (3, Some("fleet.lanes.a.slots"))
    );
    assert!(waits[0] > waits[1] && waits[1] > waits[2], "more slots, shorter waits: {waits:?}");
}

#[test]
fn mistakes_are_named_where_they_are() {
    let desk = Desk::new();
    let file = small(&desk, "objektives = [\"lost == 0\"]");
    let file = file.to_str().unwrap();
    let (code, _, err) = desk.run(&["simulate", file]);
    assert_eq!(code, 78, "{err}");
    assert!(err.contains("small.toml:3: ") && err.contains("`objectives`"), "{err}");
    small(&desk, "objectives = [\"everybody.wait.p99 < 3s\"]");
    let (code, _, err) = desk.run(&["simulate", file]);
    assert!(code == 78 && err.contains("no class `everybody`"), "{err}");
    small(&desk, "");
    for (more, what) in [
        (["--set", "traffic.all.rates=1/h"], "rates"),
        (["--set", "nothing"], "there is no `=`"),
        (["--compare", "nowhere"], "nowhere/policy.toml cannot be read"),
    ] {
        let (code, out, err) = desk.run(&[&["simulate", file], &more[..]].concat());
        assert!(code != 0 && out.is_empty() && err.contains(what), "{more:?}: {err}");
    }
}

#[test]
fn a_scenario_beside_golden_cases_can_fail_a_policy() {
    let desk = Desk::new();
    let folder = desk.path("first-come");
    fs::create_dir_all(folder.join("scenarios")).unwrap();
    for file in ["policy.toml", "policy.wasm", "cases.jsonl"] {
        fs::copy(root().join("policies/first-come").join(file), folder.join(file)).unwrap();
    }
    for (objective, code, verdict) in
        [("lost == 0", 0, "1 of 1 objectives met"), ("wait.max < 1ms", 1, "0 of 1 objectives met")]
    {
        let text =
            fs::read_to_string(small(&desk, &format!("objectives = [\"{objective}\"]"))).unwrap();
        fs::write(folder.join("scenarios/small.toml"), text).unwrap();
        let (exit, out, err) = desk.run(&["policy", "test", folder.to_str().unwrap()]);
        assert_eq!(exit, code, "{out}{err}");
        assert!(
            out.contains("10 golden cases, all as they should be") && out.contains(verdict),
            "{out}"
        );
    }
}
