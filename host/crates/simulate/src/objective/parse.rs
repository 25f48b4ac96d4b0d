//! Reading objectives.

use super::{Objective, Op};
use crate::metric::{Metric, Scope, Statistic, Unit};
use crate::observe::RequestResult;

const OPS: [(&str, Op); 6] = [
    // Longer ones first.
    ("<=", Op::AtMost),
    (">=", Op::AtLeast),
    ("==", Op::Equal),
    ("!=", Op::Unequal),
    ("<", Op::Less),
    (">", Op::More),
];

/// A metric for each statistic.
type OfTimes = fn(Statistic) -> Metric;

const TIMES: [(&str, OfTimes); 3] =
    [("wait", Metric::Wait), ("first-byte", Metric::FirstByte), ("total", Metric::Total)];

/// Counts, and the shares that they are as parts of all requests.
const COUNTS: [(&str, Metric, Metric); 6] = [
    ("answered", Metric::Ended(RequestResult::Answered), Metric::Share(RequestResult::Answered)),
    ("fell-back", Metric::Ended(RequestResult::FellBack), Metric::Share(RequestResult::FellBack)),
    ("served", Metric::Served, Metric::ServedShare),
    ("rejected", Metric::Ended(RequestResult::Rejected), Metric::Share(RequestResult::Rejected)),
    ("errors", Metric::Ended(RequestResult::Error), Metric::Share(RequestResult::Error)),
    (
        "client-gone",
        Metric::Ended(RequestResult::ClientGone),
        Metric::Share(RequestResult::ClientGone),
    ),
];

const OTHERS: [(&str, Metric); 11] = [
    ("tenant.fairness", Metric::Fairness),
    ("fairness", Metric::Fairness),
    ("queue.max", Metric::QueueMax),
    ("queue.mean", Metric::QueueMean),
    ("requests", Metric::Requests),
    ("lost", Metric::Lost),
    ("loads", Metric::Loads),
    ("switches", Metric::Switches),
    ("switches-per-hour", Metric::SwitchesPerHour),
    ("busy", Metric::Busy),
    ("occupied", Metric::Occupied),
];

pub(super) fn objective(text: &str) -> Result<Objective, String> {
    let (left, op, value) = split(text)?;
    let (scope, metric) = figure(left)?;
    let (metric, value) = value_of(metric, value)?;
    metric.fits(&scope).map_err(|problem| format!("`{metric}` {problem}"))?;
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    Ok(Objective { text, scope, metric, op, value })
}

/// The left side, the operator and the right side. Names may hold anything but operators.
fn split(text: &str) -> Result<(&str, Op, &str), String> {
    let at = text.find(['<', '>', '=', '!']);
    let Some((left, rest)) = at.and_then(|at| text.split_at_checked(at)) else {
        return Err("is no comparison; write for example `wait.p99 < 20s`".to_owned());
    };
    let op = OPS.iter().find_map(|(word, op)| Some((*op, rest.strip_prefix(word)?)));
    let Some((op, value)) = op else {
        return Err("compares with none of `<`, `<=`, `>`, `>=`, `==`, `!=`".to_owned());
    };
    Ok((left.trim(), op, value.trim()))
}

/// Reads the metric from the end, because names may have dots in them.
fn figure(text: &str) -> Result<(Scope, Metric), String> {
    if text.is_empty() {
        return Err(
            "says no figure before the operator; write for example `wait.p99 < 20s`".to_owned()
        );
    }
    let known = metrics();
    let words = word(text);
    let found = known
        .iter()
        .filter_map(|(name, metric)| {
            let before = words.strip_suffix(name.as_str())?;
            (before.is_empty() || before.ends_with('.')).then_some((before.len(), *metric))
        })
        .min_by_key(|(before, _)| *before);
    match found {
        // `_` and `-` are one byte each, so the lengths are those of the text.
        Some((before, metric)) => Ok((scope(text[..before].trim_end_matches('.'))?, metric)),
        None => Err(unknown(&words, &known)),
    }
}

fn scope(text: &str) -> Result<Scope, String> {
    match text.split_once('.') {
        Some(("tenant", name)) if !name.is_empty() => Ok(Scope::Tenant(name.to_owned())),
        Some(("lane", name)) if !name.is_empty() => Ok(Scope::Lane(name.to_owned())),
        Some(("tenant" | "lane", _)) => Err(format!("says no name after `{text}`")),
        None if text == "tenant" || text == "lane" => Err(format!("says no name after `{text}.`")),
        _ if text.is_empty() || text == "all" => Ok(Scope::All),
        _ => Ok(Scope::Class(text.to_owned())),
    }
}

/// Every metric by its whole name.
fn metrics() -> Vec<(String, Metric)> {
    let times = TIMES.iter().flat_map(|(name, metric)| {
        Statistic::ALL
            .iter()
            .map(move |(word, statistic)| (format!("{name}.{word}"), metric(*statistic)))
    });
    let counts = COUNTS.iter().flat_map(|(name, count, share)| {
        [((*name).to_owned(), *count), (format!("{name}.share"), *share)]
    });
    let others = OTHERS.iter().map(|(name, metric)| ((*name).to_owned(), *metric));
    times.chain(counts).chain(others).collect()
}

fn unknown(words: &str, known: &[(String, Metric)]) -> String {
    let last = words.rsplit('.').next().unwrap_or_default();
    if TIMES.iter().any(|(name, _)| *name == last) {
        return format!(
            "does not say which; write one of `{last}.mean`, `.p50`, `.p90`, `.p95`, `.p99`, `.max`"
        );
    }
    if last == "queue" {
        return "does not say which; write `queue.max` or `queue.mean`".to_owned();
    }
    // What was meant may be the last word, or the last two.
    let two = words.rmatch_indices('.').nth(1).map_or(words, |(at, _)| &words[at + 1..]);
    let names: Vec<&str> = known.iter().map(|(name, _)| name.as_str()).collect();
    let hint = near(two, &names).or_else(|| near(last, &names));
    let hint = hint.map_or_else(
        || {
            let times =
                "`wait`, `first-byte`, `total` (with `.mean`, `.p50`, `.p90`, `.p95`, `.p99`, `.max`)";
            let rest =
                COUNTS.iter().map(|(name, ..)| *name).chain(OTHERS.iter().skip(2).map(|(name, _)| *name));
            format!("known: {times}, `tenant.fairness`, `{}`", rest.collect::<Vec<_>>().join("`, `"))
        },
        |near| format!("did you mean `{near}`?"),
    );
    format!("names no figure that there is; {hint}")
}

/// What somebody may have meant, or all that there is.
pub(super) fn hint(word: &str, known: &[&str]) -> String {
    match near(word, known) {
        Some(near) => format!("did you mean `{near}`?"),
        None if known.is_empty() => "there are none".to_owned(),
        None => format!("there are `{}`", known.join("`, `")),
    }
}

fn near<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    let similar = known.iter().map(|known| (strsim::jaro_winkler(known, word), *known));
    similar
        .filter(|(similarity, _)| *similarity > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, it)| it)
}

/// The value in the unit of the metric, which a percentage may change.
fn value_of(metric: Metric, text: &str) -> Result<(Metric, f64), String> {
    if let Some(percent) = text.strip_suffix('%') {
        let share = COUNTS
            .iter()
            .find(|(_, count, _)| *count == metric)
            .map_or(metric, |(.., share)| *share);
        if !matches!(share.unit(), Unit::Share) && share != Metric::Fairness {
            return Err(format!(
                "`{metric}` is no part of anything that `{}` could be",
                text.escape_debug()
            ));
        }
        let percent = number(percent.trim_end()).ok_or_else(|| not_a(text, "percentage", "5%"))?;
        return Ok((share, percent / 100.0));
    }
    let example = match metric.unit() {
        Unit::Time => {
            return Ok((
                metric,
                time(text).ok_or_else(|| not_a(text, "time", "250ms, 20s or 1.5m"))?,
            ));
        }
        Unit::Share => ("part", "5% or 0.05"),
        Unit::Count | Unit::Number => ("number", "12 or 0.9"),
    };
    Ok((metric, number(text).ok_or_else(|| not_a(text, example.0, example.1))?))
}

fn not_a(text: &str, kind: &str, example: &str) -> String {
    format!("`{}` is no {kind}; write for example {example}", text.escape_debug())
}

fn time(text: &str) -> Option<f64> {
    /// Seconds are times the second number, divided by the third one: so as exact as can be.
    const UNITS: [(&str, f64, f64); 7] = [
        ("us", 1.0, 1e6),
        ("µs", 1.0, 1e6),
        ("ms", 1.0, 1e3),
        ("s", 1.0, 1.0),
        ("m", 60.0, 1.0),
        ("min", 60.0, 1.0),
        ("h", 3600.0, 1.0),
    ];
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.')?;
    let (digits, unit) = text.split_at(digits);
    let (_, times, divided) = UNITS.iter().find(|(name, ..)| *name == unit.trim_start())?;
    Some(number(digits)? * times / divided)
}

/// Digits with at most one point; no signs, no exponents, no words.
fn number(text: &str) -> Option<f64> {
    let plain = text.starts_with(|c: char| c.is_ascii_digit())
        && text.bytes().all(|c| c.is_ascii_digit() || c == b'.');
    plain.then(|| text.parse::<f64>().ok()).flatten().filter(|number| number.is_finite())
}

fn word(text: &str) -> String {
    text.replace('_', "-")
}
