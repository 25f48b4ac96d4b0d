//! What waiting costs: many requests that wait for a lane while it loads, and how quickly the first of them is on its way when
//! the lane is ready.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};

use super::{free_port, resident, start};

/// Requests that wait at once.
const WAITING: usize = 2_000;
/// Milliseconds until the engine answers: long enough for all of them to come.
const LOAD: u64 = 15_000;
/// Bytes of a request's body.
const BODY: usize = 1_000;

/// Measure, and print.
pub(super) fn waiting(release: &Path, folder: &Path) -> Result<()> {
    let engine = release.join("fake-engine");
    let config = format!(
        "server = {{ keep-alive = \"1s\" }}\nqueue = {{ per-lane = 10000, total = 10000, max-wait = \"5m\" }}\n\
         [log]\nlevel = \"warn\"\n[state]\ndir = {:?}\n[[lanes]]\nname = \"a\"\nslots = 4\n[lanes.engine]\ndriver = \"llama-cpp\"\n\
         command = [{engine:?}, \"--port\", \"{{port}}\", \"--alias\", \"a\", \"--load-ms\", \"{LOAD}\"]\n",
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
        (0..WAITING).map(|_| connected(port)).collect::<Result<_>>()?;
    let before = memory()?;
    for (number, client) in clients.iter_mut().enumerate() {
        ask(client, number % 2 == 0)?;
    }
    until(port, "pointsman_lane_queued{lane=\"a\"}", WAITING as f64)?;
    // Streams have been told that they are alive by then, which is part of what they cost.
    std::thread::park_timeout(Duration::from_millis(1_500));
    let each = |more: u64, less: u64| more.saturating_sub(less) as f64 / WAITING as f64;
    println!(
        "{WAITING} requests wait, half of them streams: {:.1} KiB each beyond its body of {BODY} bytes and its connection, \
         which takes {:.1} KiB",
        each(memory()?, before) - BODY as f64 / 1024.0,
        each(before, bare)
    );
    until(port, "pointsman_lane_queued{lane=\"a\"}", 0.0)?;
    let sum = metric(port, "pointsman_switch_seconds_sum{lane=\"a\",part=\"first-answer\"}")?;
    println!(
        "from a slot of the lane that has become ready to the first byte of its first answer: {:.2} ms",
        sum * 1e3
    );
    Ok(())
}

/// A connection that has been used, and is kept.
fn connected(port: u16) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).context("no connection")?;
    write!(stream, "GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n")?;
    let count = stream.read(&mut [0; 1024])?;
    if count == 0 { Err(anyhow!("the connection was closed")) } else { Ok(stream) }
}

/// Send a request, and do not wait for the answer.
fn ask(stream: &mut TcpStream, streaming: bool) -> Result<()> {
    let padding = "x".repeat(BODY - 90);
    let body = format!(
        "{{\"model\":\"a\",\"stream\":{streaming},\"max_tokens\":1,\"messages\":[{{\"role\":\"user\",\"content\":\"{padding}\"}}]}}"
    );
    write!(
        stream,
        "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )?;
    Ok(())
}

/// Wait until a metric has a value.
fn until(port: u16, name: &str, wanted: f64) -> Result<()> {
    let begun = Instant::now();
    while metric(port, name)? != wanted {
        if begun.elapsed() > Duration::from_secs(120) {
            bail!("{name} did not become {wanted}");
        }
        std::thread::park_timeout(Duration::from_millis(50));
    }
    Ok(())
}

fn metric(port: u16, name: &str) -> Result<f64> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).context("no connection")?;
    write!(stream, "GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name))
        .with_context(|| format!("no {name}"))?;
    line.trim().parse().with_context(|| format!("{name}: {line}"))
}
