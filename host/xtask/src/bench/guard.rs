//! `cargo xtask bench guard`: the instructions of the three hottest paths, compared with committed
//! ones.
//!
//! Instructions do not depend on how busy the machine is, but on the compiler, the C library and
//! the features of the CPU, by which libraries choose implementations. Counts are committed for
//! each combination of these; with another one, they are only reported.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use pointsman_xtask::command::output;
use pointsman_xtask::setup;

use super::in_process::InProcess;

/// The committed counts: environment, path and count, separated by tabs.
const FILE: &str = "host/benches/request/instructions.tsv";
/// How many more instructions are accepted, in percent.
const TOLERANCE: u64 = 5;
/// Requests or chunks of a measurement.
const UNITS: u32 = 300;
/// A workload of the benchmark, and the one that is the same without a host.
pub(super) const PATHS: [(&str, &str); 3] =
    [("plain", "direct"), ("cortex", "direct"), ("chunk", "direct-chunk")];

/// The count of a path.
#[derive(Debug, Clone, PartialEq)]
struct Count {
    environment: String,
    path: String,
    instructions: u64,
}

pub(super) fn guard(root: &Path, is_writing: bool) -> Result<()> {
    setup::debian_install(&["valgrind"])?;
    let bench = InProcess::build(root)?;
    let environment = environment(&bench)?;
    println!("== instructions: {environment}");
    let file = root.join(FILE);
    let committed = parse(&fs::read_to_string(&file).unwrap_or_default())?;
    let mut measured = Vec::new();
    for (path, without) in PATHS {
        let Some(profile) = bench.difference((path, without), UNITS)? else {
            println!("{path}: not counted, because valgrind cannot run it");
            continue;
        };
        // Rounded, and never negative: the host executes something.
        let instructions = profile.total.round() as u64;
        measured.push(Count {
            environment: environment.clone(),
            path: path.to_owned(),
            instructions,
        });
    }
    let (table, is_exceeded) = compare(&measured, &committed);
    print!("{table}");
    if is_writing {
        fs::write(&file, format(&merge(committed, measured)))?;
        println!("written to {FILE}");
    } else if is_exceeded {
        bail!(
            "more than {TOLERANCE} % above the committed instructions; if that is intended: \
             cargo xtask bench guard --write"
        );
    }
    Ok(())
}

/// Returns what the counts depend on.
fn environment(bench: &InProcess) -> Result<String> {
    let rustc = output(Command::new("rustc").arg("--version")).context("rustc failed")?;
    let rustc: Vec<&str> = rustc.split(' ').take(2).collect();
    let libc = output(Command::new("getconf").arg("GNU_LIBC_VERSION"));
    let libc = libc.unwrap_or_else(|| "other libc".to_owned());
    Ok(format!("{}, {libc}, {}", rustc.join(" "), bench.features()?))
}

/// Returns a table of all paths, and whether one of them has too many instructions.
fn compare(measured: &[Count], committed: &[Count]) -> (String, bool) {
    let (mut table, mut is_exceeded) = (String::new(), false);
    for count in measured {
        let same =
            |other: &&Count| other.environment == count.environment && other.path == count.path;
        let (path, instructions) = (&count.path, count.instructions);
        let note = match committed.iter().find(same) {
            None => "no committed count for this environment".to_owned(),
            Some(Count { instructions: before, .. }) => {
                let change = (instructions as f64 / (*before).max(1) as f64 - 1.0) * 100.0;
                let (percent, limit) = (instructions * 100, before * (100 + TOLERANCE));
                is_exceeded |= percent > limit;
                let verdict = match percent {
                    percent if percent > limit => ", exceeded",
                    percent if percent < before * (100 - TOLERANCE) => {
                        ", improved: commit it with --write"
                    }
                    _ => "",
                };
                format!("{change:+.1} % against {before}{verdict}")
            }
        };
        writeln!(table, "{path:<10}{instructions:>10}  {note}").ok(); // a String accepts everything
    }
    (table, is_exceeded)
}

/// Replaces the counts of the same environment and path.
fn merge(committed: Vec<Count>, measured: Vec<Count>) -> Vec<Count> {
    let is_replaced = |old: &Count| {
        measured.iter().any(|new| new.environment == old.environment && new.path == old.path)
    };
    let mut all: Vec<Count> = committed.into_iter().filter(|old| !is_replaced(old)).collect();
    all.extend(measured);
    all
}

fn parse(text: &str) -> Result<Vec<Count>> {
    let line = |line: &str| {
        let mut fields = line.split('\t');
        let (environment, path) = (fields.next()?.to_owned(), fields.next()?.to_owned());
        Some(Count { environment, path, instructions: fields.next()?.parse().ok()? })
    };
    text.lines()
        .map(|text| line(text).with_context(|| format!("{FILE}: invalid line {text:?}")))
        .collect()
}

fn format(counts: &[Count]) -> String {
    let line =
        |count: &Count| format!("{}\t{}\t{}\n", count.environment, count.path, count.instructions);
    counts.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(environment: &str, path: &str, instructions: u64) -> Count {
        Count { environment: environment.to_owned(), path: path.to_owned(), instructions }
    }

    #[test]
    fn only_more_than_five_percent_in_the_same_environment_is_exceeded() {
        let committed = [count("a", "plain", 1000), count("b", "plain", 10)];
        for (environment, instructions, expected) in
            [("a", 1050, false), ("a", 1051, true), ("a", 100, false), ("c", 9999, false)]
        {
            let measured = [count(environment, "plain", instructions)];
            let (_, is_exceeded) = compare(&measured, &committed);
            assert_eq!(is_exceeded, expected, "{environment} {instructions}");
        }
    }

    #[test]
    fn written_counts_are_read_and_replace_those_of_the_same_environment() {
        let committed = vec![count("a", "plain", 1), count("b", "plain", 2)];
        let merged = merge(committed, vec![count("a", "plain", 3)]);
        assert_eq!(merged, [count("b", "plain", 2), count("a", "plain", 3)]);
        assert_eq!(parse(&format(&merged)).unwrap(), merged);
        assert!(parse("a\tplain\n").is_err());
    }
}
