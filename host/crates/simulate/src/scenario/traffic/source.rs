//! When the requests of a stream arrive: arrival processes, sessions and trace files.

use std::path::Path;
use std::time::Duration;

use pointsman_settings::{Code, Section, missing};

use crate::arrivals::{ArrivalProcess, Sessions, TraceFile, TraceFormat, TrafficSource};
use crate::random::Distribution;
use crate::scenario::quantity::{
    Unit, conflict, distribution, must_be_positive, number, rate, required_distribution,
    required_interval, time_of_day,
};

/// The keys that define an arrival process.
const ARRIVAL_KEYS: [&str; 4] = ["rate", "daily", "every", "bursts"];

pub(super) fn read_source(section: &Section<'_>, folder: &Path) -> Option<TrafficSource> {
    let keys: Vec<&str> = ARRIVAL_KEYS
        .into_iter()
        .chain(["sessions", "file"])
        .filter(|key| section.has(key))
        .collect();
    match keys.as_slice() {
        [] => {
            let message = "no arrivals defined: set one of `rate`, `daily`, `every`, `bursts`, \
                           `sessions` and `file`";
            section.error(Code::MissingKey.with(message));
            None
        }
        // `read_trace` decides whether the other key is allowed.
        ["file"] | [_, "file"] => read_trace(section, folder).map(TrafficSource::Trace),
        ["sessions"] => read_sessions(&section.section("sessions")).map(TrafficSource::Sessions),
        [_] => read_arrivals(section).map(TrafficSource::Open),
        [first, second, ..] => {
            conflict(section, second, first);
            None
        }
    }
}

fn read_arrivals(section: &Section<'_>) -> Option<ArrivalProcess> {
    if section.has("daily") {
        let daily = section.section("daily");
        let peak = read_rate(&daily, "peak");
        let trough = if daily.has("trough") { daily.parsed("trough", rate)? } else { 0.0 };
        let peak_at = daily.parsed("peak-at", time_of_day);
        let peak_at =
            if daily.has("peak-at") { peak_at } else { Some(Duration::from_secs(14 * 3600)) };
        daily.report_unknown();
        let peak = peak?;
        if trough > peak {
            daily.error_at("trough", Code::Conflict.with("must not be greater than `peak`"));
            return None;
        }
        return Some(ArrivalProcess::Daily { peak, trough, peak_at: peak_at? });
    }
    if section.has("every") {
        return required_interval(section, "every").map(ArrivalProcess::Every);
    }
    if section.has("bursts") {
        let bursts = section.section("bursts");
        let every = required_interval(&bursts, "every");
        let size = required_distribution(&bursts, "size", Unit::Count);
        let gap = distribution(&bursts, "gap", Unit::Time).unwrap_or(Distribution::Fixed(0.0));
        bursts.report_unknown();
        return Some(ArrivalProcess::Bursts { every: every?, size: size?, gap });
    }
    read_rate(section, "rate").map(ArrivalProcess::Poisson)
}

/// Reads a rate that must be greater than zero.
fn read_rate(section: &Section<'_>, key: &str) -> Option<f64> {
    if !section.has(key) {
        section.error_at(key, missing(format!("`{key} = \"30/h\"`")));
    }
    let rate = section.parsed(key, rate)?;
    if rate <= 0.0 {
        section.error_at(key, must_be_positive());
        return None;
    }
    Some(rate)
}

fn read_sessions(section: &Section<'_>) -> Option<Sessions> {
    let keys: Vec<&str> = ARRIVAL_KEYS.into_iter().filter(|key| section.has(key)).collect();
    let arrivals = match keys.as_slice() {
        [first, second, ..] => {
            conflict(section, second, first);
            None
        }
        [] | [_] => read_arrivals(section),
    };
    let turns = required_distribution(section, "turns", Unit::Count);
    let think_time = required_distribution(section, "think-time", Unit::Time);
    let max_prompt = section.optional_integer("max-prompt", 1..=100_000_000);
    section.report_unknown();
    Some(Sessions { arrivals: arrivals?, turns: turns?, think_time: think_time?, max_prompt })
}

fn read_trace(section: &Section<'_>, folder: &Path) -> Option<TraceFile> {
    let formats = [
        ("azure", Some(TraceFormat::Azure)),
        ("burstgpt", Some(TraceFormat::BurstGpt)),
        ("sharegpt", Some(TraceFormat::ShareGpt)),
        ("records", Some(TraceFormat::Records)),
    ];
    let file = section.required_string("file", "\"trace.csv\"").map(|file| folder.join(file));
    if !section.has("format") {
        let formats = formats.map(|(name, _)| format!("\"{name}\"")).join(", ");
        let example = format!("`format = \"azure\"`; formats are {formats}");
        section.error_at("format", missing(example));
    }
    let format = section.choice("format", &formats, None);
    let speed = if section.has("speed") { number(section, "speed", 1e-6, 1e6) } else { Some(1.0) };
    let limit = section.has("limit").then(|| section.integer("limit", 1..=i64::MAX, 1));
    let arrival_key = ARRIVAL_KEYS.into_iter().chain(["sessions"]).find(|key| section.has(key));
    let is_conversations = format == Some(TraceFormat::ShareGpt);
    let arrivals = match arrival_key {
        Some(key) if !is_conversations || key == "sessions" => {
            // The other formats contain the arrival times, and conversations are sessions already.
            conflict(section, key, "file");
            None
        }
        None if is_conversations => {
            section.error_at("rate", missing("`rate = \"30/h\"`, at which conversations start"));
            None
        }
        Some(_) => read_arrivals(section),
        None => None,
    };
    if section.has("think-time") && !is_conversations {
        let message = "not used by this format, only by \"sharegpt\"; remove it";
        section.error_at("think-time", Code::Conflict.with(message));
    }
    let think_time = distribution(section, "think-time", Unit::Time)
        .unwrap_or_else(|| Distribution::from_percentiles(10.0, 120.0));
    Some(TraceFile { file: file?, format: format?, speed: speed?, limit, arrivals, think_time })
}
