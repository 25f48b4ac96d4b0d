//! The cost of one request, as a table with targets: direct and proxied load in turn, so that the
//! ratios hold on a noisy machine.

mod rows;
mod servers;
mod streams;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use pointsman_xtask::command::{cargo, output, target_dir};

use self::rows::{Row, Target, print};
use self::servers::Servers;
use super::guard::PATHS;
use super::in_process::{InProcess, Profile};
use super::load::{Measurement, median, rounds};
use super::server::resident;
use super::waiting;

/// How much is measured.
#[derive(Debug, Clone, Copy)]
struct Extent {
    /// Rounds of slices of load.
    rounds: usize,
    /// Seconds of a slice, and of its warm-up.
    slice: [&'static str; 2],
    /// Numbers of paced streams.
    streams: &'static [u32],
    /// Rounds of streams, and seconds of a stream.
    stream_rounds: usize,
    stream_seconds: u32,
    /// Requests or chunks under callgrind.
    profiled: u32,
    /// Rows that take long: waiting requests, calls of policies, the dispatcher.
    has_slow_rows: bool,
}

const FULL: Extent = Extent {
    rounds: 9,
    slice: ["0.8", "0.2"],
    streams: &[200, 1_000],
    stream_rounds: 3,
    stream_seconds: 6,
    profiled: 300,
    has_slow_rows: true,
};
const SHORT: Extent = Extent {
    rounds: 3,
    slice: ["0.4", "0.1"],
    streams: &[200],
    stream_rounds: 1,
    stream_seconds: 3,
    profiled: 50,
    has_slow_rows: false,
};

/// Functions that are listed of a profile.
const PARTS: usize = 10;

/// What every part of this benchmark needs.
struct Context<'a> {
    root: &'a Path,
    release: PathBuf,
    folder: PathBuf,
    extent: Extent,
}

pub(super) fn request(root: &Path) -> Result<()> {
    measure(root, FULL)
}

pub(super) fn short_request(root: &Path) -> Result<()> {
    measure(root, SHORT)
}

fn measure(root: &Path, extent: Extent) -> Result<()> {
    let release = super::programs()?;
    let folder = target_dir()?.join("bench");
    fs::create_dir_all(&folder)?;
    let context = Context { root, release, folder, extent };
    let in_process = InProcess::build(root)?;
    let mut rows = plain_requests(&context)?;
    rows.extend(streams::streams(&context)?);
    rows.extend(allocations(&in_process)?);
    let (counts, profile) = instructions(&in_process, extent.profiled)?;
    rows.extend(counts);
    if extent.has_slow_rows {
        rows.extend(policies(&in_process)?);
        rows.extend(waiting_requests(&context)?);
        rows.push(dispatcher(root)?);
    }
    print(&rows);
    println!(
        "\nThe {PARTS} largest parts of the instructions of a plain request without a policy:\n"
    );
    println!("| function | instructions | share |\n|---|---|---|");
    for (function, count) in profile.largest(PARTS) {
        let share = count / profile.total * 100.0;
        println!("| `{function}` | {count:.0} | {share:.1} % |");
    }
    Ok(())
}

/// The results of servers that were measured in turn.
struct Results {
    names: Vec<&'static str>,
    rounds: Vec<Vec<Measurement>>,
}

type Field = fn(&Measurement) -> f64;

impl Results {
    fn measure(
        context: &Context<'_>,
        servers: &Servers,
        names: &[&'static str],
        load: &[&str],
    ) -> Result<Self> {
        let extent = context.extent;
        let arguments = [load, &["--seconds", extent.slice[0], "--warm-up", extent.slice[1]]];
        let (release, servers) = (&context.release, servers.named(names)?);
        let rounds = rounds(release, &arguments.concat(), &servers, extent.rounds)?;
        Ok(Self { names: names.to_vec(), rounds })
    }

    /// Returns a value of each round.
    fn values(&self, name: &str, field: Field) -> Result<Vec<f64>> {
        let at = self.names.iter().position(|known| *known == name);
        let rounds = at.and_then(|at| self.rounds.get(at)).context("not measured")?;
        Ok(rounds.iter().map(field).collect())
    }

    /// Returns a row with the medians of two servers, and with the median of the ratios of rounds.
    fn row(
        &self,
        figure: &str,
        (name, against): (&str, &'static str),
        (field, unit): (Field, &'static str),
        target: Target,
    ) -> Result<Row> {
        let (measured, other) = (self.values(name, field)?, self.values(against, field)?);
        Ok(Row::compared(figure, (&measured, unit), (against, &other), target))
    }

    /// Returns a row with what servers add to the median time of a direct request.
    fn added(
        &self,
        figure: &str,
        name: &str,
        against: &'static str,
        target: Target,
    ) -> Result<Row> {
        let time = |name| self.values(name, |result| result.last_p50);
        let direct = time("direct")?;
        let added = |times: Vec<f64>| -> Vec<f64> {
            times.iter().zip(&direct).map(|(time, direct)| time - direct).collect()
        };
        let (measured, other) = (added(time(name)?), added(time(against)?));
        Ok(Row::compared(figure, (&measured, "µs"), (against, &other), target))
    }
}

const CPU: (Field, &str) = (|result| result.cpu, "µs");
const RATE: (Field, &str) = (|result| result.rate, "/s");

fn plain_requests(context: &Context<'_>) -> Result<Vec<Row>> {
    use Target::{AtLeast, AtMost, Reported};
    let servers = Servers::start(context)?;
    let mut names = servers.names();
    println!("== load: 32 connections");
    let busy = Results::measure(context, &servers, &names, &["--connections", "32"])?;
    names.retain(|name| ["direct", "haproxy", "no policy", "cortex"].contains(name));
    println!("== load: one connection");
    let one = Results::measure(context, &servers, &names, &["--connections", "1"])?;
    println!("== load: one connection, 100 KB");
    let load = ["--connections", "1", "--prompt", "100000"];
    let large = Results::measure(context, &servers, &names, &load)?;
    let mut rows = Vec::new();
    for (name, cpu, rate) in [("no policy", 1.6, 0.75), ("cortex", 1.9, 0.65)] {
        let figure = format!("CPU per plain request, {name}");
        rows.push(busy.row(&figure, (name, "bare proxy"), CPU, AtMost(cpu))?);
        let figure = format!("requests/s at 32 connections, {name}");
        rows.push(busy.row(&figure, (name, "haproxy"), RATE, AtLeast(rate))?);
    }
    for (name, target) in [("no policy", Reported), ("cortex", AtMost(1.3))] {
        let figure = format!("added p50 at 1 connection, {name}");
        rows.push(one.added(&figure, name, "haproxy", target)?);
        let figure = format!("added p50, body of 100 KB, {name}");
        rows.push(large.added(&figure, name, "haproxy", target)?);
    }
    for (name, target) in [
        ("keys, limits, records", AtMost(1.25)),
        ("cortex.toml", Reported),
        ("cortex.toml, traces", Reported),
    ] {
        let figure = format!("CPU per plain request, {name}");
        rows.push(busy.row(&figure, (name, "no policy"), CPU, target)?);
    }
    rows.push(busy.row("CPU per request, HAProxy", ("haproxy", "bare proxy"), CPU, Reported)?);
    if busy.names.contains(&"vllm-router") {
        let pair = ("vllm-router", "bare proxy");
        rows.push(busy.row("CPU per request, vLLM Router", pair, CPU, Reported)?);
        let pair = ("vllm-router", "haproxy");
        rows.push(busy.row("requests/s, vLLM Router", pair, RATE, Reported)?);
    } else {
        rows.push(Row::missing("vLLM Router", "`vllm-router` is not in the venv"));
    }
    let memory = resident(servers.get("cortex")?.child.id()).context("no VmRSS")?;
    rows.push(Row::absolute("RSS with cortex", mb(memory), "MB", AtMost(20.0)));
    Ok(rows)
}

/// Converts KiB, as `/proc` counts, to megabytes.
fn mb(kib: u64) -> f64 {
    kib as f64 * 1024.0 / 1e6
}

fn allocations(in_process: &InProcess) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (path, without) in PATHS {
        let allocations = in_process.allocations(path, without)?;
        let target = if path == "plain" { Target::AtMost(60.0) } else { Target::Reported };
        let figure = format!("allocations, {}", title(path));
        rows.push(Row::absolute(&figure, allocations.number, "", target));
        let figure = format!("allocated bytes, {}", title(path));
        rows.push(Row::absolute(&figure, allocations.bytes, "B", Target::Reported));
    }
    Ok(rows)
}

/// Returns what a path of the in-process benchmark is.
fn title(path: &str) -> &str {
    match path {
        "plain" => "plain request, no policy",
        "cortex" => "plain request, cortex",
        "chunk" => "forwarded chunk of a stream",
        other => other,
    }
}

/// Returns the rows, and the profile of a plain request without a policy.
fn instructions(in_process: &InProcess, number: u32) -> Result<(Vec<Row>, Profile)> {
    println!("== instructions, by callgrind");
    let (mut rows, mut plain) = (Vec::new(), None);
    for paths in PATHS {
        let figure = format!("instructions, {}", title(paths.0));
        let Some(profile) = in_process.difference(paths, number)? else {
            rows.push(Row::missing(&figure, "valgrind cannot run it"));
            continue;
        };
        rows.push(Row::absolute(&figure, profile.total, "", Target::Reported));
        plain = plain.or(Some(profile));
    }
    Ok((rows, plain.context("no path was measured")?))
}

fn policies(in_process: &InProcess) -> Result<Vec<Row>> {
    println!("== calls of policies");
    let measured = in_process.advise()?;
    let row = |(name, target): &(&str, f64)| {
        let figure = format!("warm `advise`, 8 lanes, {name}");
        match measured.iter().find(|(known, _)| known == name) {
            Some((_, time)) => Row::absolute(&figure, *time, "µs", Target::AtMost(*target)),
            None => Row::missing(&figure, "not built: cargo xtask bench policies"),
        }
    };
    Ok([("cortex", 2.0), ("javascript", 30.0), ("python", 40.0)].iter().map(row).collect())
}

fn waiting_requests(context: &Context<'_>) -> Result<Vec<Row>> {
    println!("== waiting requests");
    let waiting = waiting::measure(&context.release, &context.folder)?;
    let row = |figure, value, target| Row::absolute(figure, value, "KiB", Target::AtMost(target));
    Ok(vec![
        row("memory of a waiting request", waiting.request, 4.0),
        row("memory of an idle connection", waiting.idle_connection, 6.0),
        Row::absolute("memory of a connection in use", waiting.connection, "KiB", Target::Reported),
    ])
}

/// Measures one decision of the dispatcher with 10,000 waiting requests.
fn dispatcher(root: &Path) -> Result<Row> {
    println!("== dispatcher");
    let mut bench = cargo(root)?;
    bench.args(["bench", "--quiet", "--package", "pointsman-domain", "--bench", "dispatch", "--"]);
    bench.args(["--noplot", "release that grants the next one"]);
    let text = output(&mut bench).context("the benchmark of the dispatcher failed")?;
    // `time:   [lower estimate upper]`, each with its unit.
    let time = text.split_once("time:").and_then(|(_, rest)| {
        let words: Vec<&str> = rest.split_whitespace().take(4).collect();
        let unit = match *words.get(3)? {
            "ns" => 1e-3,
            "µs" | "us" => 1.0,
            "ms" => 1e3,
            _ => return None,
        };
        Some(words.get(2)?.parse::<f64>().ok()? * unit)
    });
    let time = time.with_context(|| format!("unexpected output of criterion: {text}"))?;
    let figure = "one dispatch, 10,000 waiting requests, 100 lanes";
    Ok(Row::absolute(figure, time, "µs", Target::AtMost(4.2)))
}
