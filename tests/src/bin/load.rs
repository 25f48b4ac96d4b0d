//! A load generator for benchmarks: a number of connections, each of which sends its next request
//! when it has the response.
//!
//! Prints one line of JSON: the number of requests with those of the warm-up, requests per second,
//! and percentiles of the times to the first and to the last byte of the body, in microseconds.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::Parser;
use serde_json::json;

/// Measures the throughput and latency of a server.
#[derive(Debug, Clone, Parser)]
struct Options {
    /// Port on the loopback interface.
    #[arg(long)]
    port: u16,
    /// Number of connections.
    #[arg(long, default_value_t = 1)]
    connections: usize,
    /// Seconds to measure.
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Seconds of warm-up before that.
    #[arg(long, default_value_t = 1.0)]
    warm_up: f64,
    /// Request streams.
    #[arg(long)]
    stream: bool,
    /// Size of the prompt in bytes.
    #[arg(long, default_value_t = 800)]
    prompt: usize,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<()> {
    let body = json!({
        "model": "a",
        "messages": [{ "role": "user", "content": "word ".repeat(options.prompt / 5) }],
        "stream": options.stream,
    });
    let body = body.to_string();
    // A host without keys does not read the key.
    let request = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n\
         authorization: Bearer pm_bench\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    let (measuring, stop) = (AtomicBool::new(false), AtomicBool::new(false));
    let mut measured: Vec<(Duration, Duration)> = Vec::new();
    let mut requests = 0;
    let seconds = std::thread::scope(|scope| -> Result<f64> {
        let clients: Vec<_> = (0..options.connections)
            .map(|_| scope.spawn(|| client(options.port, &request, &measuring, &stop)))
            .collect();
        pointsman_tests::pause(Duration::from_secs_f64(options.warm_up));
        let start = Instant::now();
        measuring.store(true, Ordering::Relaxed);
        pointsman_tests::pause(Duration::from_secs_f64(options.seconds));
        stop.store(true, Ordering::Relaxed);
        let seconds = start.elapsed().as_secs_f64();
        for client in clients {
            match client.join() {
                Ok(result) => {
                    let (all, times) = result?;
                    requests += all;
                    measured.extend(times);
                }
                Err(_) => bail!("a client failed"),
            }
        }
        Ok(seconds)
    })?;
    let percentile = |times: &mut Vec<Duration>, percent: usize| {
        times.sort_unstable();
        times.get(times.len() * percent / 100).map_or(0, |time| time.as_micros())
    };
    let mut first: Vec<Duration> = measured.iter().map(|(first, _)| *first).collect();
    let mut last: Vec<Duration> = measured.iter().map(|(_, last)| *last).collect();
    #[expect(clippy::cast_precision_loss, reason = "a count of requests")]
    let rate = measured.len() as f64 / seconds;
    println!(
        "{}",
        json!({
            "requests": requests,
            "requests_per_second": rate.round(),
            "first_p50_us": percentile(&mut first, 50), "first_p99_us": percentile(&mut first, 99),
            "last_p50_us": percentile(&mut last, 50), "last_p99_us": percentile(&mut last, 99),
        })
    );
    Ok(())
}

/// Sends requests over one connection; returns their number, and the times to the first and the
/// last byte of each measured response.
fn client(
    port: u16,
    request: &str,
    measuring: &AtomicBool,
    stop: &AtomicBool,
) -> Result<(u64, Vec<(Duration, Duration)>)> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).context("failed to connect")?;
    stream.set_nodelay(true)?;
    let mut reader = BufReader::with_capacity(64 << 10, stream.try_clone()?);
    let (mut requests, mut times) = (0, Vec::new());
    let mut line = String::new();
    let mut body = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let start = Instant::now();
        stream.write_all(request.as_bytes())?;
        let mut length = None;
        let mut status = String::new();
        loop {
            line.clear();
            if reader.read_line(&mut line)? == 0 {
                bail!("the connection was closed");
            }
            let text = line.trim_end();
            if status.is_empty() {
                text.clone_into(&mut status);
            } else if text.is_empty() {
                break;
            } else if let Some((name, value)) = text.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                length = value.trim().parse::<usize>().ok();
            }
        }
        if !status.contains(" 200 ") {
            bail!("{status}");
        }
        let mut first = None;
        loop {
            let size = match length {
                Some(length) => length,
                None => {
                    line.clear();
                    reader.read_line(&mut line)?;
                    usize::from_str_radix(line.trim(), 16).context("invalid chunk size")?
                }
            };
            first.get_or_insert_with(|| start.elapsed());
            body.resize(if length.is_some() { size } else { size + 2 }, 0);
            reader.read_exact(&mut body)?;
            if length.is_some() || size == 0 {
                break;
            }
        }
        requests += 1;
        if measuring.load(Ordering::Relaxed) {
            times.push((first.unwrap_or_default(), start.elapsed()));
        }
    }
    Ok((requests, times))
}
