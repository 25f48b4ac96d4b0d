//! Redaction of a record: covers every field that may contain text of a request.

use std::sync::Arc;

use pointsman_domain::{
    Advice, ChainInfo, Decision, Edit, FallbackAdvice, LaneAdvice, Merged, Note, Plan, PolicyCall,
    QueueAdvice, Read, Recovery, Rejection, Scalar,
};
use serde_json::Value;

use super::{Redact, Rule, replace_word};
use crate::format::{DecisionRecord, RequestRecord};

/// Host calls whose results reveal nothing of a request's texts.
const SAFE_CALLS: [&str; 8] = [
    "context",
    "cut",
    "failure",
    "request.contains",
    "request.endpoint-kind",
    "request.id",
    "request.messages",
    "request.model",
];
/// Minimum block size, in bytes, of prefix hashes that are written. Hashes of shorter blocks could
/// be reversed by guessing.
const MIN_HASH_BLOCK: u64 = 64;

impl Redact {
    /// Redacts a record.
    pub(crate) fn apply(&self, record: &mut DecisionRecord) {
        let tenant =
            record.tenant.clone().filter(|tenant| self.tenant != Rule::Keep && !tenant.is_empty());
        let tenant_mark =
            tenant.as_deref().map(|tenant| self.redacted(self.tenant, tenant)).unwrap_or_default();
        Redaction { rules: self, tenant, tenant_mark }.record(record);
    }

    /// Redacts the configurations of policies, which may contain texts of the operator.
    pub(crate) fn apply_to_chain(&self, chain: &mut ChainInfo) {
        let pass = Redaction { rules: self, tenant: None, tenant_mark: String::new() };
        chain.policies.iter_mut().for_each(|link| pass.strings(&mut link.config, self.text));
    }
}

/// The redaction of one record, with its tenant if the tenant is redacted.
struct Redaction<'a> {
    rules: &'a Redact,
    tenant: Option<Arc<str>>,
    /// Replacement for the tenant's name.
    tenant_mark: String,
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
            let mark: Arc<str> = self.tenant_mark.as_str().into();
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

    fn consulted(&self, call: &mut PolicyCall) {
        let PolicyCall { policy: _, hook: _, took: _, reads, advice, note, dropped, fleet: _ } =
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
        note.iter_mut().chain(dropped).for_each(|text| self.redact_tenant(text));
    }

    fn read(&self, read: &mut Read) {
        let rules = self.rules;
        let Read { call, with: args, gave: result } = read;
        let first = args.first().and_then(Value::as_str).unwrap_or_default().to_owned();
        match call.as_str() {
            call if SAFE_CALLS.contains(&call) || call.starts_with("fleet.") => {}
            // The tenant's name is replaced below.
            "request.tenant" => {}
            "request.header" => self.strings(result, rules.rule_for_header(&first)),
            "request.field" => {
                if let Some(Value::String(text)) = result.get_mut("json") {
                    rules.json_text(text, &first, |value| self.redact_tenant_in(value));
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
        args.iter_mut().for_each(|value| self.redact_tenant_in(value));
        self.redact_tenant_in(result);
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
            .for_each(|flow| self.redact_tenant(flow));
        let steps = fallback.into_iter().flat_map(|fallback| &mut fallback.steps);
        steps.for_each(|step| self.edits(&mut step.edits));
        self.edits(edits);
    }

    fn plan(&self, plan: &mut Plan) {
        plan.flow.iter_mut().for_each(|flow| self.redact_tenant(flow));
        plan.steps.iter_mut().for_each(|step| self.edits(&mut step.edits));
    }

    fn edits(&self, edits: &mut [Edit]) {
        for edit in edits {
            match edit {
                Edit::SetField(pointer, json) => {
                    self.rules.json_text(json, pointer, |value| self.redact_tenant_in(value));
                }
                Edit::ReplaceBody(body) => {
                    self.rules.json_text(body, "", |value| self.redact_tenant_in(value))
                }
                Edit::PrependSystem(text) => {
                    *text = self.rules.redacted(self.rules.text, text);
                    self.redact_tenant(text);
                }
                Edit::SetHeader(name, value) => {
                    *value = self.rules.redacted(self.rules.rule_for_header(name), value);
                    self.redact_tenant(value);
                }
                Edit::SetModel(text) | Edit::RemoveField(text) | Edit::RemoveHeader(text) => {
                    self.redact_tenant(text)
                }
                Edit::CapOutputTokens(_) | Edit::KeepLastMessages(_) => {}
            }
        }
    }

    fn rejection(&self, rejection: &mut Rejection) {
        self.redact_tenant(&mut rejection.code);
        self.redact_tenant(&mut rejection.message);
    }

    fn note(&self, note: &mut Note) {
        if let Scalar::Text(text) = &mut note.value {
            self.redact_tenant(text);
        }
    }

    fn request(&self, request: &mut RequestRecord) {
        for (name, value) in &mut request.headers {
            *value = self.rules.redacted(self.rules.rule_for_header(name), value);
            self.redact_tenant(value);
        }
        if let Some(body) = &mut request.body {
            self.rules.json_text(body, "", |value| self.redact_tenant_in(value));
        }
    }

    /// Replaces the tenant's name in a text.
    fn redact_tenant(&self, text: &mut String) {
        if let Some(tenant) = &self.tenant
            && let Some(replaced) = replace_word(text, tenant, &self.tenant_mark)
        {
            *text = replaced;
        }
    }

    fn redact_tenant_in(&self, value: &mut Value) {
        if self.tenant.is_some() {
            each_string(value, &mut |text| self.redact_tenant(text));
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
