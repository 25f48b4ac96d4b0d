//! Redaction of a record: covers every field that may contain text of a request.

use std::cmp::Reverse;
use std::sync::Arc;

use pointsman_domain::{
    Advice, ChainInfo, Decision, Edit, FallbackAdvice, LaneAdvice, Merged, Note, Plan, PolicyCall,
    QueueAdvice, Read, Recovery, Rejection, Scalar,
};
use serde_json::Value;

use super::{Redact, Rule, replace_word};
use crate::format::{DecisionRecord, RequestRecord};

/// Host calls whose results reveal nothing of a request's texts.
const SAFE_CALLS: [&str; 11] = [
    "context",
    "cut",
    "failure",
    "request.allowance",
    "request.contains",
    "request.deadline-ms",
    "request.endpoint-kind",
    "request.find-any",
    "request.id",
    "request.messages",
    "request.model",
];
/// Minimum block size, in bytes, of prefix hashes that are written. Hashes of shorter blocks could
/// be reversed by guessing.
const MIN_HASH_BLOCK: u64 = 64;

impl Redact {
    /// Redacts a record.
    pub fn apply(&self, record: &mut DecisionRecord) {
        let mut names: Vec<(String, String)> = Vec::new();
        let all = record.tenant.as_deref().into_iter().chain(key_names(record));
        for name in all.filter(|name| self.tenant != Rule::Keep && !name.is_empty()) {
            if names.iter().all(|(known, _)| known != name) {
                names.push((name.to_owned(), self.redacted(self.tenant, name)));
            }
        }
        // The longest first: a name may contain another one.
        names.sort_by_key(|(name, _)| Reverse(name.len()));
        Redaction { rules: self, names }.record(record);
    }

    /// Redacts the configurations of policies, which may contain texts of the operator.
    pub(crate) fn apply_to_chain(&self, chain: &mut ChainInfo) {
        let pass = Redaction { rules: self, names: Vec::new() };
        chain.policies.iter_mut().for_each(|link| pass.strings(&mut link.config, self.text));
    }
}

/// Returns the names of the key and of its group, if a policy has read them.
fn key_names(record: &DecisionRecord) -> impl Iterator<Item = &str> {
    let reads = record.consulted.iter().flat_map(|call| &call.reads);
    let names =
        reads.filter(|read| matches!(read.call.as_str(), "request.key-group" | "request.key-name"));
    names.filter_map(|read| read.gave.as_str())
}

/// The redaction of one record, with the names of its tenant, its key and the key's group, and
/// their replacements, if the tenant is redacted.
struct Redaction<'a> {
    rules: &'a Redact,
    names: Vec<(String, String)>,
}

impl Redaction<'_> {
    fn record(&self, record: &mut DecisionRecord) {
        // Destructured completely, so that a new field cannot be forgotten here.
        let DecisionRecord {
            request_id: _,
            tenant,
            model: _,
            now_ms: _,
            seed: _,
            age: _,
            attempt: _,
            figures: _,
            topology: _,
            // Names and rules of the configuration.
            guards: _,
            chain: _,
            fleet: _,
            consulted,
            merged,
            decision,
            tries: _,
            end: _,
            outcome,
            request,
        } = record;
        let mark = |name: &str| self.names.iter().find(|(known, _)| known == name);
        if let Some((_, mark)) = tenant.as_deref().and_then(mark) {
            let mark: Arc<str> = mark.as_str().into();
            *tenant = Some(Arc::clone(&mark));
            if let Some(outcome) = outcome {
                outcome.tenant = Some(mark);
            }
        }
        consulted.iter_mut().for_each(|call| self.consulted(call));
        self.merged(Arc::make_mut(merged));
        match decision {
            Decision::Route(plan) => self.plan(plan),
            Decision::Reject(_, rejection) => self.rejection(rejection),
            Decision::NoLane(_) => {}
        }
        if let Some(request) = request {
            self.request(request);
        }
    }

    fn consulted(&self, call: &mut PolicyCall) {
        let PolicyCall {
            policy: _,
            hook: _,
            took: _,
            reads,
            advice,
            note,
            dropped,
            fleet: _,
            log: lines,
        } = call;
        // Not part of records.
        lines.clear();
        reads.iter_mut().for_each(|read| self.read(read));
        if let Some(advice) = advice {
            self.advice(advice);
        }
        if let Some(text) = note
            && let Ok(mut recovery) = serde_json::from_str::<Recovery>(text)
        {
            match &mut recovery {
                Recovery::Retry(step) => self.edits(&mut step.edits),
                Recovery::GiveUp(_) | Recovery::Planned => {}
            }
            *text = serde_json::to_string(&recovery).unwrap_or_default();
        }
        note.iter_mut().chain(dropped).for_each(|text| self.redact_names(text));
    }

    fn read(&self, read: &mut Read) {
        let rules = self.rules;
        let Read { call, with: args, gave: result } = read;
        let first = args.first().and_then(Value::as_str).unwrap_or_default().to_owned();
        match call.as_str() {
            call if SAFE_CALLS.contains(&call) || call.starts_with("fleet.") => {}
            // The names are replaced below.
            "request.tenant" | "request.key-group" | "request.key-name" => {}
            "request.header" => self.strings(result, rules.rule_for_header(&first)),
            "request.field" => {
                if let Some(Value::String(text)) = result.get_mut("json") {
                    rules.json_text(text, &first, |value| self.redact_names_in(value));
                }
            }
            "request.prefix-hashes" => {
                if args.first().and_then(Value::as_u64).is_some_and(|block| block < MIN_HASH_BLOCK)
                    && rules.text != Rule::Keep
                {
                    *result = Value::String(rules.redacted(rules.text, &result.to_string()));
                }
            }
            "state.get" => self.strings(result, rules.state),
            "state.put" => {
                args.iter_mut().skip(1).for_each(|value| self.strings(value, rules.state))
            }
            "state.delete" | "state.increment" => {}
            // The text, the body, and any call that a later contract adds.
            _ => {
                self.strings(result, rules.text);
            }
        }
        args.iter_mut().for_each(|value| self.redact_names_in(value));
        self.redact_names_in(result);
    }

    fn advice(&self, advice: &mut Advice) {
        let Advice { reject, lanes, switching: _, queue, fallback, edits, notes, hints } = advice;
        match lanes {
            LaneAdvice::Any
            | LaneAdvice::Only(_)
            | LaneAdvice::Avoid(_)
            | LaneAdvice::Scores(_)
            | LaneAdvice::Ordered(_)
            | LaneAdvice::Blend(_) => {}
        }
        reject.iter_mut().for_each(|rejection| self.rejection(rejection));
        self.routing(queue.as_mut(), fallback.as_mut(), edits);
        notes.iter_mut().chain(hints).for_each(|note| self.note(note));
    }

    fn merged(&self, merged: &mut Merged) {
        let Merged {
            by: _,
            reject,
            candidates: _,
            need: _,
            lanes: _,
            opinions: _,
            switching: _,
            queue,
            fallback,
            edits,
            notes,
        } = merged;
        reject.iter_mut().for_each(|(_, rejection)| self.rejection(rejection));
        self.routing(queue.as_mut(), fallback.as_mut(), edits);
        notes.iter_mut().for_each(|(_, note)| self.note(note));
    }

    fn routing(
        &self,
        queue: Option<&mut QueueAdvice>,
        fallback: Option<&mut FallbackAdvice>,
        edits: &mut [Edit],
    ) {
        queue
            .into_iter()
            .filter_map(|queue| queue.flow.as_mut())
            .for_each(|flow| self.redact_names(flow));
        let steps = fallback.into_iter().flat_map(|fallback| &mut fallback.steps);
        steps.for_each(|step| self.edits(&mut step.edits));
        self.edits(edits);
    }

    fn plan(&self, plan: &mut Plan) {
        plan.flow.iter_mut().for_each(|flow| self.redact_names(flow));
        plan.steps.iter_mut().for_each(|step| self.edits(&mut step.edits));
    }

    fn edits(&self, edits: &mut [Edit]) {
        for edit in edits {
            match edit {
                Edit::SetField(pointer, json) => {
                    self.rules.json_text(json, pointer, |value| self.redact_names_in(value));
                }
                Edit::ReplaceBody(body) => {
                    self.rules.json_text(body, "", |value| self.redact_names_in(value))
                }
                Edit::PrependSystem(text) => {
                    *text = self.rules.redacted(self.rules.text, text);
                    self.redact_names(text);
                }
                Edit::SetHeader(name, value) => {
                    *value = self.rules.redacted(self.rules.rule_for_header(name), value);
                    self.redact_names(value);
                }
                Edit::SetModel(text) | Edit::RemoveField(text) | Edit::RemoveHeader(text) => {
                    self.redact_names(text)
                }
                Edit::CapOutputTokens(_) | Edit::KeepLastMessages(_) => {}
            }
        }
    }

    fn rejection(&self, rejection: &mut Rejection) {
        self.redact_names(&mut rejection.code);
        self.redact_names(&mut rejection.message);
    }

    fn note(&self, note: &mut Note) {
        if let Scalar::Text(text) = &mut note.value {
            self.redact_names(text);
        }
    }

    fn request(&self, request: &mut RequestRecord) {
        for (name, value) in &mut request.headers {
            *value = self.rules.redacted(self.rules.rule_for_header(name), value);
            self.redact_names(value);
        }
        if let Some(body) = &mut request.body {
            self.rules.json_text(body, "", |value| self.redact_names_in(value));
        }
    }

    /// Replaces the names of the tenant, the key and its group in a text.
    fn redact_names(&self, text: &mut String) {
        for (name, mark) in &self.names {
            if let Some(replaced) = replace_word(text, name, mark) {
                *text = replaced;
            }
        }
    }

    fn redact_names_in(&self, value: &mut Value) {
        if !self.names.is_empty() {
            each_string(value, &mut |text| self.redact_names(text));
        }
    }

    fn strings(&self, value: &mut Value, rule: Rule) {
        if rule != Rule::Keep {
            each_string(value, &mut |text| *text = self.rules.redacted(rule, text));
        }
    }
}

fn each_string(value: &mut Value, change: &mut impl FnMut(&mut String)) {
    match value {
        Value::String(text) => change(text),
        Value::Array(items) => items.iter_mut().for_each(|item| each_string(item, change)),
        Value::Object(fields) => fields.values_mut().for_each(|field| each_string(field, change)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}
