//! What engines tell about themselves: the metrics of vLLM and llama.cpp, and llama.cpp's `/slots` and
//! `/props`.
//!
//! The names are those of vLLM 0.32.0 and llama.cpp b11434. All of it comes from outside: what is malformed,
//! not a number or negative counts as not said. How much text is read off the wire is for the caller to
//! limit.

use std::time::Duration;

use serde_json::Value;

#[cfg(test)]
mod tests;

/// How many lines of metrics are looked at. vLLM writes about 700 for each of its engines.
const MOST_LINES: usize = 100_000;

/// Figures that an engine tells about itself; what it does not tell is `None`. Counters count from the
/// engine's start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct EngineMetrics {
    /// Requests that it works on.
    pub(crate) running: Option<u32>,
    /// Requests that it has accepted and not begun.
    pub(crate) waiting: Option<u32>,
    /// Used part of the KV cache in thousandths; of several engines the fullest.
    pub(crate) kv_used: Option<u16>,
    /// Counter: tokens of prompts that were looked up in the prefix cache.
    pub(crate) prefix_queries: Option<u64>,
    /// Counter: those of them that were found.
    pub(crate) prefix_hits: Option<u64>,
    /// Counter: tokens of prompts, those from the prefix cache included.
    pub(crate) prompt_tokens: Option<u64>,
    /// Counter: tokens made.
    pub(crate) generated_tokens: Option<u64>,
    /// Counter: requests that lost their KV cache to others and began anew.
    pub(crate) preemptions: Option<u64>,
    /// It sleeps, at any level; of several engines at least one.
    pub(crate) asleep: Option<bool>,
    /// Requests that it can work on at once. Not among the metrics, see [`slots`].
    pub(crate) slots: Option<u32>,
    /// Those of them that are taken.
    pub(crate) slots_busy: Option<u32>,
}

impl EngineMetrics {
    /// These, and of `other` what these do not tell.
    pub(crate) fn or(self, other: Self) -> Self {
        Self {
            running: self.running.or(other.running),
            waiting: self.waiting.or(other.waiting),
            kv_used: self.kv_used.or(other.kv_used),
            prefix_queries: self.prefix_queries.or(other.prefix_queries),
            prefix_hits: self.prefix_hits.or(other.prefix_hits),
            prompt_tokens: self.prompt_tokens.or(other.prompt_tokens),
            generated_tokens: self.generated_tokens.or(other.generated_tokens),
            preemptions: self.preemptions.or(other.preemptions),
            asleep: self.asleep.or(other.asleep),
            slots: self.slots.or(other.slots),
            slots_busy: self.slots_busy.or(other.slots_busy),
        }
    }
}

/// What vLLM's `/metrics` says. Figures of several engines (data parallel) are added up.
pub(crate) fn vllm(text: &str) -> EngineMetrics {
    let mut figures = EngineMetrics::default();
    for Sample { name, labels, value } in samples(text, "vllm:") {
        match name {
            "num_requests_running" => add_requests(&mut figures.running, value),
            "num_requests_waiting" => add_requests(&mut figures.waiting, value),
            // The second one is its older name; some versions have both, with the same value.
            "kv_cache_usage_perc" | "gpu_cache_usage_perc" => fullest(&mut figures.kv_used, value),
            "prefix_cache_queries" => add(&mut figures.prefix_queries, value),
            "prefix_cache_hits" => add(&mut figures.prefix_hits, value),
            "prompt_tokens" => add(&mut figures.prompt_tokens, value),
            "generation_tokens" => add(&mut figures.generated_tokens, value),
            "num_preemptions" => add(&mut figures.preemptions, value),
            "engine_sleep_state" => sleep_state(&mut figures.asleep, labels, value),
            _ => {}
        }
    }
    figures
}

/// What llama.cpp's `/metrics` says; it is there with `--metrics` only.
pub(crate) fn llama_cpp(text: &str) -> EngineMetrics {
    let mut figures = EngineMetrics::default();
    let mut computed = None;
    for Sample { name, value, .. } in samples(text, "llamacpp:") {
        match name {
            "requests_processing" => add_requests(&mut figures.running, value),
            "requests_deferred" => add_requests(&mut figures.waiting, value),
            // Builds of 2025 and older.
            "kv_cache_usage_ratio" => fullest(&mut figures.kv_used, value),
            "prompt_tokens" => add(&mut computed, value),
            "prompt_tokens_cached" => add(&mut figures.prefix_hits, value),
            "tokens_predicted" => add(&mut figures.generated_tokens, value),
            _ => {}
        }
    }
    // It counts a prompt's tokens as either computed or cached, and looks every one of them up.
    let all = |cached: u64| computed.map(|computed: u64| computed.saturating_add(cached));
    figures.prefix_queries = figures.prefix_hits.and_then(all);
    figures.prompt_tokens = all(figures.prefix_hits.unwrap_or(0));
    figures
}

/// What llama.cpp's `/slots` says: how many there are, and how many of them are taken. It is off with
/// `--no-slots`.
pub(crate) fn slots(json: &[u8]) -> Option<(u32, u32)> {
    let Ok(Value::Array(slots)) = serde_json::from_slice(json) else { return None };
    let mut busy = 0;
    for slot in &slots {
        // Builds before November 2024 say it with a number, 0 for idle.
        let state = || slot["state"].as_u64().map(|state| state != 0);
        busy += u32::from(slot["is_processing"].as_bool().or_else(state)?);
    }
    Some((u32::try_from(slots.len()).ok()?, busy))
}

/// What can be said from two scrapes of one engine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Rates {
    /// Tokens a second that a running request got. Only if requests ran at both ends: otherwise the engine
    /// may have done nothing for a part of the time. Too low by the time that went into prompts.
    pub(crate) decode_tps: Option<u32>,
    /// Part of the prompts' tokens that was in the prefix cache, in thousandths.
    pub(crate) prefix_hit: Option<u16>,
    /// Any token was read or made. An engine may need minutes for a long prompt and count it only then.
    pub(crate) moved: Option<bool>,
}

/// Compare two scrapes. A counter that went back shows that the engine was started anew: then the others say
/// nothing either, even those that have grown past their old value.
pub(crate) fn rates(earlier: &EngineMetrics, later: &EngineMetrics, between: Duration) -> Rates {
    let counters: [fn(&EngineMetrics) -> Option<u64>; 5] = [
        |figures| figures.prefix_queries,
        |figures| figures.prefix_hits,
        |figures| figures.prompt_tokens,
        |figures| figures.generated_tokens,
        |figures| figures.preemptions,
    ];
    if counters
        .iter()
        .any(|counter| counter(later).zip(counter(earlier)).is_some_and(|(l, e)| l < e))
    {
        return Rates::default();
    }
    let [queries, hits, read, made, _] = counters
        .map(|counter| counter(later).zip(counter(earlier)).and_then(|(l, e)| l.checked_sub(e)));
    let moved = match (read, made) {
        (Some(1..), _) | (_, Some(1..)) => Some(true),
        (Some(0), Some(0)) => Some(false),
        _ => None,
    };
    let running = earlier.running.zip(later.running).filter(|(e, l)| *e > 0 && *l > 0);
    let decode_tps = running.zip(made).and_then(|((e, l), made)| {
        let seconds = between.as_secs_f64();
        let each = made as f64 / ((f64::from(e) + f64::from(l)) / 2.0);
        (made > 0 && seconds > 0.0).then(|| (each / seconds).round() as u32)
    });
    let prefix_hit = queries
        .zip(hits)
        .filter(|(queries, _)| *queries > 0)
        .map(|(queries, hits)| permille(hits as f64 / queries as f64));
    Rates { decode_tps, prefix_hit, moved }
}

/// One line of metrics.
struct Sample<'a> {
    /// Without the engine's prefix, and without `_total`: whether a counter has that depends on the version.
    name: &'a str,
    /// What stands between the braces.
    labels: &'a str,
    /// Finite, and not negative.
    value: f64,
}

/// The lines whose names begin with `prefix`.
fn samples<'a>(text: &'a str, prefix: &'static str) -> impl Iterator<Item = Sample<'a>> {
    let lines = text.lines().take(MOST_LINES);
    lines.filter_map(move |line| sample(line.trim_ascii_start().strip_prefix(prefix)?))
}

/// `name{label="value",…} value [time]`
fn sample(line: &str) -> Option<Sample<'_>> {
    let (name, rest) = line.split_at_checked(line.find(['{', ' ', '\t'])?)?;
    let rest = rest.trim_ascii_start();
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(rest) => {
            let (labels, rest) = rest.split_at_checked(unquoted(rest, b'}')?)?;
            (labels, rest.get(1..)?)
        }
        None => ("", rest),
    };
    let value: f64 = rest.split_ascii_whitespace().next()?.parse().ok()?;
    let name = name.strip_suffix("_total").unwrap_or(name);
    (value.is_finite() && value >= 0.0).then_some(Sample { name, labels, value })
}

/// Where the first such letter is that stands outside of quotation marks.
fn unquoted(text: &str, letter: u8) -> Option<usize> {
    let (mut quoted, mut escaped) = (false, false);
    text.bytes().position(|byte| {
        let found = byte == letter && !quoted;
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            _ => {}
        }
        found
    })
}

/// A label's value as it is written, without its quotation marks.
fn label<'a>(mut labels: &'a str, name: &str) -> Option<&'a str> {
    loop {
        let end = unquoted(labels, b',').unwrap_or(labels.len());
        let (pair, rest) = labels.split_at_checked(end)?;
        if let Some((key, value)) = pair.split_once('=')
            && key.trim_ascii() == name
        {
            return value.trim_ascii().strip_prefix('"')?.strip_suffix('"');
        }
        labels = rest.get(1..)?;
    }
}

/// vLLM has one line for each state, with 1 for the one that it is in. While it is merely paused all of them
/// are 0.
fn sleep_state(asleep: &mut Option<bool>, labels: &str, value: f64) {
    let sleeps = match label(labels, "sleep_state") {
        Some("awake") => value == 0.0,
        // That it is not in this state leaves open in which one it is.
        Some("weights_offloaded" | "discard_all") if value > 0.0 => true,
        _ => return,
    };
    *asleep = Some(sleeps || *asleep == Some(true));
}

fn add(sum: &mut Option<u64>, value: f64) {
    *sum = Some(sum.unwrap_or(0).saturating_add(value as u64));
}

fn add_requests(sum: &mut Option<u32>, value: f64) {
    *sum = Some(sum.unwrap_or(0).saturating_add(value as u32));
}

/// `part` is 0 to 1.
fn fullest(most: &mut Option<u16>, part: f64) {
    *most = Some(most.unwrap_or(0).max(permille(part)));
}

fn permille(part: f64) -> u16 {
    (part * 1000.0).round().clamp(0.0, 1000.0) as u16
}
