//! Inputs that a record does not have: without any, what a policy says now is what it would have said then.

use pointsman_domain::{Consulted, Read};
use pointsman_policy::{Gap, Missing, Replayed, marks};
use serde_json::Value;

use super::scene::Known;

/// One input that is not there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Lacking {
    /// Sentence without its subject.
    pub(super) what: String,
    /// The same without what differs from request to request.
    pub(super) kind: String,
    /// What to do about it.
    pub(super) hint: Option<&'static str>,
}

const WHOLE: &str = "record whole requests (`mode = \"full\"`)";
const TEXT: &str = "record with `text = \"keep\"` in `[records.redact]`";
const TENANT: &str = "record with `tenant = \"keep\"` in `[records.redact]`";
const STATE: &str = "record with `state = \"keep\"` in `[records.redact]`";

/// What a call asked now and was not told.
pub(super) fn of<A>(replayed: &Replayed<A>, known: Known) -> Vec<Lacking> {
    let mut found: Vec<Lacking> = Vec::new();
    for missing in
        replayed.missing.iter().filter(|missing| !answered(missing, known, &replayed.reads))
    {
        let redacted = missing.why == Gap::Redacted;
        let hint = match missing.call.as_str() {
            "request.tenant" => Some(TENANT),
            call if call.starts_with("state.") => redacted.then_some(STATE),
            _ if redacted || known.body => Some(TEXT),
            call if call.starts_with("request.") => Some(WHOLE),
            _ => None,
        };
        let kind =
            Missing { with: Vec::new(), ..missing.clone() }.to_string().replacen(" [],", ",", 1);
        found.push(Lacking { what: missing.to_string(), kind, hint });
    }
    // Middleware reads the request without asking.
    if replayed.reads.iter().any(|read| read.call == "request") && !known.whole() {
        let what = "reads the whole request, which the record does not have".to_owned();
        let hint = Some(if known.body { TEXT } else { WHOLE });
        found.push(Lacking { kind: what.clone(), what, hint });
    }
    found
}

/// Was it told something all the same that is as good as the answer then?
fn answered(missing: &Missing, known: Known, reads: &[Read]) -> bool {
    let unmarked = || {
        let asked = |read: &&Read| read.call == missing.call && read.with == missing.with;
        !reads.iter().rev().find(asked).is_some_and(|read| marks::redacted(&read.gave))
    };
    match missing.call.as_str() {
        // Those of the record are handed over.
        "context" | "request.id" | "request.model" => true,
        "request.tenant" => known.tenant,
        "request.header" => known.headers && unmarked(),
        "request.field" => known.body && unmarked(),
        call if call.starts_with("request.") => known.whole(),
        // That something is written now says nothing about who writes it.
        "state.put" | "state.delete" => true,
        _ => false,
    }
}

/// The question reads what edits may change.
pub(super) fn follows_edits(read: &Read) -> bool {
    let fixed = ["request.id", "request.tenant"];
    (read.call.starts_with("request") && !fixed.contains(&read.call.as_str()))
        || read.call == "fleet.candidates"
}

/// The call was asked after edits that are others now, and its answers are of the request with those before.
pub(super) fn outdated(reads: &[Read]) -> Option<Lacking> {
    let read = reads.iter().find(|read| follows_edits(read) && read.call != "request.model")?;
    let what = format!("asks {} of a request that was edited otherwise before it", read.call);
    Some(Lacking { kind: what.clone(), what, hint: Some(WHOLE) })
}

/// A call after a failed try whose lanes are not known.
pub(super) fn later_fleet(call: &Consulted, reads: &[Read]) -> Option<Lacking> {
    let asks = |read: &Read| matches!(read.call.as_str(), "fleet.stat" | "fleet.stats");
    (call.fleet.is_empty() && reads.iter().any(asks)).then(|| {
        let what = "asks for figures of lanes after a failed try, which hosts recorded later only"
            .to_owned();
        Lacking { kind: what.clone(), what, hint: None }
    })
}

/// Why the version that wrote a record may say something else although it was told the same.
pub(super) fn explained<A>(replayed: &Replayed<A>, call: &Consulted, known: Known) -> Vec<String> {
    let mut why = Vec::new();
    if call.reads.iter().any(|read| read.call == "cut") {
        why.push("the record does not have all that it asked".to_owned());
    }
    if known.whole() {
        let of_request = replayed.differing.iter().filter(|it| it.call.starts_with("request."));
        why.extend(of_request.map(ToString::to_string));
    }
    let asked = |reads: &[Read]| -> Vec<(String, Vec<Value>)> {
        let counts = |read: &&Read| !read.call.starts_with("fleet.") && read.call != "cut";
        reads.iter().filter(counts).map(|read| (read.call.clone(), read.with.clone())).collect()
    };
    let (then, now) = (asked(&call.reads), asked(&replayed.reads));
    let same = then.iter().zip(&now).take_while(|(then, now)| then == now).count();
    let shown = |question: Option<&(String, Vec<Value>)>| match question {
        Some((call, with)) => format!("{call} {}", Value::from(with.clone())),
        None => "nothing more".to_owned(),
    };
    if then.len() != now.len() || same < then.len() {
        why.push(format!(
            "where it asked {} then, it asks {} now",
            shown(then.get(same)),
            shown(now.get(same))
        ));
    }
    why.push(
        "it was told what the record says, so it goes by something that no record has: what an instance \
         remembers of earlier requests, or randomness of its own"
            .to_owned(),
    );
    why
}
