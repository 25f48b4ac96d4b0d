//! `cargo xtask bench`: benchmarks of the parts (criterion) and of the whole (routed requests
//! compared with direct ones, and with HAProxy in front of the same engine). There are no
//! assertions about times, because machines differ and are noisy.

mod handover;
mod instructions;
mod keys;
mod reload;
mod simulation;
mod switch;
mod telemetry;
mod waiting;

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use pointsman_xtask::command::{cargo, output, run, target_dir};
use pointsman_xtask::setup;

/// Number of rounds of each measurement; tables show the medians.
const ROUNDS: usize = 3;

/// The key that the load generator sends.
const SECRET: &str = "pm_bench";

/// A part of the benchmark: name, title and function.
type Part = (&'static str, &'static str, fn(&Path) -> Result<()>);

const PARTS: [Part; 12] = [
    ("parts", "the parts", parts),
    (
        "turns",
        "the same workload with first come first served, the dispatcher's rules and cortex",
        turns,
    ),
    ("cached", "conversations with and without the weight `cached-tokens`", cached),
    (
        "policies",
        "policies: in four languages, in chains, concurrent, as candidates, replaced",
        policies,
    ),
    ("whole", "the whole: one local engine that responds immediately", whole),
    ("switch", "conversations with three lanes of a real model that take turns", switch::switch),
    ("keys", "keys, limits and usage: CPU time per request", keys::keys),
    ("telemetry", "access log and traces: CPU time per request", telemetry::telemetry),
    ("reload", "reload of a configuration with 100 lanes under load", reload::reload),
    (
        "handover",
        "hand-over to the next process under load: pause of requests, gaps of streams",
        handover::handover,
    ),
    ("truth", "a workload in real time and simulated", simulation::truth),
    ("simulation", "the speed of the simulator", simulation::speed),
];

/// Runs these parts, or all of them, and prints the results.
pub(crate) fn bench(root: &Path, only: &[&str]) -> Result<()> {
    if let Some(unknown) = only.iter().find(|only| PARTS.iter().all(|part| part.0 != **only)) {
        bail!("unknown part `{unknown}`; expected one of {}", PARTS.map(|part| part.0).join(", "));
    }
    println!("== building with optimizations");
    let packages = ["--package", "pointsman", "--package", "pointsman-tests", "--bins"];
    run(cargo(root)?.args(["build", "--release", "--quiet"]).args(packages))?;
    for (_, title, measure) in PARTS.iter().filter(|part| only.is_empty() || only.contains(&part.0))
    {
        println!("== {title}");
        measure(root)?;
    }
    Ok(())
}

fn parts(root: &Path) -> Result<()> {
    let parts = [
        "pointsman-openai",
        "pointsman-domain",
        "pointsman-record",
        "pointsman-access",
        "pointsman",
    ]
    .map(|package| ["--package", package]);
    let benches = ["wire", "dispatch", "record", "keys", "advise", "policy_state"]
        .map(|bench| ["--bench", bench]);
    run(cargo(root)?
        .arg("bench")
        .args(parts.concat())
        .args(benches.concat())
        .args(["--", "--noplot", "--quiet"]))
}

fn turns(root: &Path) -> Result<()> {
    run(cargo(root)?.args(["bench", "--package", "pointsman", "--bench", "turns", "--quiet"]))
}

fn cached(root: &Path) -> Result<()> {
    let venv = setup::venv(false)?;
    run(cargo(root)?
        .args(["bench", "--package", "pointsman", "--bench", "cached", "--quiet"])
        .env("POINTSMAN_VENV", venv))
}

fn policies(root: &Path) -> Result<()> {
    let fresh = target_dir()?.join("guests").join("fresh");
    crate::guests(root, &["--out", &fresh.to_string_lossy()])?;
    run(cargo(root)?
        .args(["bench", "--package", "pointsman", "--bench", "policies", "--quiet"])
        .env("POINTSMAN_FRESH_GUESTS", &fresh))
}

/// A server under test.
struct Server {
    name: &'static str,
    child: Child,
    port: u16,
}

impl Drop for Server {
    fn drop(&mut self) {
        // Errors mean that the server has exited already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Results of one run of the load generator, times in microseconds.
#[derive(Debug, Clone, Copy, Default)]
struct Measurement {
    rate: f64,
    first: f64,
    last_p50: f64,
    last_p99: f64,
    /// CPU time of the server per request.
    cpu: f64,
}

fn whole(root: &Path) -> Result<()> {
    let release = target_dir()?.join("release");
    let folder = target_dir()?.join("bench");
    fs::create_dir_all(&folder)?;
    let engine = start(
        "direct",
        Command::new(release.join("fake-engine")).args(["--bench", "--port"]),
        free_port()?,
        true,
    )?;
    let mut servers = vec![haproxy(&folder, engine.port)?];
    for (name, policy) in
        [("pointsman", ""), ("pointsman + cortex", "[[policies.chain]]\nname = \"cortex\"\n")]
    {
        servers.push(pointsman(root, &release, &folder, name, policy, engine.port)?);
    }
    servers.insert(0, engine);
    for (title, arguments) in [
        ("one connection, whole answers", &["--connections", "1"][..]),
        ("32 connections, whole answers", &["--connections", "32"]),
        ("one connection, streams", &["--connections", "1", "--stream"]),
        ("32 connections, streams of 10 chunks", &["--connections", "32", "--stream"]),
        ("one connection, prompts of 100 KB", &["--connections", "1", "--prompt", "100000"]),
    ] {
        table(&release, title, arguments, &servers)?;
    }
    for server in &servers[2..] {
        println!("{}: {} KiB resident", server.name, resident(server.child.id()).unwrap_or(0));
    }
    drop(servers);
    println!("\nwaiting");
    waiting::waiting(&release, &folder)?;
    Ok(())
}

/// Measures servers and prints a table. Returns the median CPU time per request of each server.
fn table(release: &Path, title: &str, arguments: &[&str], servers: &[Server]) -> Result<Vec<f64>> {
    println!("\n{title}");
    println!(
        "{:<20}{:>10}{:>12}{:>12}{:>12}{:>14}{:>12}",
        "", "req/s", "first p50", "last p50", "last p99", "added p50", "CPU/req"
    );
    let mut rounds: Vec<Vec<Measurement>> = vec![Vec::new(); servers.len()];
    // Measure the servers in turn, so that changes of the machine's load affect all of them.
    for _ in 0..ROUNDS {
        for (server, results) in servers.iter().zip(&mut rounds) {
            results.push(measure(release, arguments, server)?);
        }
    }
    let median = |results: &[Measurement], field: fn(&Measurement) -> f64| {
        let mut values: Vec<f64> = results.iter().map(field).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    let direct = median(&rounds[0], |result| result.last_p50);
    for (server, results) in servers.iter().zip(&rounds) {
        println!(
            "{:<20}{:>10.0}{:>9.0} us{:>9.0} us{:>9.0} us{:>11.0} us{:>9.1} us",
            server.name,
            median(results, |result| result.rate),
            median(results, |result| result.first),
            median(results, |result| result.last_p50),
            median(results, |result| result.last_p99),
            median(results, |result| result.last_p50) - direct,
            median(results, |result| result.cpu),
        );
    }
    Ok(rounds.iter().map(|results| median(results, |result| result.cpu)).collect())
}

/// Prints the CPU time per request relative to that of the first server.
fn compare(servers: &[Server], cpu: &[f64]) {
    for (server, cpu_of) in servers.iter().zip(cpu).skip(1) {
        println!("{}: {:+.1} % CPU per request", server.name, (cpu_of / cpu[0] - 1.0) * 100.0);
    }
}

fn measure(release: &Path, arguments: &[&str], server: &Server) -> Result<Measurement> {
    let before = cpu(server.child.id())?;
    let start = Instant::now();
    let mut load = Command::new(release.join("load"));
    load.args(arguments).args(["--port", &server.port.to_string()]);
    let line =
        output(&mut load).with_context(|| format!("{}: the load generator failed", server.name))?;
    let (spent, took) = (cpu(server.child.id())? - before, start.elapsed().as_secs_f64());
    let value = |key: &str| -> Result<f64> {
        let rest = line
            .split(&format!("\"{key}\":"))
            .nth(1)
            .with_context(|| format!("no {key} in {line}"))?;
        let text: String = rest.chars().take_while(|c| c.is_ascii_digit() || *c == '.').collect();
        text.parse().with_context(|| format!("{key} in {line}"))
    };
    let rate = value("requests_per_second")?;
    // CPU time of the whole run, including the warm-up, at the measured rate.
    let cpu = spent * 1e6 / (rate * took).max(1.0);
    Ok(Measurement {
        rate,
        first: value("first_p50_us")?,
        last_p50: value("last_p50_us")?,
        last_p99: value("last_p99_us")?,
        cpu,
    })
}

fn haproxy(folder: &Path, engine: u16) -> Result<Server> {
    setup::debian_install(&["haproxy"])?;
    let port = free_port()?;
    let file = folder.join("haproxy.cfg");
    let config = format!(
        "global\n  nbthread 2\ndefaults\n  mode http\n  option http-no-delay\n  timeout connect \
         5s\n  timeout client 60s\n  timeout server 60s\n\
         frontend f\n  bind 127.0.0.1:{port}\n  default_backend b\nbackend b\n  http-reuse \
         always\n  server s 127.0.0.1:{engine}\n"
    );
    fs::write(&file, config)?;
    start("haproxy", Command::new("haproxy").arg("-db").arg("-f").arg(file), port, false)
}

fn pointsman(
    root: &Path,
    release: &Path,
    folder: &Path,
    name: &'static str,
    policy: &str,
    engine: u16,
) -> Result<Server> {
    host(release, name, &configuration(root, folder, name, policy, engine)?)
}

/// Starts a host with this configuration.
fn host(release: &Path, name: &'static str, file: &Path) -> Result<Server> {
    let port = free_port()?;
    let mut command = Command::new(release.join("pointsman"));
    command.arg("serve").arg(file).args(["--listen", &format!("127.0.0.1:{port}")]);
    start(name, &mut command, port, false)
}

/// Writes the configuration of a host with one lane. Each host has a state directory of its own: a
/// host that finds one in use runs without, which costs less.
fn configuration(
    root: &Path,
    folder: &Path,
    name: &str,
    policy: &str,
    engine: u16,
) -> Result<PathBuf> {
    let word = name.replace([' ', ',', '+'], "-");
    let (policies, state) = (root.join("policies"), folder.join(format!("{word}.state")));
    let config = format!(
        "[log]\nlevel = \"warn\"\n[state]\ndir = {state:?}\n[policies]\ndir = {policies:?}\n\
         {policy}[[lanes]]\nname = \"coder\"\nmodels = [\"a\"]\nslots = 64\n\
         [lanes.engine]\ndriver = \"external\"\nurl = \"http://127.0.0.1:{engine}\"\n\
         reuse-connections = true\n"
    );
    let file = folder.join(format!("{word}.toml"));
    fs::write(&file, config)?;
    Ok(file)
}

fn start(name: &'static str, command: &mut Command, port: u16, with_port: bool) -> Result<Server> {
    if with_port {
        command.arg(port.to_string());
    }
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .with_context(|| format!("failed to start {name}"))?;
    let mut server = Server { name, child, port };
    let start = Instant::now();
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        if let Some(status) = server.child.try_wait()? {
            bail!("{name} exited: {status}");
        }
        if start.elapsed() > Duration::from_secs(30) {
            bail!("{name} is not listening on port {port}");
        }
        pointsman_xtask::wait::pause(Duration::from_millis(20));
    }
    // Wait until the lanes are ready.
    pointsman_xtask::wait::pause(Duration::from_millis(500));
    Ok(server)
}

/// Returns the CPU seconds of a process: fields 14 and 15 of its stat, in hundredths
/// (proc_pid_stat(5)).
fn cpu(pid: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or("").split(' ').collect();
    let ticks =
        |field: usize| fields.get(field).and_then(|ticks| ticks.parse::<f64>().ok()).unwrap_or(0.0);
    Ok((ticks(11) + ticks(12)) / 100.0)
}

/// Returns the resident memory of a process in KiB.
fn resident(pid: u32) -> Option<u64> {
    status(pid, "VmRSS:")
}

/// Returns the peak resident memory of a process in KiB.
fn peak_resident(pid: u32) -> Option<u64> {
    status(pid, "VmHWM:")
}

fn status(pid: u32, key: &str) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with(key))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}
