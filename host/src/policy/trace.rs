//! `pointsman policy trace`: shows what a policy read, returned and logged about one request.

use std::io::BufReader;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use pointsman_files::open_regular;
use pointsman_policy::{CaseResult, ChainSpec, Difference, LogLine};
use pointsman_record::records;
use pointsman_replay::{ChainSource, Replay};
use pointsman_report::table::clean;
use serde_json::{Value, json};

use super::author::{cannot_load, load};
use crate::cli::policy::Trace;
use crate::explain::{explanation, host_calls, section, value_lines};
use crate::output::print;
use crate::replay::record_files;
use crate::{chains, facts, simulate};

/// Prints the trace of a golden case or of a recorded request.
pub(super) fn trace(options: &Trace) -> Result<()> {
    let text =
        if options.records.is_empty() { trace_case(options)? } else { trace_record(options)? };
    print(&text)
}

fn trace_case(options: &Trace) -> Result<String> {
    let bench = load(&options.dir, pointsman_config::default_cache())?;
    let is_selected = |name: &str| name.contains(&options.what);
    let results = bench.test(&facts::from_case, is_selected).map_err(cannot_load(&options.dir))?;
    // A name may be a part of another one.
    let exact = results.iter().filter(|case| case.name == options.what).count();
    let is_meant = |case: &&CaseResult| exact == 0 || case.name == options.what;
    let cases: Vec<&CaseResult> = results.iter().filter(is_meant).collect();
    if cases.is_empty() {
        bail!("no golden case of `{}` has \"{}\" in its name", bench.name(), options.what);
    }
    if options.json {
        let cases: Vec<Value> = cases.into_iter().map(case_json).collect();
        return Ok(format!("{:#}\n", Value::Array(cases)));
    }
    Ok(cases.into_iter().map(case_text).collect::<Vec<_>>().join("\n"))
}

fn case_json(case: &CaseResult) -> Value {
    json!({
        "case": case.name,
        "line": case.line,
        "hook": case.hook,
        "trace": case.trace,
        "dropped": case.dropped,
        "log": case.log,
        "passed": case.differences.is_empty(),
    })
}

fn case_text(case: &CaseResult) -> String {
    let mut text = format!("case {} `{}`: {}\n", case.line, clean(&case.name), case.hook);
    let trace = &case.trace;
    section(&mut text, "lanes", lanes(&trace.lanes));
    section(&mut text, "read", host_calls(&trace.reads));
    section(&mut text, "log", case.log.iter().map(log_line));
    section(&mut text, "returned", value_lines(&trace.returned));
    section(&mut text, "dropped", case.dropped.iter().map(|part| clean(part)));
    section(&mut text, "decided", value_lines(&trace.decided));
    let difference = |Difference { what, expected, got }: &Difference| {
        format!("{what}: expected {}, got {}", clean(expected), clean(got))
    };
    section(&mut text, "differs", case.differences.iter().map(difference));
    text
}

fn trace_record(options: &Trace) -> Result<String> {
    let dir = options.dir.display().to_string();
    // Owns temporary folders, which must exist until the policies have been loaded.
    let policies = chains::policies(&[dir], &ChainSpec::default())?;
    let source = ChainSource::Recorded { overrides: policies.list.clone() };
    let env = simulate::stage()?;
    let mut replay = Replay::new(env.runtime(), source, 1)?;
    replay.trace_request(&options.what);
    for file in record_files(&options.records)? {
        if replay.trace().is_some() {
            break;
        }
        add_records(&mut replay, &file)?;
    }
    let trace = replay.trace();
    let trace = trace.with_context(|| format!("no record of request `{}`", options.what))?;
    if options.json {
        return Ok(format!("{:#}\n", json!(trace)));
    }
    Ok(explanation(trace))
}

fn add_records(replay: &mut Replay<'_>, file: &Path) -> Result<()> {
    replay.start_file(&file.display().to_string());
    for record in records(BufReader::new(open_regular(file)?)) {
        match record {
            Ok(record) => replay.push(record)?,
            Err(error) => replay.skip_line(&error.to_string()),
        }
    }
    Ok(())
}

fn lanes(names: &[String]) -> impl Iterator<Item = String> {
    names.iter().enumerate().map(|(id, name)| format!("{id} {}", clean(name)))
}

fn log_line(line: &LogLine) -> String {
    format!("{:<5} {}", line.level, clean(&line.message))
}
