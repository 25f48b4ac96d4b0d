//! The plain-text report of a replay.

use std::collections::BTreeSet;

use pointsman_report::numbers::{count, share, time};
use pointsman_report::table::{aligned, clean};

use crate::report::{Agreement, DecisionDivergence, ReplayEffect, ReplayReport};

/// Maximum number of kinds of divergences that are shown.
const MAX_KINDS: usize = 20;
/// Maximum number of columns of the table of moves.
const MAX_COLUMNS: usize = 9;
/// Maximum number of moves that are listed if there are too many lanes for a table.
const MAX_MOVES: usize = 20;
/// Longer descriptions are truncated to this number of characters.
const MAX_TEXT_CHARS: usize = 160;

impl ReplayReport {
    /// Renders the report as plain text for a terminal.
    pub fn text(&self) -> String {
        render(self)
    }
}

fn render(report: &ReplayReport) -> String {
    let mut parts = vec![agreement(report)];
    parts.extend(remarks(report));
    parts.extend(kinds(report));
    parts.extend(effect(report));
    parts.extend(report.differences.iter().map(differing_decision));
    parts.push(verdict(report));
    parts.join("\n")
}

fn number(value: u64) -> String {
    count(value as f64)
}

fn plural(value: u64, one: &str) -> String {
    format!("{} {one}{}", number(value), if value == 1 { "" } else { "s" })
}

fn agreement(report: &ReplayReport) -> String {
    let head = ["", "CALLS", "SAME", "DIFFERENT", "UNKNOWN", "AGREEMENT", "RECORDED", "REPLAYED"]
        .map(str::to_owned);
    let row = |name: String, agreement: &Agreement, recorded: String, replayed: String| {
        let rate = agreement.rate().map_or_else(|| "-".to_owned(), share);
        vec![
            name,
            number(agreement.all()),
            number(agreement.same),
            number(agreement.differ),
            number(agreement.unknown),
            rate,
            recorded,
            replayed,
        ]
    };
    let mut rows = vec![head.to_vec()];
    for (name, policy) in &report.policies {
        let recorded = match policy.recorded_versions.len() {
            0 => "-".to_owned(),
            1 => policy
                .recorded_versions
                .keys()
                .next()
                .map(|version| clean(version))
                .unwrap_or_default(),
            versions => format!("{versions} versions"),
        };
        let replayed = policy.replayed_version.as_deref().map_or_else(|| "-".to_owned(), clean);
        rows.push(row(clean(name), &policy.calls, recorded, replayed));
    }
    rows.push(row("decisions".to_owned(), &report.decisions, String::new(), String::new()));
    let files = plural(report.files, "file");
    format!(
        "{} of {files} replayed\n{}",
        plural(report.decisions.all(), "decision"),
        aligned(&rows)
    )
}

/// Returns the calls that were not compared, missing inputs and skipped lines.
fn remarks(report: &ReplayReport) -> Option<String> {
    let mut text = String::new();
    for ((policy, reason), calls) in &report.without_advice {
        let calls = plural(*calls, "call");
        text.push_str(&format!(
            "{}: {calls} without advice in the record: {}\n",
            clean(policy),
            clean(reason)
        ));
    }
    for (name, policy) in report.policies.iter().filter(|(_, policy)| policy.not_recorded > 0) {
        text.push_str(&format!(
            "{}: {} not in the record\n",
            clean(name),
            plural(policy.not_recorded, "call")
        ));
    }
    for ((policy, _), input) in &report.missing_inputs {
        let (policy, example, calls) =
            (clean(policy), clean(&input.example), plural(input.calls, "call"));
        let hint = input.hint.map(|hint| format!("; {hint}")).unwrap_or_default();
        text.push_str(&format!("cannot be replayed: {policy} {example} ({calls}){hint}\n"));
    }
    if report.skipped > 0 {
        text.push_str(&format!("{} skipped:\n", plural(report.skipped, "line")));
        text.extend(report.skipped_first.iter().map(|line| format!("  {}\n", clean(line))));
    }
    (!text.is_empty()).then_some(text)
}

fn kinds(report: &ReplayReport) -> Option<String> {
    let mut kinds: Vec<_> = report.kinds.iter().collect();
    kinds.sort_by(|a, b| b.1.count.cmp(&a.1.count).then_with(|| a.0.cmp(b.0)));
    let mut rows = vec![["DIFFERENCE", "IN", "COUNT", "MOST COMMON"].map(str::to_owned).to_vec()];
    for ((policy, what), kind) in kinds.iter().take(MAX_KINDS) {
        let mostly = kind.most_common().map(|(text, times)| match kind.texts.len() {
            1 => short(text),
            _ => format!("{} ({})", short(text), number(times)),
        });
        rows.push(vec![
            (*what).to_owned(),
            clean(policy),
            number(kind.count),
            mostly.unwrap_or_default(),
        ]);
    }
    (rows.len() > 1).then(|| aligned(&rows))
}

fn short(text: &str) -> String {
    let text = clean(text);
    match text.char_indices().nth(MAX_TEXT_CHARS) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text,
    }
}

fn effect(report: &ReplayReport) -> Option<String> {
    let effect = &report.effect;
    if report.decisions.differ == 0 {
        return None;
    }
    let mut text = String::from("effect on the requests\n");
    let facts = [
        (effect.moved(), "go to another lane first"),
        (effect.rejected_only_now, "are rejected only in the replay"),
        (effect.rejected_only_then, "were rejected only in the record"),
        (effect.raised, "have a higher priority"),
        (effect.lowered, "have a lower priority"),
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

/// Renders where requests went in the record and would go in the replay.
fn moves(effect: &ReplayEffect) -> String {
    let columns: BTreeSet<&String> = effect.moves.values().flat_map(|row| row.keys()).collect();
    if columns.len() > MAX_COLUMNS {
        let mut list: Vec<_> = effect
            .moves
            .iter()
            .flat_map(|(recorded, row)| {
                row.iter().map(move |(replayed, count)| (recorded, replayed, *count))
            })
            .filter(|(recorded, replayed, _)| recorded != replayed)
            .collect();
        list.sort_by(|a, b| b.2.cmp(&a.2).then_with(|| (a.0, a.1).cmp(&(b.0, b.1))));
        let line = |(recorded, replayed, count): &(&String, &String, u64)| {
            format!("  {:>8}  {} -> {}\n", number(*count), clean(recorded), clean(replayed))
        };
        return list.iter().take(MAX_MOVES).map(line).collect();
    }
    let head = std::iter::once("RECORDED \\ REPLAYED".to_owned())
        .chain(columns.iter().map(|lane| clean(lane)));
    let mut rows = vec![head.collect::<Vec<_>>()];
    for (recorded, row) in &effect.moves {
        let cells = columns.iter().map(|replayed| number(row.get(*replayed).copied().unwrap_or(0)));
        rows.push(std::iter::once(clean(recorded)).chain(cells).collect());
    }
    aligned(&rows)
}

fn start(effect: &ReplayEffect) -> String {
    let mut text = String::new();
    if let Some(mean) = effect.mean_change_ms() {
        let sign = if mean < 0.0 { "-" } else { "+" };
        let mean = if mean == 0.0 {
            "0 s".to_owned()
        } else {
            format!("{sign}{}", time(mean.abs() / 1000.0))
        };
        text.push_str(&format!(
            "estimated time to start: {mean} on average; sooner for {}, later for {} of {}\n",
            number(effect.sooner),
            number(effect.later),
            number(effect.started),
        ));
    }
    text.push_str(
        "(an estimate from the recorded lane metrics, which ignores how these decisions would\n\
         change the queues; for that, run `pointsman simulate` with traffic of `format = \
         \"records\"`)\n",
    );
    text
}

fn differing_decision(differing: &DecisionDivergence) -> String {
    let mut text = format!("request {} in {}\n", clean(&differing.request), clean(&differing.file));
    for call in &differing.calls {
        for divergence in &call.divergences {
            text.push_str(&format!(
                "  {} {}  {}\n",
                clean(&call.policy),
                call.hook,
                clean(&divergence.to_string())
            ));
        }
        text.extend(
            call.causes.iter().map(|cause| format!("    same version: {}\n", clean(cause))),
        );
    }
    for divergence in &differing.decision {
        text.push_str(&format!("  decision  {}\n", clean(&divergence.to_string())));
    }
    text
}

fn verdict(report: &ReplayReport) -> String {
    let interrupted = if report.interrupted { "interrupted; so far: " } else { "" };
    let all = report.decisions.all();
    let what = match report {
        _ if all == 0 => "no decisions found in the records".to_owned(),
        report if report.agrees() => "all decisions agree with the records".to_owned(),
        report => {
            let Agreement { differ, unknown, .. } = report.decisions;
            let calls: u64 = report.policies.values().map(|policy| policy.calls.differ).sum();
            let mut what = format!("{} of {} differ", number(differ), plural(all, "decision"));
            what.push_str(&format!(", {} differ", plural(calls, "call")));
            if unknown > 0 {
                what.push_str(&format!(", {} cannot be replayed", plural(unknown, "decision")));
            }
            let own: u64 =
                report.policies.values().map(|policy| policy.differ_in_same_version).sum();
            if own > 0 {
                what.push_str(&format!(" ({} in the version that wrote the record)", number(own)));
            }
            what
        }
    };
    format!("{interrupted}{what}\n")
}
