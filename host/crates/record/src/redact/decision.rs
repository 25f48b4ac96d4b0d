//! The rules, applied to a record: every place of it where something of the request may stand.

use std::sync::Arc;

use pointsman_domain::{
    Advice, ChainInfo, Consulted, Decision, Edit, FallbackAdvice, LaneAdvice, Merged, Note, Plan,
    QueueAdvice, Read, Recovery, Rejection, Scalar,
};
use serde_json::Value;

use super::{Redact, Rule, replace_word};
use crate::format::{DecisionRecord, RequestRecord};

/// Questions whose answers say nothing of what a request says.
const HARMLESS: [&str; 7] = [
    "context",
    "cut",
    "failure",
    "request.contains",
    "request.id",
    "request.messages",
    "request.model",
];
/// Hashes of shorter blocks could be tried out until the text is found.
const SHORT_BLOCK: u64 = 64;

impl Redact {
    /// Replace what must not be written.
    pub(crate) fn apply(&self, record: &mut DecisionRecord) {
        let tenant =
            record.tenant.clone().filter(|tenant| self.tenant != Rule::Keep && !tenant.is_empty());
        let mark =
            tenant.as_deref().map(|tenant| self.mark(self.tenant, tenant)).unwrap_or_default();
        Pass { rules: self, tenant, mark }.record(record);
    }

    /// The same for the policies: what an operator wrote for them may be a text, too.
    pub(crate) fn apply_to_chain(&self, chain: &mut ChainInfo) {
        let pass = Pass { rules: self, tenant: None, mark: String::new() };
        chain.policies.iter_mut().for_each(|link| pass.strings(&mut link.config, self.text));
    }
}

/// The rules for one record, with its tenant if that is not to be named.
struct Pass<'a> {
    rules: &'a Redact,
    tenant: Option<Arc<str>>,
    mark: String,
}

impl Pass<'_> {
    fn record(&self, record: &mut DecisionRecord) {
        // Whole, so that a new field is not forgotten here.
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
        if self.tenant.is_some() {
            let mark: Arc<str> = self.mark.as_str().into();
            *tenant = Some(Arc::clone(&mark));
            if let Some(outcome) = outcome {
                outcome.tenant = Some(mark);
            }
        }
        consulted.iter_mut().for_each(|call| self.consulted(call));
        self.merged(merged);
        match decision {
            Decision::Route(plan) => self.plan(plan),
            Decision::Reject(_, rejection) => self.rejection(rejection),
            Decision::NoLane(_) => {}
        }
        if let Some(request) = request {
            self.request(request);
        }
    }

    fn consulted(&self, call: &mut Consulted) {
        let Consulted { policy: _, hook: _, took: _, reads, advice, note, dropped, fleet: _ } =
            call;
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
        note.iter_mut().chain(dropped).for_each(|text| self.words(text));
    }

    fn read(&self, read: &mut Read) {
        let rules = self.rules;
        let Read { call, with, gave } = read;
        let first = with.first().and_then(Value::as_str).unwrap_or_default().to_owned();
        match call.as_str() {
            call if HARMLESS.contains(&call) || call.starts_with("fleet.") => {}
            // All words are replaced below.
            "request.tenant" => {}
            "request.header" => self.strings(gave, rules.header(&first)),
            "request.field" => {
                if let Some(Value::String(text)) = gave.get_mut("json") {
                    rules.json_text(text, &first, |value| self.all_words(value));
                }
            }
            "request.prefix-hashes" => {
                if with.first().and_then(Value::as_u64).is_some_and(|block| block < SHORT_BLOCK)
                    && rules.text != Rule::Keep
                {
                    *gave = Value::String(rules.mark(rules.text, &gave.to_string()));
                }
            }
            "state.get" => self.strings(gave, rules.state),
            "state.put" => {
                with.iter_mut().skip(1).for_each(|value| self.strings(value, rules.state))
            }
            "state.delete" | "state.increment" => {}
            // The text, the body, and whatever a later contract has.
            _ => {
                self.strings(gave, rules.text);
            }
        }
        with.iter_mut().for_each(|value| self.all_words(value));
        self.all_words(gave);
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
        self.told(queue.as_mut(), fallback.as_mut(), edits);
        notes.iter_mut().chain(hints).for_each(|note| self.note(note));
    }

    fn merged(&self, merged: &mut Merged) {
        let Merged {
            by: _,
            reject,
            candidates: _,
            lanes: _,
            switching: _,
            queue,
            fallback,
            edits,
            notes,
        } = merged;
        reject.iter_mut().for_each(|(_, rejection)| self.rejection(rejection));
        self.told(queue.as_mut(), fallback.as_mut(), edits);
        notes.iter_mut().for_each(|(_, note)| self.note(note));
    }

    fn told(
        &self,
        queue: Option<&mut QueueAdvice>,
        fallback: Option<&mut FallbackAdvice>,
        edits: &mut [Edit],
    ) {
        queue.into_iter().filter_map(|queue| queue.flow.as_mut()).for_each(|flow| self.words(flow));
        let steps = fallback.into_iter().flat_map(|fallback| &mut fallback.steps);
        steps.for_each(|step| self.edits(&mut step.edits));
        self.edits(edits);
    }

    fn plan(&self, plan: &mut Plan) {
        plan.flow.iter_mut().for_each(|flow| self.words(flow));
        plan.steps.iter_mut().for_each(|step| self.edits(&mut step.edits));
    }

    fn edits(&self, edits: &mut [Edit]) {
        for edit in edits {
            match edit {
                Edit::SetField(pointer, json) => {
                    self.rules.json_text(json, pointer, |value| self.all_words(value));
                }
                Edit::ReplaceBody(body) => {
                    self.rules.json_text(body, "", |value| self.all_words(value))
                }
                Edit::PrependSystem(text) => {
                    *text = self.rules.mark(self.rules.text, text);
                    self.words(text);
                }
                Edit::SetHeader(name, value) => {
                    *value = self.rules.mark(self.rules.header(name), value);
                    self.words(value);
                }
                Edit::SetModel(text) | Edit::RemoveField(text) | Edit::RemoveHeader(text) => {
                    self.words(text)
                }
                Edit::CapOutputTokens(_) | Edit::KeepLastMessages(_) => {}
            }
        }
    }

    fn rejection(&self, rejection: &mut Rejection) {
        self.words(&mut rejection.code);
        self.words(&mut rejection.message);
    }

    fn note(&self, note: &mut Note) {
        if let Scalar::Text(text) = &mut note.value {
            self.words(text);
        }
    }

    fn request(&self, request: &mut RequestRecord) {
        for (name, value) in &mut request.headers {
            *value = self.rules.mark(self.rules.header(name), value);
            self.words(value);
        }
        if let Some(body) = &mut request.body {
            self.rules.json_text(body, "", |value| self.all_words(value));
        }
    }

    /// Put the mark in the place of the tenant's name.
    fn words(&self, text: &mut String) {
        if let Some(tenant) = &self.tenant
            && let Some(replaced) = replace_word(text, tenant, &self.mark)
        {
            *text = replaced;
        }
    }

    fn all_words(&self, value: &mut Value) {
        if self.tenant.is_some() {
            each_string(value, &mut |text| self.words(text));
        }
    }

    fn strings(&self, value: &mut Value, rule: Rule) {
        if rule != Rule::Keep {
            each_string(value, &mut |text| *text = self.rules.mark(rule, text));
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
