//! `pointsman policy case`: makes a golden case from a decision record.

use std::path::Path;

use anyhow::{Context as _, Result, bail};
use pointsman_domain::{ChainLink, Decision, LaneInfo, PolicyCall, Read};
use pointsman_files::{read_regular_text, write_atomic};
use pointsman_policy::marks;
use pointsman_record::RecordedDecision;
use serde_json::{Map, Value, json};

use super::author::{cannot_load, load};
use super::recorded;
use crate::cli::policy::Case;
use crate::facts;
use crate::output::{print, print_error};

/// Maximum size of a file of golden cases in bytes, as in a host.
const MAX_CASES_BYTES: u64 = 8 << 20;
/// The parts of a decision that a case expects.
const EXPECTED: [&str; 6] = ["lane", "fallback", "edits", "reject", "priority", "why"];

/// Appends a case to the file of the policy's golden cases, or prints it.
pub(super) fn case(options: &Case) -> Result<()> {
    let bench = load(&options.dir, pointsman_config::default_cache())?;
    let recorded = recorded::find(&options.records, &options.from_record)?;
    let mut warnings = Vec::new();
    let name = options.name.clone();
    let name = name.unwrap_or_else(|| format!("request {}", options.from_record));
    let mut case = from_record(&recorded, bench.name(), &name, &mut warnings);
    let result =
        bench.test_case(&case.to_string(), &facts::from_case).map_err(cannot_load(&options.dir))?;
    let Some(decided) = result.trace.decided.as_object() else {
        let error = &result.trace.returned["error"];
        bail!("the policy gives no advice about this request: {error}");
    };
    case["expect"] = expected(decided);
    let (then, now) = (first_lane(&recorded), &decided["lane"]);
    if then.as_ref().is_some_and(|then| *then != *now) {
        warnings.push(format!(
            "the policy decides differently than the recorded chain: {now} instead of {}",
            then.unwrap_or_default()
        ));
    }
    for warning in warnings {
        print_error(format!("warning: {warning}"));
    }
    let line = format!("{case}\n");
    if options.print {
        return print(&line);
    }
    let file = bench.cases_file();
    append(&file, &line).with_context(|| format!("failed to append to {}", file.display()))?;
    print(&format!("{}: appended the golden case `{name}`\n", file.display()))
}

/// Appends a line to a file of lines, whose last one may lack its end.
fn append(file: &Path, line: &str) -> Result<()> {
    let before =
        if file.exists() { read_regular_text(file, MAX_CASES_BYTES)? } else { String::new() };
    let end = if before.is_empty() || before.ends_with('\n') { "" } else { "\n" };
    Ok(write_atomic(file, format!("{before}{end}{line}").as_bytes(), 0o644)?)
}

/// Returns what a case expects of a decision. A rejection has no lane.
fn expected(decided: &Map<String, Value>) -> Value {
    let is_rejected = decided.contains_key("reject");
    let is_expected = |key: &str| match key {
        "lane" | "fallback" | "priority" => !is_rejected,
        _ => true,
    };
    let parts = EXPECTED.into_iter().filter(|key| is_expected(key));
    let parts = parts.filter_map(|key| Some((key.to_owned(), decided.get(key)?.clone())));
    Value::Object(parts.collect())
}

/// Returns the name of the lane that was attempted first, if the request was not rejected.
fn first_lane(recorded: &RecordedDecision) -> Option<Value> {
    let Decision::Route(plan) = &recorded.decision.decision else { return None };
    let lane = plan.steps.first()?.lane;
    let info = recorded.topology.lanes.iter().find(|info| info.id == lane)?;
    Some(json!(info.name))
}

/// Returns a case without expectations. Adds what it cannot represent to `warnings`.
fn from_record(
    recorded: &RecordedDecision,
    policy: &str,
    name: &str,
    warnings: &mut Vec<String>,
) -> Value {
    let decision = &recorded.decision;
    let is_call = |call: &&PolicyCall| call.hook == "on-request" && *call.policy.name == *policy;
    let call = decision.consulted.iter().find(is_call);
    let reads = call.map(|call| call.reads.as_slice()).unwrap_or_default();
    if call.is_none() {
        warnings.push(format!("`{policy}` was not called then; its state and its key are unknown"));
    }
    let mut lanes = recorded.topology.lanes.clone();
    lanes.sort_by_key(|lane| lane.id);
    let barred = lanes.iter().filter(|info| is_barred(recorded, info));
    let barred: Vec<&str> = barred.map(|info| info.name.as_str()).collect();
    if !barred.is_empty() {
        warnings.push(format!(
            "the request could not be sent to {} because of guards, rights or endpoints, which a \
             case does not have: there, the model is not one of theirs",
            barred.join(", ")
        ));
    }
    let lanes: Vec<Value> = lanes.iter().map(|info| lane(recorded, info)).collect();
    let mut case = json!({
        "name": name,
        "config": config(recorded, policy),
        "request": request(recorded, reads, warnings),
        "fleet": { "lanes": lanes },
        "expect": {},
    });
    add_results(&mut case, recorded, reads);
    let state = state(reads, warnings);
    if !state.is_empty() {
        case["state"] = Value::Object(state);
    }
    if marks::redacted(&case) {
        warnings.push(
            "texts in the record are redacted; record with `text = \"keep\"` in `[records.redact]`"
                .into(),
        );
    }
    case
}

/// Sets what only the results of host calls tell.
fn add_results(case: &mut Value, recorded: &RecordedDecision, reads: &[Read]) {
    for read in reads.iter().filter(|read| !read.gave.is_null()) {
        match read.call.as_str() {
            "request.deadline-ms" => case["request"]["facts"]["deadline-ms"] = read.gave.clone(),
            "fleet.lanes-left" => {
                let is_left = |info: &&LaneInfo| {
                    let left = read.gave.as_array();
                    left.is_some_and(|left| left.contains(&json!(info.id)))
                };
                let left = recorded.topology.lanes.iter().filter(is_left);
                case["lanes-left"] = left.map(|info| info.name.as_str()).collect();
            }
            _ => {}
        }
    }
}

fn config(recorded: &RecordedDecision, policy: &str) -> Value {
    let of_policy = |link: &&ChainLink| *link.policy.name == *policy && link.trial.is_none();
    let mut links = recorded.chain.iter().flat_map(|chain| &chain.policies);
    links.find(of_policy).map_or_else(|| json!({}), |link| link.config.clone())
}

/// Returns true if a lane serves the model of the request, and was not a candidate for it.
fn is_barred(recorded: &RecordedDecision, info: &LaneInfo) -> bool {
    let RecordedDecision { decision, .. } = recorded;
    let candidates = &decision.merged.candidates;
    let has_model = info.models.iter().any(|model| **model == *decision.model);
    !candidates.is_empty() && has_model && !candidates.contains(&info.id)
}

fn lane(recorded: &RecordedDecision, info: &LaneInfo) -> Value {
    let mut models = info.models.clone();
    if is_barred(recorded, info) {
        models.retain(|model| **model != *recorded.decision.model);
    }
    let mut lane = Map::from_iter([
        ("name".to_owned(), json!(info.name)),
        ("models".to_owned(), json!(models)),
        ("engine".to_owned(), json!(info.engine)),
        ("slots".to_owned(), json!(info.slots)),
    ]);
    if !info.labels.is_empty() {
        let labels = info.labels.iter().map(|(key, value)| (key.clone(), json!(value)));
        lane.insert("labels".to_owned(), Value::Object(labels.collect()));
    }
    let numbers =
        [("max-context", info.max_context), ("group", info.group), ("cost-milli", info.cost_milli)];
    for (key, number) in numbers.into_iter().filter(|(_, number)| *number != 0) {
        lane.insert(key.to_owned(), json!(number));
    }
    match recorded.decision.fleet.iter().find(|stat| stat.id == info.id) {
        Some(stat) => {
            // Zeros are left out of it, and free slots default to all.
            lane.insert("slots-free".to_owned(), json!(stat.slots_free));
            if let Value::Object(mut stat) = json!(stat) {
                stat.remove("id");
                lane.extend(stat);
            }
        }
        None => {
            lane.insert("state".to_owned(), json!("down"));
        }
    }
    Value::Object(lane)
}

/// Returns the request: as it was recorded, or else with the facts that were recorded of it.
fn request(recorded: &RecordedDecision, reads: &[Read], warnings: &mut Vec<String>) -> Value {
    let decision = &recorded.decision;
    let info = decision.figures;
    let mut headers = Map::new();
    let whole = decision.request.as_ref();
    for (name, value) in whole.iter().flat_map(|request| &request.headers) {
        headers.entry(name.clone()).or_insert_with(|| json!(value));
    }
    let body = whole.and_then(|request| serde_json::from_str::<Value>(request.body.as_ref()?).ok());
    let mut request = Map::from_iter([
        ("endpoint".to_owned(), json!(info.endpoint)),
        ("now-ms".to_owned(), json!(decision.now_ms)),
        ("seed".to_owned(), json!(decision.seed)),
    ]);
    let mut facts = Map::new();
    if body.is_none() {
        warnings.push(
            "the body is not in the record, so the case sets the facts of the request directly; \
             policies that read messages or fields see none"
                .into(),
        );
        facts = Map::from_iter([
            ("streaming".to_owned(), json!(info.streaming)),
            ("body-bytes".to_owned(), json!(info.body_bytes)),
            ("prompt-tokens".to_owned(), json!(info.prompt_tokens)),
            ("max-output-tokens".to_owned(), json!(info.max_output_tokens)),
            ("messages".to_owned(), json!(info.messages)),
            ("has-tools".to_owned(), json!(info.has_tools)),
            ("has-media".to_owned(), json!(info.has_media)),
            ("has-grammar".to_owned(), json!(info.has_grammar)),
        ]);
    }
    if !decision.age.is_zero() {
        facts.insert("age-ms".to_owned(), json!(decision.age.as_millis() as u64));
    }
    if decision.attempt != 0 {
        facts.insert("attempt".to_owned(), json!(decision.attempt));
    }
    if !facts.is_empty() {
        request.insert("facts".to_owned(), Value::Object(facts));
    }
    let no_body = || json!({ "model": decision.model, "messages": [] });
    request.insert("body".to_owned(), body.unwrap_or_else(no_body));
    if let Some(tenant) = &decision.tenant {
        request.insert("tenant".to_owned(), json!(tenant));
    }
    for read in reads.iter().filter(|read| !read.gave.is_null()) {
        match read.call.as_str() {
            "request.header" => {
                if let Some(name) = read.with.first().and_then(Value::as_str) {
                    headers.entry(name.to_lowercase()).or_insert_with(|| read.gave.clone());
                }
            }
            "request.key-name" | "request.key-group" | "request.allowance" => {
                let key = read.call.trim_start_matches("request.").to_owned();
                request.insert(key, read.gave.clone());
            }
            _ => {}
        }
    }
    if !headers.is_empty() {
        request.insert("headers".to_owned(), Value::Object(headers));
    }
    Value::Object(request)
}

/// Returns the state before the call, as far as the policy has read it.
fn state(reads: &[Read], warnings: &mut Vec<String>) -> Map<String, Value> {
    let mut state = Map::new();
    let mut seen = std::collections::HashSet::new();
    for read in reads {
        let Some(key) = read.with.first().and_then(Value::as_str) else { continue };
        // Only the first call about a key tells what was there before.
        if !read.call.starts_with("state.") || !seen.insert(key) {
            continue;
        }
        match read.call.as_str() {
            "state.increment" => {
                let after = read.gave["ok"].as_i64();
                let by = read.with.get(1).and_then(Value::as_i64).unwrap_or_default();
                match after.and_then(|after| after.checked_sub(by)) {
                    Some(0) => {}
                    Some(before) => {
                        state.insert(key.to_owned(), json!(before));
                    }
                    None => warnings.push(format!("the state `{key}` cannot be represented")),
                }
            }
            "state.get" if read.gave.is_null() => {}
            "state.get" => match counter(reads, key, &read.gave).or(text(&read.gave)) {
                Some(value) => {
                    state.insert(key.to_owned(), value);
                }
                None => warnings.push(format!("the state `{key}` cannot be represented")),
            },
            _ => {}
        }
    }
    state
}

/// Returns the number of a counter that was read: eight bytes in little-endian order.
fn counter(reads: &[Read], key: &str, gave: &Value) -> Option<Value> {
    let is_increment = |read: &Read| {
        read.call == "state.increment" && read.with.first().and_then(Value::as_str) == Some(key)
    };
    let hex = gave["hex"].as_str()?;
    let is_number = hex.len() == 16 && (reads.iter().any(is_increment) || hex.ends_with("0000"));
    let number = u64::from_str_radix(hex, 16).ok().filter(|_| is_number)?;
    Some(json!(number.swap_bytes().cast_signed()))
}

fn text(gave: &Value) -> Option<Value> {
    Some(json!(gave["text"].as_str()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(call: &str, with: Value, gave: Value) -> Read {
        let Value::Array(with) = with else { panic!("{with}") };
        Read { call: call.to_owned(), with, gave }
    }

    #[test]
    fn state_is_the_one_before_the_call() {
        let reads = [
            read("state.get", json!(["none"]), Value::Null),
            read("state.get", json!(["note"]), json!({ "text": "hello" })),
            read("state.put", json!(["note", { "text": "later" }, 0]), json!({ "ok": null })),
            read("state.increment", json!(["spent", 5, 0]), json!({ "ok": 12 })),
            read("state.increment", json!(["new", 1, 0]), json!({ "ok": 1 })),
            read("state.get", json!(["count"]), json!({ "hex": "0500000000000000" })),
            read("state.get", json!(["bytes"]), json!({ "hex": "ff" })),
            read("state.put", json!(["written", { "text": "x" }, 0]), json!({ "ok": null })),
            read("state.get", json!(["written"]), json!({ "text": "x" })),
        ];
        let mut warnings = Vec::new();
        let state = Value::Object(state(&reads, &mut warnings));
        assert_eq!(state, json!({ "note": "hello", "spent": 7, "count": 5 }));
        assert!(warnings.len() == 1 && warnings[0].contains("`bytes`"), "{warnings:?}");
    }
}
