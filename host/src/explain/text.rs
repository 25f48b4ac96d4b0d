//! Explanations as text for people.

use humantime::format_rfc3339_seconds;
use std::time::{Duration, UNIX_EPOCH};

use pointsman_domain::Read;
use pointsman_record::{
    Assumptions, CallReplay, ExplainedAttempt, ExplainedCall, ExplainedDecision, ExplainedLane,
    Explanation, Source,
};
use pointsman_report::table::{aligned, clean};
use serde_json::Value;

/// Maximum length of a value, in characters.
const MAX_VALUE: usize = 300;
/// The parts of the merged advice that are shown elsewhere.
const SHOWN_ELSEWHERE: [&str; 5] = ["by", "candidates", "lanes", "reject", "notes"];

/// Renders an explanation.
pub(crate) fn explanation(explained: &Explanation) -> String {
    let mut text = head(explained);
    if let Some(assumed) = &explained.assumed {
        section(&mut text, "assumed", assumptions(assumed));
    }
    section(&mut text, "request", value_lines(&explained.request));
    section(&mut text, "rights", value_lines(&explained.rights));
    section(&mut text, "guards", items(&explained.guards));
    section(&mut text, "lanes", lanes(&explained.lanes));
    for call in &explained.policies {
        text.push_str(&policy_call(call));
    }
    section(&mut text, "merged advice", merged(&explained.merged));
    section(&mut text, "decision", decision(explained));
    if let Some(replay) = &explained.replay {
        let is_same = replay.differences.is_empty() && !replay.decision.is_null();
        let decision = match is_same {
            true => vec!["the same".to_owned()],
            false => value_lines(&replay.decision),
        };
        section(&mut text, "decision now", decision);
        section(&mut text, "differs", replay.differences.iter().map(|one| clean(one)));
    }
    section(&mut text, "attempts", attempts(&explained.attempts));
    section(&mut text, "outcome", outcome(explained));
    let hint = (!explained.has_host_calls && !explained.policies.is_empty())
        .then_some("what policies read is only known of recorded requests; see `[records]`");
    let notes = explained.notes.iter().map(String::as_str).chain(hint);
    section(&mut text, "notes", notes.map(clean));
    text
}

fn head(explained: &Explanation) -> String {
    let Explanation { id, source, unix_ms, endpoint, model, tenant, key, .. } = explained;
    let from = match source {
        Source::Recent => "recent decision",
        Source::Records => "record",
        Source::Preview => "preview, nothing was sent",
        Source::Configuration => "preview without a host, nothing was sent",
    };
    let at = UNIX_EPOCH.checked_add(Duration::from_millis(*unix_ms));
    let at = at.map_or_else(String::new, |at| format!(", {}", format_rfc3339_seconds(at)));
    let mut text = format!("request {} ({from}{at})\n  {endpoint}", clean(id));
    for (what, value) in [("model", model), ("tenant", tenant), ("key", key)] {
        if let Some(value) = value {
            text.push_str(&format!(", {what} `{}`", clean(value)));
        }
    }
    text.push('\n');
    text
}

fn assumptions(assumed: &Assumptions) -> Vec<String> {
    let Assumptions { config, lanes, notes } = assumed;
    let config = format!("a host has started with {}, and its engines are loaded", clean(config));
    let lanes = lanes.iter().map(|(name, state)| format!("{} {}", clean(name), clean(state)));
    let lanes = format!("lanes: {}", lanes.collect::<Vec<_>>().join(", "));
    [config, lanes].into_iter().chain(notes.iter().map(|note| clean(note))).collect()
}

fn lanes(lanes: &[ExplainedLane]) -> Vec<String> {
    if lanes.is_empty() {
        return Vec::new();
    }
    const HEAD: [&str; 10] =
        ["ID", "LANE", "STATE", "STEP", "SCORE", "START", "FREE", "QUEUED", "CACHED", "EXCLUDED"];
    let mut rows = vec![HEAD.map(str::to_owned).to_vec()];
    let number = |number: Option<String>| number.unwrap_or_else(|| "-".to_owned());
    rows.extend(lanes.iter().map(|lane| {
        vec![
            lane.id.to_string(),
            clean(&lane.name),
            clean(&lane.state),
            number(lane.step.map(|step| step.to_string())),
            number(lane.score.map(|score| score.to_string())),
            format!("{} ms", lane.start_in_ms),
            lane.slots_free.to_string(),
            lane.queued.to_string(),
            lane.cached_tokens.to_string(),
            lane.excluded.as_deref().map_or_else(String::new, clean),
        ]
    }));
    aligned(&rows).lines().map(str::to_owned).collect()
}

fn policy_call(call: &ExplainedCall) -> String {
    let ExplainedCall { policy, version, hook, duration_us, .. } = call;
    let (policy, version) = (clean(policy), clean(version));
    let mut text = format!("\n{hook} of {policy} ({version}), {duration_us} us\n");
    match &call.replay {
        None => {
            section(&mut text, "read", host_calls(&call.host_calls));
            section(&mut text, "log", call.log.iter().map(|line| clean(line)));
            advice(&mut text, "", call);
        }
        Some(replay) => replayed(&mut text, call, replay),
    }
    text
}

/// Shows a call that was made again, and what differs from the recorded one.
fn replayed(text: &mut String, call: &ExplainedCall, replay: &CallReplay) {
    let version = replay.version.as_deref().unwrap_or("not called again");
    text.push_str(&format!("now ({}): {}\n", clean(version), replay.verdict));
    section(text, "read", host_calls(&replay.host_calls));
    section(text, "log", replay.log.iter().map(|line| clean(line)));
    section(text, "returned", value_lines(&replay.returned));
    section(text, "dropped", replay.dropped.iter().map(|part| clean(part)));
    if replay.verdict != "same" {
        advice(text, " then", call);
    }
    section(text, "because", replay.because.iter().map(|cause| clean(cause)));
}

fn advice(text: &mut String, when: &str, call: &ExplainedCall) {
    section(text, &format!("returned{when}"), value_lines(&call.advice));
    section(text, &format!("note{when}"), call.note.iter().map(|note| clean(note)));
    section(text, &format!("dropped{when}"), call.dropped.iter().map(|part| clean(part)));
}

/// Returns the merged advice without what the lanes and the decision show.
fn merged(merged: &Value) -> Vec<String> {
    let Value::Object(fields) = merged else { return Vec::new() };
    let rest = fields
        .iter()
        .filter(|(key, value)| !SHOWN_ELSEWHERE.contains(&key.as_str()) && !is_empty(value));
    rest.map(|(key, value)| shortened(&format!("{key}: {value}"))).collect()
}

fn decision(explained: &Explanation) -> Vec<String> {
    let Some(ExplainedDecision { kind, lanes, detail }) = &explained.decision else {
        return Vec::new();
    };
    let lanes: Vec<String> = lanes.iter().map(|lane| clean(lane)).collect();
    let mut lines = vec![match lanes.is_empty() {
        true => clean(kind),
        false => format!("{}: {}", clean(kind), lanes.join(", then ")),
    }];
    lines.extend(explained.decided_by.iter().map(|by| format!("decided by: {}", clean(by))));
    lines.extend(explained.reason.iter().map(|why| format!("reason: {}", shortened(why))));
    lines.extend(value_lines(detail));
    lines
}

fn attempts(attempts: &[ExplainedAttempt]) -> Vec<String> {
    let line = |(number, attempt): (usize, &ExplainedAttempt)| {
        let ExplainedAttempt { lane, result, status, started_ms, queue_ms, duration_ms } = attempt;
        let status = status.map_or_else(String::new, |status| format!(" ({status})"));
        format!(
            "{number} {}: {}{status}; started after {started_ms} ms, waited {queue_ms} ms, took \
             {duration_ms} ms",
            clean(lane),
            clean(result),
        )
    };
    (1..).zip(attempts).map(line).collect()
}

fn outcome(explained: &Explanation) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(outcome) = &explained.outcome {
        let status = outcome.status.map_or_else(String::new, |status| format!(" ({status})"));
        let ttft = outcome.ttft_ms.map_or_else(String::new, |ms| format!(", first byte {ms} ms"));
        let duration = outcome.duration_ms;
        lines.push(format!("{}{status}: {duration} ms{ttft}", clean(&outcome.outcome)));
        let tokens = [
            ("prompt", outcome.prompt_tokens),
            ("cached", outcome.cached_tokens),
            ("output", outcome.output_tokens),
        ];
        let tokens =
            tokens.iter().filter_map(|(what, count)| Some(format!("{} {what}", (*count)?)));
        let tokens: Vec<String> = tokens.collect();
        lines.extend((!tokens.is_empty()).then(|| format!("tokens: {}", tokens.join(", "))));
    }
    if let Some(error) = &explained.error {
        let status = error.status.map_or_else(String::new, |status| format!("{status} "));
        let code = error.code.as_deref().map_or_else(String::new, |code| format!(" [{code}]"));
        lines.push(format!("error: {status}{}{}", shortened(&error.message), clean(&code)));
    }
    lines
}

/// Adds lines under a heading; nothing if there are none.
pub(crate) fn section(text: &mut String, heading: &str, lines: impl IntoIterator<Item = String>) {
    let mut lines = lines.into_iter().peekable();
    if lines.peek().is_none() {
        return;
    }
    text.push_str(&format!("{heading}\n"));
    for line in lines {
        text.push_str(&format!("  {line}\n"));
    }
}

/// Returns host calls with their results, one per line.
pub(crate) fn host_calls(calls: &[Read]) -> impl Iterator<Item = String> {
    calls.iter().map(host_call)
}

fn host_call(read: &Read) -> String {
    let args: Vec<String> = read.with.iter().map(ToString::to_string).collect();
    // Statistics and descriptions of lanes are logged without their results.
    let result = if read.gave.is_null() && read.call.starts_with("fleet.") {
        String::new()
    } else {
        format!(" -> {}", read.gave)
    };
    shortened(&format!("{}({}){result}", read.call, args.join(", ")))
}

/// Returns the fields of an object, one per line, without those that are `null` or empty lists.
pub(crate) fn value_lines(value: &Value) -> Vec<String> {
    match value {
        Value::Null => Vec::new(),
        Value::Object(fields) => {
            let given = fields.iter().filter(|(_, value)| !is_empty(value));
            given.map(|(key, value)| shortened(&format!("{key}: {value}"))).collect()
        }
        other => vec![shortened(&other.to_string())],
    }
}

/// Returns the items of a list, one per line.
fn items(list: &Value) -> Vec<String> {
    let items = list.as_array().into_iter().flatten();
    items.map(|item| shortened(&item.to_string())).collect()
}

fn is_empty(value: &Value) -> bool {
    value.is_null() || value.as_array().is_some_and(Vec::is_empty)
}

fn shortened(text: &str) -> String {
    let text = clean(text);
    match text.char_indices().nth(MAX_VALUE) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
