//! Cost of waiting: memory of requests that wait while a lane loads, and the time until the first
//! of them is sent once the lane is ready.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};

use super::server::{free_port, resident, start};

/// Number of waiting requests.
const REQUESTS: usize = 2_000;
/// Load time of the engine in milliseconds: long enough for all requests to arrive.
const LOAD_MS: u64 = 15_000;
/// Time after which idle connections have given their buffers back, and the allocator what is
/// free: a second each.
const SETTLING: Duration = Duration::from_secs(4);
/// Size of a request body in bytes.
const BODY_BYTES: usize = 1_000;

/// What requests cost that wait.
pub(super) struct Waiting {
    /// Memory of a waiting request without its body and its connection, in KiB.
    pub(super) request: f64,
    /// Memory of a connection that was used a moment ago, in KiB.
    pub(super) connection: f64,
    /// Memory of a connection that is idle for seconds, in KiB.
    pub(super) idle_connection: f64,
    /// From the first free slot to the first byte of the first response, in seconds.
    pub(super) first_response: f64,
}

/// Runs the benchmark and prints the results.
pub(super) fn waiting(release: &Path, folder: &Path) -> Result<()> {
    let Waiting { request, connection, idle_connection, first_response } =
        measure(release, folder)?;
    println!(
        "{REQUESTS} waiting requests, half of them streams: {request:.1} KiB each, plus the body \
         of {BODY_BYTES} bytes and {connection:.1} KiB for the connection"
    );
    println!("an idle connection: {idle_connection:.1} KiB");
    println!(
        "from the first free slot to the first byte of the first response: {:.2} ms",
        first_response * 1e3
    );
    Ok(())
}

/// Runs the benchmark.
pub(super) fn measure(release: &Path, folder: &Path) -> Result<Waiting> {
    let engine = release.join("fake-engine");
    let config = format!(
        "server = {{ keep-alive = \"1s\" }}\nqueue = {{ per-lane = 10000, total = 10000, max-wait \
         = \"5m\" }}\n\
         [log]\nlevel = \"warn\"\n[state]\ndir = {:?}\n[[lanes]]\nname = \"a\"\nslots = \
         4\n[lanes.engine]\ndriver = \"llama-cpp\"\n\
         command = [{engine:?}, \"--port\", \"{{port}}\", \"--alias\", \"a\", \"--load-ms\", \
         \"{LOAD_MS}\"]\n",
        folder.join("state")
    );
    let file = folder.join("waiting.toml");
    fs::write(&file, config)?;
    let port = free_port()?;
    let mut command = Command::new(release.join("pointsman"));
    command.arg("serve").arg(file).args(["--listen", &format!("127.0.0.1:{port}")]);
    let server = start("pointsman", &mut command, port, false)?;
    let memory = || resident(server.child.id()).context("no VmRSS");
    let bare = memory()?;
    let mut clients: Vec<TcpStream> =
        (0..REQUESTS).map(|_| connect(port)).collect::<Result<_>>()?;
    let before = memory()?;
    pointsman_xtask::wait::pause(SETTLING);
    let idle = memory()?;
    for (number, client) in clients.iter_mut().enumerate() {
        send_request(client, number % 2 == 0)?;
    }
    wait_for_metric(port, "pointsman_lane_queued{lane=\"a\"}", REQUESTS as f64)?;
    // Wait for the first keep-alive of the streams, whose cost is included.
    for stream in clients.iter().step_by(2) {
        stream.peek(&mut [0]).context("no keep-alive")?;
    }
    pointsman_xtask::wait::pause(SETTLING);
    let each = |more: u64, less: u64| more.saturating_sub(less) as f64 / REQUESTS as f64;
    let request = each(memory()?, before) - BODY_BYTES as f64 / 1024.0;
    let (connection, idle_connection) = (each(before, bare), each(idle, bare));
    wait_for_metric(port, "pointsman_lane_queued{lane=\"a\"}", 0.0)?;
    let series = "pointsman_switch_seconds_sum{lane=\"a\",part=\"first-answer\"}";
    Ok(Waiting { request, connection, idle_connection, first_response: metric(port, series)? })
}

/// Returns a keep-alive connection that was used once.
fn connect(port: u16) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).context("failed to connect")?;
    write!(stream, "GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n")?;
    let count = stream.read(&mut [0; 1024])?;
    if count == 0 { Err(anyhow!("the connection was closed")) } else { Ok(stream) }
}

/// Sends a request without waiting for the response.
fn send_request(stream: &mut TcpStream, streaming: bool) -> Result<()> {
    let padding = "x".repeat(BODY_BYTES - 90);
    let body = format!(
        "{{\"model\":\"a\",\"stream\":{streaming},\"max_tokens\":1,\
         \"messages\":[{{\"role\":\"user\",\"content\":\"{padding}\"}}]}}"
    );
    write!(
        stream,
        "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: \
         application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )?;
    Ok(())
}

/// Waits until a metric has a value.
fn wait_for_metric(port: u16, name: &str, expected: f64) -> Result<()> {
    let start = Instant::now();
    while metric(port, name)? != expected {
        if start.elapsed() > Duration::from_secs(120) {
            bail!("{name} did not become {expected}");
        }
        pointsman_xtask::wait::pause(Duration::from_millis(50));
    }
    Ok(())
}

pub(super) fn metric(port: u16, name: &str) -> Result<f64> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).context("failed to connect")?;
    write!(stream, "GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name))
        .with_context(|| format!("no {name}"))?;
    line.trim().parse().with_context(|| format!("{name}: {line}"))
}
