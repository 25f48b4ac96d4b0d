//! What came of a replay, for a terminal.

use std::collections::BTreeSet;

use super::report::{Count, Effect, Report, Shown};
use crate::report::numbers::{count, share, time};
use crate::report::text::{aligned, clean};

/// Kinds of differences that are shown.
const MOST_KINDS: usize = 20;
/// Lanes that a table has room for.
const MOST_COLUMNS: usize = 9;
/// Moves that are shown where there is no room for a table.
const MOST_MOVES: usize = 20;
/// A text that is one of many is cut after so many characters.
const LONGEST: usize = 160;

pub(super) fn of(report: &Report) -> String {
    let mut parts = vec![agreement(report)];
    parts.extend(remarks(report));
    parts.extend(kinds(report));
    parts.extend(effect(report));
    parts.extend(report.shown.iter().map(shown));
    parts.push(verdict(report));
    parts.join("\n")
}

fn number(value: u64) -> String {
    count(value as f64)
}

fn plural(value: u64, one: &str) -> String {
    format!("{} {one}{}", number(value), if value == 1 { "" } else { "s" })
}

fn agreement(report: &Report) -> String {
    let head = ["", "ASKED", "SAME", "OTHERWISE", "NOT KNOWN", "AGREEMENT", "THEN", "NOW"]
        .map(str::to_owned);
    let row = |name: String, of: &Count, then: String, now: String| {
        let rate = of.agreement().map_or_else(|| "-".to_owned(), share);
        vec![
            name,
            number(of.all()),
            number(of.same),
            number(of.differ),
            number(of.unknown),
            rate,
            then,
            now,
        ]
    };
    let mut rows = vec![head.to_vec()];
    for (name, policy) in &report.policies {
        let then = match policy.then.len() {
            0 => "-".to_owned(),
            1 => policy.then.keys().next().map(|version| clean(version)).unwrap_or_default(),
            versions => format!("{versions} versions"),
        };
        let now = policy.now.as_deref().map_or_else(|| "-".to_owned(), clean);
        rows.push(row(clean(name), &policy.calls, then, now));
    }
    rows.push(row("decisions".to_owned(), &report.decisions, String::new(), String::new()));
    let files = plural(report.files, "file");
    format!(
        "{} of {files}, asked again\n{}",
        plural(report.decisions.all(), "decision"),
        aligned(&rows)
    )
}

/// What else there is to know of the calls.
fn remarks(report: &Report) -> Option<String> {
    let mut text = String::new();
    for ((policy, why), calls) in &report.silent {
        let calls = plural(*calls, "call");
        text.push_str(&format!("{}: {calls} had no advice then: {}\n", clean(policy), clean(why)));
    }
    for (name, policy) in report.policies.iter().filter(|(_, policy)| policy.new > 0) {
        text.push_str(&format!(
            "{}: {} that there were none of then\n",
            clean(name),
            plural(policy.new, "call")
        ));
    }
    for ((policy, _), lack) in &report.lacking {
        let (policy, example, calls) =
            (clean(policy), clean(&lack.example), plural(lack.calls, "call"));
        let hint = lack.hint.map(|hint| format!("; {hint}")).unwrap_or_default();
        text.push_str(&format!("cannot be replayed: {policy} {example} ({calls}){hint}\n"));
    }
    if report.skipped > 0 {
        text.push_str(&format!("{} cannot be used:\n", plural(report.skipped, "line")));
        text.extend(report.skipped_first.iter().map(|line| format!("  {}\n", clean(line))));
    }
    (!text.is_empty()).then_some(text)
}

fn kinds(report: &Report) -> Option<String> {
    let mut kinds: Vec<_> = report.kinds.iter().collect();
    kinds.sort_by(|a, b| b.1.count.cmp(&a.1.count).then_with(|| a.0.cmp(b.0)));
    let mut rows = vec![["OTHERWISE", "OF", "COUNT", "MOSTLY"].map(str::to_owned).to_vec()];
    for ((who, what), kind) in kinds.iter().take(MOST_KINDS) {
        let mostly = kind.commonest().map(|(text, times)| match kind.texts.len() {
            1 => short(text),
            _ => format!("{} ({})", short(text), number(times)),
        });
        rows.push(vec![
            (*what).to_owned(),
            clean(who),
            number(kind.count),
            mostly.unwrap_or_default(),
        ]);
    }
    (rows.len() > 1).then(|| aligned(&rows))
}

fn short(text: &str) -> String {
    let text = clean(text);
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text,
    }
}

fn effect(report: &Report) -> Option<String> {
    let effect = &report.effect;
    if report.decisions.differ == 0 {
        return None;
    }
    let mut text = String::from("what would have become of the requests\n");
    let facts = [
        (effect.moved(), "would go elsewhere first"),
        (effect.refused_now, "would be refused that were not"),
        (effect.refused_then, "would not be refused that were"),
        (effect.raised, "would have a higher priority"),
        (effect.lowered, "would have a lower priority"),
    ];
    for (requests, what) in facts.iter().filter(|(requests, _)| *requests > 0) {
        text.push_str(&format!("  {:>8}  {what}\n", number(*requests)));
    }
    if effect.moved() > 0 {
        text.push('\n');
        text.push_str(&moves(effect));
    }
    text.push('\n');
    text.push_str(&start(effect));
    Some(text)
}

/// From where to where.
fn moves(effect: &Effect) -> String {
    let columns: BTreeSet<&String> = effect.moves.values().flat_map(|row| row.keys()).collect();
    if columns.len() > MOST_COLUMNS {
        let mut list: Vec<_> = effect
            .moves
            .iter()
            .flat_map(|(then, row)| row.iter().map(move |(now, count)| (then, now, *count)))
            .filter(|(then, now, _)| then != now)
            .collect();
        list.sort_by(|a, b| b.2.cmp(&a.2).then_with(|| (a.0, a.1).cmp(&(b.0, b.1))));
        let line = |(then, now, count): &(&String, &String, u64)| {
            format!("  {:>8}  {} -> {}\n", number(*count), clean(then), clean(now))
        };
        return list.iter().take(MOST_MOVES).map(line).collect();
    }
    let head =
        std::iter::once("THEN \\ NOW".to_owned()).chain(columns.iter().map(|lane| clean(lane)));
    let mut rows = vec![head.collect::<Vec<_>>()];
    for (then, row) in &effect.moves {
        let cells = columns.iter().map(|now| number(row.get(*now).copied().unwrap_or(0)));
        rows.push(std::iter::once(clean(then)).chain(cells).collect());
    }
    aligned(&rows)
}

fn start(effect: &Effect) -> String {
    let mut text = String::new();
    if let Some(mean) = effect.mean_change_ms() {
        let sign = if mean < 0.0 { "-" } else { "+" };
        let mean = if mean == 0.0 {
            "0 s".to_owned()
        } else {
            format!("{sign}{}", time(mean.abs() / 1000.0))
        };
        text.push_str(&format!(
            "time to start, estimated from the lanes' figures then: {mean} on average, sooner for {}, later for {} of {}\n",
            number(effect.sooner),
            number(effect.later),
            number(effect.started),
        ));
    }
    text.push_str(
        "(an estimate: it knows nothing of the queues that these decisions would have made; `pointsman simulate` with traffic\n\
         of `format = \"records\"` does)\n",
    );
    text
}

fn shown(shown: &Shown) -> String {
    let mut text = format!("request {} in {}\n", clean(&shown.request), clean(&shown.file));
    for call in &shown.calls {
        for difference in &call.differences {
            text.push_str(&format!(
                "  {} {}  {}\n",
                clean(&call.policy),
                call.hook,
                clean(&difference.to_string())
            ));
        }
        text.extend(call.why.iter().map(|why| format!("    the same version: {}\n", clean(why))));
    }
    for difference in &shown.decision {
        text.push_str(&format!("  decision  {}\n", clean(&difference.to_string())));
    }
    text
}

fn verdict(report: &Report) -> String {
    let stopped =
        if report.stopped { "stopped before the end of the records: so far, " } else { "" };
    let all = report.decisions.all();
    let what = match report {
        _ if all == 0 => "there are no decisions in these records".to_owned(),
        report if report.agrees() => "everything is as in the records".to_owned(),
        report => {
            let Count { differ, unknown, .. } = report.decisions;
            let calls: u64 = report.policies.values().map(|policy| policy.calls.differ).sum();
            let mut what =
                format!("{} of {} are made otherwise", number(differ), plural(all, "decision"));
            what.push_str(&format!(", {} answered otherwise", plural(calls, "call")));
            if unknown > 0 {
                what.push_str(&format!(", {} cannot be replayed", plural(unknown, "decision")));
            }
            let own: u64 =
                report.policies.values().map(|policy| policy.differ_in_same_version).sum();
            if own > 0 {
                what.push_str(&format!(
                    ", {} of them by the very version that wrote the record",
                    number(own)
                ));
            }
            what
        }
    };
    format!("{stopped}{what}\n")
}
