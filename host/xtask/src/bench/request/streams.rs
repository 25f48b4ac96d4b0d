//! Streams at the pace of a model: CPU time, and resident memory.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use pointsman_xtask::wait::poll;

use super::super::load::number;
use super::super::server::{Server, configuration, cpu, free_port, host, resident, start};
use super::servers::bare_proxy;
use super::{Context, Row, Target, mb};

/// The maximum time that clients take longer than their streams.
const MARGIN: Duration = Duration::from_secs(60);

/// What a number of streams cost a server.
#[derive(Debug, Clone, Copy)]
struct Cost {
    /// CPU time per frame, in microseconds.
    cpu: f64,
    /// The maximum of the resident memory in KiB.
    resident: u64,
}

pub(super) fn streams(context: &Context<'_>) -> Result<Vec<Row>> {
    let Context { root, release, folder, extent } = context;
    let seconds = extent.stream_seconds.to_string();
    let port = free_port()?;
    let mut command = Command::new(release.join("paced-streams"));
    command.args(["--port", &port.to_string(), "--seconds", &seconds, "engine"]);
    let engine = start("paced engine", &mut command, port, false)?;
    let floor = bare_proxy(context, engine.port)?;
    let file = configuration(root, folder, "paced streams", "", engine.port)?;
    let text = fs::read_to_string(&file)?.replacen("slots = 64", "slots = 1000", 1);
    fs::write(&file, text)?;
    let host = host(release, "no policy", &file)?;
    let mut rows = Vec::new();
    for number in extent.streams {
        println!("== {number} paced streams");
        let (mut of_host, mut of_floor) = (Vec::new(), Vec::new());
        let mut memory = 0;
        for _ in 0..extent.stream_rounds {
            of_floor.push(read(release, &floor, *number, extent.stream_seconds)?.cpu);
            let cost = read(release, &host, *number, extent.stream_seconds)?;
            of_host.push(cost.cpu);
            memory = memory.max(cost.resident);
        }
        let figure = format!("CPU per chunk of {number} paced streams");
        let (measured, against) = ((&of_host[..], "µs"), ("bare proxy", &of_floor[..]));
        rows.push(Row::compared(&figure, measured, against, Target::AtMost(1.15)));
        let target = if *number == 1_000 { Target::AtMost(45.0) } else { Target::Reported };
        let figure = format!("RSS with {number} streams");
        rows.push(Row::absolute(&figure, mb(memory), "MB", target));
    }
    Ok(rows)
}

/// Reads this number of streams at a time through a server, each once.
fn read(release: &Path, server: &Server, streams: u32, seconds: u32) -> Result<Cost> {
    let pid = server.child.id();
    let before = cpu(pid)?;
    let mut command = Command::new(release.join("paced-streams"));
    command.args(["--port", &server.port.to_string(), "--seconds", &seconds.to_string()]);
    command.args(["clients", "--streams", &streams.to_string()]);
    let mut clients = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let mut memory = 0;
    let limit = Duration::from_secs(seconds.into()) + MARGIN;
    let ended = poll(limit, Duration::from_millis(100), || {
        memory = memory.max(resident(pid).unwrap_or(0));
        clients.try_wait().transpose()
    });
    if ended.is_none() {
        // Fails only if they have ended meanwhile.
        clients.kill().ok();
    }
    let result = clients.wait_with_output()?;
    if !result.status.success() {
        bail!("{}: the clients of streams failed: {}", server.name, result.status);
    }
    let line = String::from_utf8_lossy(&result.stdout).into_owned();
    let frames = number(&line, "frames").context("the clients of streams")?;
    Ok(Cost { cpu: (cpu(pid)? - before) * 1e6 / frames.max(1.0), resident: memory })
}
