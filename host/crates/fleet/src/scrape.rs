//! The engines' own metrics, and the Prometheus text that most of them come in. The names of the
//! metrics are in the folders of the drivers.
//!
//! All input is untrusted: a value that is malformed, negative or NaN is treated as missing. The
//! caller limits the size of the text.

use std::time::Duration;

#[cfg(test)]
mod tests;

/// Maximum number of lines that are read. vLLM writes about 700 for each of its engines.
pub(crate) const MAX_LINES: usize = 100_000;

/// The metrics of an engine; a metric that the engine does not report is `None`. Counters start at
/// zero with the engine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct EngineMetrics {
    /// Running requests.
    pub(crate) running: Option<u32>,
    /// Accepted requests that are not running yet.
    pub(crate) waiting: Option<u32>,
    /// Used part of the KV cache in thousandths; the maximum over several engines.
    pub(crate) kv_used: Option<u16>,
    /// Counter: prompt tokens looked up in the prefix cache.
    pub(crate) prefix_queries: Option<u64>,
    /// Counter: prompt tokens found in the prefix cache.
    pub(crate) prefix_hits: Option<u64>,
    /// Counter: prompt tokens, including those from the prefix cache.
    pub(crate) prompt_tokens: Option<u64>,
    /// Counter: generated tokens.
    pub(crate) generated_tokens: Option<u64>,
    /// Counter: batches of tokens, of prompts or generated, that were computed.
    pub(crate) batches: Option<u64>,
    /// A number that changes when the state of the work on a request changes.
    pub(crate) work_state: Option<u64>,
    /// Counter: requests that lost their KV cache to others and were restarted.
    pub(crate) preemptions: Option<u64>,
    /// At least one engine sleeps, at any level.
    pub(crate) asleep: Option<bool>,
    /// Number of slots. Not a metric: llama.cpp reports it in `/slots`.
    pub(crate) slots: Option<u32>,
    /// Number of slots in use.
    pub(crate) slots_busy: Option<u32>,
}

impl EngineMetrics {
    /// Fills the missing metrics from `other`.
    pub(crate) fn or(self, other: Self) -> Self {
        Self {
            running: self.running.or(other.running),
            waiting: self.waiting.or(other.waiting),
            kv_used: self.kv_used.or(other.kv_used),
            prefix_queries: self.prefix_queries.or(other.prefix_queries),
            prefix_hits: self.prefix_hits.or(other.prefix_hits),
            prompt_tokens: self.prompt_tokens.or(other.prompt_tokens),
            generated_tokens: self.generated_tokens.or(other.generated_tokens),
            batches: self.batches.or(other.batches),
            work_state: self.work_state.or(other.work_state),
            preemptions: self.preemptions.or(other.preemptions),
            asleep: self.asleep.or(other.asleep),
            slots: self.slots.or(other.slots),
            slots_busy: self.slots_busy.or(other.slots_busy),
        }
    }
}

/// Rates computed from two scrapes of one engine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Rates {
    /// Tokens per second of a running request. Known only if requests were running at both scrapes;
    /// otherwise the engine may have been idle for a part of the time. Too low by the time spent on
    /// prompts.
    pub(crate) decode_tps: Option<u32>,
    /// Part of the prompt tokens that was found in the prefix cache, in thousandths.
    pub(crate) prefix_hit: Option<u16>,
}

/// Returns true if the later scrape shows that the engine has worked in between: a counter has
/// moved, or the use of the KV cache, which grows with each part of a prompt. The numbers of
/// running and waiting requests prove nothing, because a hung engine accepts requests.
pub(crate) fn has_progressed(earlier: &EngineMetrics, later: &EngineMetrics) -> bool {
    let counters: [fn(&EngineMetrics) -> Option<u64>; 7] = [
        |metrics| metrics.prefix_queries,
        |metrics| metrics.prompt_tokens,
        |metrics| metrics.generated_tokens,
        |metrics| metrics.preemptions,
        |metrics| metrics.batches,
        |metrics| metrics.work_state,
        |metrics| metrics.kv_used.map(u64::from),
    ];
    counters.iter().any(|value| value(earlier).zip(value(later)).is_some_and(|(e, l)| e != l))
}

/// Compares two scrapes. A counter that decreased shows that the engine was restarted; then no
/// counter can be compared, not even one that has grown past its old value.
pub(crate) fn rates(earlier: &EngineMetrics, later: &EngineMetrics, between: Duration) -> Rates {
    let counters: [fn(&EngineMetrics) -> Option<u64>; 5] = [
        |metrics| metrics.prefix_queries,
        |metrics| metrics.prefix_hits,
        |metrics| metrics.prompt_tokens,
        |metrics| metrics.generated_tokens,
        |metrics| metrics.preemptions,
    ];
    if counters
        .iter()
        .any(|counter| counter(later).zip(counter(earlier)).is_some_and(|(l, e)| l < e))
    {
        return Rates::default();
    }
    let [queries, hits, _, generated, _] = counters
        .map(|counter| counter(later).zip(counter(earlier)).and_then(|(l, e)| l.checked_sub(e)));
    let running = earlier.running.zip(later.running).filter(|(e, l)| *e > 0 && *l > 0);
    let decode_tps = running.zip(generated).and_then(|((e, l), generated)| {
        let seconds = between.as_secs_f64();
        let per_request = generated as f64 / ((f64::from(e) + f64::from(l)) / 2.0);
        (generated > 0 && seconds > 0.0).then(|| (per_request / seconds).round() as u32)
    });
    let prefix_hit = queries
        .zip(hits)
        .filter(|(queries, _)| *queries > 0)
        .map(|(queries, hits)| permille(hits as f64 / queries as f64));
    Rates { decode_tps, prefix_hit }
}

/// One line of metrics.
pub(crate) struct Sample<'a> {
    /// Without the engine's prefix and without `_total`, because versions differ in whether
    /// counters have that suffix.
    pub(crate) name: &'a str,
    /// The text between the braces.
    pub(crate) labels: &'a str,
    /// Finite and not negative.
    pub(crate) value: f64,
}

/// Returns the samples whose names start with `prefix`.
pub(crate) fn samples<'a>(text: &'a str, prefix: &'static str) -> impl Iterator<Item = Sample<'a>> {
    let lines = text.lines().take(MAX_LINES);
    lines.filter_map(move |line| sample(line.trim_ascii_start().strip_prefix(prefix)?))
}

/// Parses `name{label="value",…} value [time]`.
fn sample(line: &str) -> Option<Sample<'_>> {
    let (name, rest) = line.split_at_checked(line.find(['{', ' ', '\t'])?)?;
    let rest = rest.trim_ascii_start();
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(rest) => {
            let (labels, rest) = rest.split_at_checked(find_unquoted(rest, b'}')?)?;
            (labels, rest.get(1..)?)
        }
        None => ("", rest),
    };
    let value: f64 = rest.split_ascii_whitespace().next()?.parse().ok()?;
    let name = name.strip_suffix("_total").unwrap_or(name);
    (value.is_finite() && value >= 0.0).then_some(Sample { name, labels, value })
}

/// Returns the position of the first such byte outside of quotes.
fn find_unquoted(text: &str, wanted: u8) -> Option<usize> {
    let (mut quoted, mut escaped) = (false, false);
    text.bytes().position(|byte| {
        let found = byte == wanted && !quoted;
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            _ => {}
        }
        found
    })
}

/// Returns the value of a label as it is written, without its quotes.
pub(crate) fn label<'a>(mut labels: &'a str, name: &str) -> Option<&'a str> {
    loop {
        let end = find_unquoted(labels, b',').unwrap_or(labels.len());
        let (pair, rest) = labels.split_at_checked(end)?;
        if let Some((key, value)) = pair.split_once('=')
            && key.trim_ascii() == name
        {
            return value.trim_ascii().strip_prefix('"')?.strip_suffix('"');
        }
        labels = rest.get(1..)?;
    }
}

/// Adds a counter's value.
pub(crate) fn add(sum: &mut Option<u64>, value: f64) {
    // The cast and the sum saturate: the value comes from outside.
    *sum = Some(sum.unwrap_or(0).saturating_add(value as u64));
}

/// Adds a number of requests.
pub(crate) fn add_requests(sum: &mut Option<u32>, value: f64) {
    // As above.
    *sum = Some(sum.unwrap_or(0).saturating_add(value as u32));
}

/// Keeps the maximum of several engines; `part` is from 0 to 1.
pub(crate) fn keep_max(max: &mut Option<u16>, part: f64) {
    *max = Some(max.unwrap_or(0).max(permille(part)));
}

fn permille(part: f64) -> u16 {
    (part * 1000.0).round().clamp(0.0, 1000.0) as u16
}
