//! Measurements with the load generator.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};
use pointsman_xtask::command::output;

use super::server::{Server, cpu};

/// Number of rounds of a table, which shows the medians.
const ROUNDS: usize = 3;

/// Results of one run of the load generator, times in microseconds.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Measurement {
    pub(super) rate: f64,
    pub(super) first: f64,
    pub(super) last_p50: f64,
    pub(super) last_p99: f64,
    /// CPU time of the server per request.
    pub(super) cpu: f64,
}

/// Measures servers in turn, this number of times, so that changes of the machine's load affect all
/// of them. Returns the results of each server.
pub(super) fn rounds(
    release: &Path,
    arguments: &[&str],
    servers: &[&Server],
    number: usize,
) -> Result<Vec<Vec<Measurement>>> {
    let mut rounds: Vec<Vec<Measurement>> = vec![Vec::new(); servers.len()];
    for _ in 0..number {
        for (server, results) in servers.iter().zip(&mut rounds) {
            results.push(measure(release, arguments, server)?);
        }
    }
    Ok(rounds)
}

/// Returns the median, of which there has to be one: the greater of the two in the middle.
pub(super) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Measures servers and prints a table. Returns the median CPU time per request of each server.
pub(super) fn table(
    release: &Path,
    title: &str,
    arguments: &[&str],
    servers: &[Server],
) -> Result<Vec<f64>> {
    println!("\n{title}");
    println!(
        "{:<20}{:>10}{:>12}{:>12}{:>12}{:>14}{:>12}",
        "", "req/s", "first p50", "last p50", "last p99", "added p50", "CPU/req"
    );
    let rounds = rounds(release, arguments, &servers.iter().collect::<Vec<_>>(), ROUNDS)?;
    let median = |results: &[Measurement], field: fn(&Measurement) -> f64| {
        median(results.iter().map(field).collect())
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
pub(super) fn compare(servers: &[Server], cpu: &[f64]) {
    for (server, cpu_of) in servers.iter().zip(cpu).skip(1) {
        println!("{}: {:+.1} % CPU per request", server.name, (cpu_of / cpu[0] - 1.0) * 100.0);
    }
}

pub(super) fn measure(release: &Path, arguments: &[&str], server: &Server) -> Result<Measurement> {
    let before = cpu(server.child.id())?;
    let mut load = Command::new(release.join("load"));
    load.args(arguments).args(["--port", &server.port.to_string()]);
    let line =
        output(&mut load).with_context(|| format!("{}: the load generator failed", server.name))?;
    let spent = cpu(server.child.id())? - before;
    let value = |key: &str| number(&line, key);
    Ok(Measurement {
        rate: value("requests_per_second")?,
        first: value("first_p50_us")?,
        last_p50: value("last_p50_us")?,
        last_p99: value("last_p99_us")?,
        // Of the whole run, including the warm-up.
        cpu: spent * 1e6 / value("requests")?.max(1.0),
    })
}

/// Returns a number of a JSON object.
pub(super) fn number(line: &str, key: &str) -> Result<f64> {
    let rest = line.split(&format!("\"{key}\":")).nth(1);
    let rest = rest.with_context(|| format!("no {key} in {line}"))?;
    let text: String = rest.chars().take_while(|c| c.is_ascii_digit() || *c == '.').collect();
    text.parse().with_context(|| format!("{key} in {line}"))
}
