//! Inputs of a policy that a record does not contain. If none is missing, the replayed result is
//! what the policy would have returned at the time of the record.

use pointsman_domain::{PolicyCall, Read};
use pointsman_policy::{Gap, Missing, Replayed, marks};
use serde_json::Value;

use crate::context::KnownInputs;

/// An input that a record does not contain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MissingInput {
    /// A sentence whose subject is the policy, which the caller adds.
    pub(crate) description: String,
    /// The description without the arguments, which differ from request to request.
    pub(crate) kind: String,
    /// How to record the input.
    pub(crate) hint: Option<&'static str>,
}

impl MissingInput {
    fn new(description: &str, hint: Option<&'static str>) -> Self {
        Self { description: description.to_owned(), kind: description.to_owned(), hint }
    }

    /// Creates a missing input that cannot be recorded.
    pub(crate) fn without_hint(description: &str) -> Self {
        Self::new(description, None)
    }
}

const RECORD_REQUESTS: &str = "record whole requests (`mode = \"full\"`)";
const KEEP_TEXT: &str = "record with `text = \"keep\"` in `[records.redact]`";
const KEEP_TENANT: &str = "record with `tenant = \"keep\"` in `[records.redact]`";
const KEEP_STATE: &str = "record with `state = \"keep\"` in `[records.redact]`";

/// Returns the inputs that a replayed call asked for and did not get.
pub(crate) fn missing_inputs<A>(replayed: &Replayed<A>, known: KnownInputs) -> Vec<MissingInput> {
    let mut found: Vec<MissingInput> = Vec::new();
    for missing in
        replayed.missing.iter().filter(|missing| !is_known(missing, known, &replayed.reads))
    {
        let redacted = missing.why == Gap::Redacted;
        let hint = match missing.call.as_str() {
            "request.tenant" => Some(KEEP_TENANT),
            "request.key-group" | "request.key-name" => redacted.then_some(KEEP_TENANT),
            "request.allowance" | "request.deadline-ms" => None,
            call if call.starts_with("state.") => redacted.then_some(KEEP_STATE),
            _ if redacted || known.body => Some(KEEP_TEXT),
            call if call.starts_with("request.") => Some(RECORD_REQUESTS),
            _ => None,
        };
        let kind =
            Missing { with: Vec::new(), ..missing.clone() }.to_string().replacen(" [],", ",", 1);
        found.push(MissingInput { description: missing.to_string(), kind, hint });
    }
    // Middleware gets the request as an argument, without a host call.
    if replayed.reads.iter().any(|read| read.call == "request") && !known.is_complete() {
        let hint = if known.body { KEEP_TEXT } else { RECORD_REQUESTS };
        let description = "reads the whole request, which the record does not contain";
        found.push(MissingInput::new(description, Some(hint)));
    }
    found
}

/// Returns true if the policy got an answer that equals the one at the time of the record, although
/// the record does not contain it.
fn is_known(missing: &Missing, known: KnownInputs, reads: &[Read]) -> bool {
    let is_unredacted = || {
        let same_call = |read: &&Read| read.call == missing.call && read.with == missing.with;
        !reads.iter().rev().find(same_call).is_some_and(|read| marks::redacted(&read.gave))
    };
    match missing.call.as_str() {
        // These are part of every record, and are passed to the policy.
        "context" | "request.id" | "request.model" => true,
        "request.tenant" => known.tenant,
        // Only recorded for the policies that asked for them.
        "request.key-group" | "request.key-name" | "request.allowance" | "request.deadline-ms" => {
            false
        }
        "request.header" => known.headers && is_unredacted(),
        "request.field" => known.body && is_unredacted(),
        call if call.starts_with("request.") => known.is_complete(),
        // The result of a write does not depend on any input.
        "state.put" | "state.delete" => true,
        _ => false,
    }
}

/// Returns true if edits of the request may change the result of this host call.
pub(crate) fn depends_on_edits(read: &Read) -> bool {
    let fixed = [
        "request.id",
        "request.tenant",
        "request.key-group",
        "request.key-name",
        "request.allowance",
        "request.deadline-ms",
    ];
    (read.call.starts_with("request") && !fixed.contains(&read.call.as_str()))
        || read.call == "fleet.candidates"
}

/// Returns a host call whose recorded result is outdated, because the request was edited
/// differently before the call.
pub(crate) fn outdated_read(reads: &[Read]) -> Option<MissingInput> {
    let read = reads.iter().find(|read| depends_on_edits(read) && read.call != "request.model")?;
    let description = format!("asks {} of a request that was edited differently", read.call);
    Some(MissingInput::new(&description, Some(RECORD_REQUESTS)))
}

/// Returns the metrics of the lanes after a failed attempt, if the policy read them and they are
/// not recorded.
pub(crate) fn missing_lane_metrics(call: &PolicyCall, reads: &[Read]) -> Option<MissingInput> {
    let reads_metrics = |read: &Read| matches!(read.call.as_str(), "fleet.stat" | "fleet.stats");
    (call.fleet.is_empty() && reads.iter().any(reads_metrics)).then(|| {
        MissingInput::without_hint(
            "asks for lane metrics after a failed attempt, which early hosts did not record",
        )
    })
}

/// Returns the possible reasons why the version that wrote a record returns something else in the
/// replay.
pub(crate) fn possible_causes<A>(
    replayed: &Replayed<A>,
    call: &PolicyCall,
    known: KnownInputs,
) -> Vec<String> {
    let mut causes = Vec::new();
    if call.reads.iter().any(|read| read.call == "cut") {
        causes.push("the record does not contain all host calls".to_owned());
    }
    if known.is_complete() {
        let of_request =
            replayed.differing.iter().filter(|differing| differing.call.starts_with("request."));
        causes.extend(of_request.map(ToString::to_string));
    }
    let host_calls = |reads: &[Read]| -> Vec<(String, Vec<Value>)> {
        let is_compared = |read: &&Read| !read.call.starts_with("fleet.") && read.call != "cut";
        reads
            .iter()
            .filter(is_compared)
            .map(|read| (read.call.clone(), read.with.clone()))
            .collect()
    };
    let (recorded, now) = (host_calls(&call.reads), host_calls(&replayed.reads));
    let same = recorded.iter().zip(&now).take_while(|(recorded, now)| recorded == now).count();
    let shown = |host_call: Option<&(String, Vec<Value>)>| match host_call {
        Some((call, with)) => format!("{call} {}", Value::from(with.clone())),
        None => "none".to_owned(),
    };
    if recorded.len() != now.len() || same < recorded.len() {
        causes.push(format!(
            "first different host call: {} in the record, {} in the replay",
            shown(recorded.get(same)),
            shown(now.get(same))
        ));
    }
    causes.push(
        "the recorded inputs are the same, so the result depends on something that is not \
         recorded: data that the instance kept from earlier requests, or its own randomness"
            .to_owned(),
    );
    causes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_limits_are_only_known_from_recorded_calls() {
        let known = KnownInputs { headers: true, body: true, unredacted: true, tenant: true };
        let is_known = |call: &str| {
            let (call, with, why) = (call.to_owned(), Vec::new(), Gap::NotAsked);
            is_known(&Missing { call, with, why }, known, &[])
        };
        assert!(is_known("request.tenant") && is_known("request.text"));
        let calls =
            ["request.key-group", "request.key-name", "request.allowance", "request.deadline-ms"];
        for call in calls {
            assert!(!is_known(call), "{call}");
            let read = Read { call: call.to_owned(), with: Vec::new(), gave: Value::Null };
            assert!(!depends_on_edits(&read), "{call}");
        }
    }
}
