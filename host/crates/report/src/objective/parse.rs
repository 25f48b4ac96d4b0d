//! Parsing of objectives.

use pointsman_domain::RequestResult;

use super::{Objective, ObjectiveErrorKind as Kind, Op};
use crate::metric::{Metric, Scope, Statistic, Unit};

const OPS: [(&str, Op); 6] = [
    // Longer operators come first, because `<` is a prefix of `<=`.
    ("<=", Op::AtMost),
    (">=", Op::AtLeast),
    ("==", Op::Equal),
    ("!=", Op::Unequal),
    ("<", Op::Less),
    (">", Op::More),
];

/// Constructs the metric of a statistic.
type TimeMetric = fn(Statistic) -> Metric;

const TIMES: [(&str, TimeMetric); 3] =
    [("wait", Metric::Wait), ("first-byte", Metric::FirstByte), ("total", Metric::Total)];

/// Counts by outcome, each with the corresponding share.
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

const OTHERS: [(&str, Metric); 14] = [
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
    ("policy.faults", Metric::PolicyFaults),
    ("policy.errors", Metric::PolicyErrors),
    ("policy.dropped", Metric::PolicyDropped),
];

pub(super) fn objective(text: &str) -> Result<Objective, Kind> {
    let (left, op, value) = split(text)?;
    let (scope, metric) = scoped_metric(left)?;
    let (metric, value) = value_of(metric, value)?;
    metric.check_scope(&scope).map_err(|error| Kind::Scope { metric, error })?;
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    Ok(Objective { text, scope, metric, op, value })
}

/// Splits an objective at its operator. Names may contain any characters but those of operators.
fn split(text: &str) -> Result<(&str, Op, &str), Kind> {
    let at = text.find(['<', '>', '=', '!']);
    let Some((left, rest)) = at.and_then(|at| text.split_at_checked(at)) else {
        return Err(Kind::MissingOperator);
    };
    let op = OPS.iter().find_map(|(word, op)| Some((*op, rest.strip_prefix(word)?)));
    let Some((op, value)) = op else {
        return Err(Kind::InvalidOperator);
    };
    Ok((left.trim(), op, value.trim()))
}

/// Parses the left-hand side. The metric is matched from the end, because names may contain dots.
fn scoped_metric(text: &str) -> Result<(Scope, Metric), Kind> {
    if text.is_empty() {
        return Err(Kind::MissingMetric);
    }
    let known = metrics();
    let words = normalized(text);
    let found = known
        .iter()
        .filter_map(|(name, metric)| {
            let before = words.strip_suffix(name.as_str())?;
            (before.is_empty() || before.ends_with('.')).then_some((before.len(), *metric))
        })
        .min_by_key(|(before, _)| *before);
    match found {
        // `_` and `-` are one byte each, so offsets in the normalized text are valid in the
        // original.
        Some((before, metric)) => Ok((scope(text[..before].trim_end_matches('.'))?, metric)),
        None => Err(unknown(&words, &known)),
    }
}

fn scope(text: &str) -> Result<Scope, Kind> {
    match text.split_once('.') {
        Some(("tenant", name)) if !name.is_empty() => Ok(Scope::Tenant(name.to_owned())),
        Some(("lane", name)) if !name.is_empty() => Ok(Scope::Lane(name.to_owned())),
        Some(("tenant", _)) => Err(Kind::MissingName { scope: "tenant" }),
        Some(("lane", _)) => Err(Kind::MissingName { scope: "lane" }),
        None if text == "tenant" => Err(Kind::MissingName { scope: "tenant" }),
        None if text == "lane" => Err(Kind::MissingName { scope: "lane" }),
        _ if text.is_empty() || text == "all" => Ok(Scope::All),
        _ => Ok(Scope::Class(text.to_owned())),
    }
}

/// Returns all metrics by name.
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

fn unknown(words: &str, known: &[(String, Metric)]) -> Kind {
    let last = words.rsplit('.').next().unwrap_or_default();
    if TIMES.iter().any(|(name, _)| *name == last) {
        let statistics = Statistic::ALL.map(|(statistic, _)| format!("{last}.{statistic}"));
        return Kind::MissingStatistic { metric: last.to_owned(), expected: statistics.to_vec() };
    }
    if last == "queue" {
        let expected = vec!["queue.max".to_owned(), "queue.mean".to_owned()];
        return Kind::MissingStatistic { metric: last.to_owned(), expected };
    }
    // The metric may be the last word or the last two words.
    let two = words.rmatch_indices('.').nth(1).map_or(words, |(at, _)| &words[at + 1..]);
    let names: Vec<&str> = known.iter().map(|(name, _)| name.as_str()).collect();
    let found = closest(two, &names).or_else(|| closest(last, &names));
    let hint = found.map_or_else(
        || {
            let times = TIMES.iter().map(|(name, _)| format!("`{name}.STATISTIC`"));
            let counts = COUNTS.iter().map(|(name, ..)| format!("`{name}`"));
            // `fairness` is an alias of `tenant.fairness`.
            let others = OTHERS.iter().filter(|(name, _)| *name != "fairness");
            let others = others.map(|(name, _)| format!("`{name}`"));
            let all: Vec<String> = times.chain(counts).chain(others).collect();
            format!("expected one of {}", all.join(", "))
        },
        |name| format!("did you mean `{name}`?"),
    );
    Kind::UnknownMetric { name: words.to_owned(), hint }
}

/// Returns a hint with the known name that is closest to `word`, or with all known names.
pub(super) fn suggestion(word: &str, known: &[&str]) -> String {
    match closest(word, known) {
        Some(name) => format!("did you mean `{name}`?"),
        None if known.is_empty() => "none are defined".to_owned(),
        None => format!("expected one of `{}`", known.join("`, `")),
    }
}

fn closest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    let similar = known.iter().map(|known| (strsim::jaro_winkler(known, word), *known));
    similar
        .filter(|(similarity, _)| *similarity > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, name)| name)
}

/// Parses the right-hand side in the unit of the metric. A percentage turns a count into a share.
fn value_of(metric: Metric, text: &str) -> Result<(Metric, f64), Kind> {
    if let Some(percent) = text.strip_suffix('%') {
        let share = COUNTS
            .iter()
            .find(|(_, count, _)| *count == metric)
            .map_or(metric, |(.., share)| *share);
        if !matches!(share.unit(), Unit::Share) && share != Metric::Fairness {
            return Err(Kind::NotAShare { metric, value: text.to_owned() });
        }
        let percent =
            number(percent.trim_end()).ok_or_else(|| invalid(text, "percentage", "5%"))?;
        return Ok((share, percent / 100.0));
    }
    let (value, expected, example) = match metric.unit() {
        Unit::Time => (time(text), "duration", "250ms, 20s or 1.5m"),
        Unit::Share => (number(text), "share", "5% or 0.05"),
        Unit::Count | Unit::Number => (number(text), "number", "12 or 0.9"),
    };
    Ok((metric, value.ok_or_else(|| invalid(text, expected, example))?))
}

fn invalid(text: &str, expected: &'static str, example: &'static str) -> Kind {
    Kind::InvalidValue { value: text.to_owned(), expected, example }
}

fn time(text: &str) -> Option<f64> {
    /// Seconds are the number times the second field, divided by the third one: multiplying by
    /// `1e-3` instead would lose precision.
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

/// Parses digits with at most one point: no sign, no exponent, no `inf` or `NaN`.
fn number(text: &str) -> Option<f64> {
    let plain = text.starts_with(|c: char| c.is_ascii_digit())
        && text.bytes().all(|c| c.is_ascii_digit() || c == b'.');
    plain.then(|| text.parse::<f64>().ok()).flatten().filter(|number| number.is_finite())
}

fn normalized(text: &str) -> String {
    text.replace('_', "-")
}
