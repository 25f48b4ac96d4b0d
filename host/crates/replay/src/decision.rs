//! The replay of one decision.

use std::sync::Arc;

use pointsman_domain::{
    Advice, Advisor as _, BuiltIn, ChainInfo, Decision, Edit, FailureReport, Merge, Merged, Plan,
    PolicyCall, PolicyRef, Read, Recovery, RequestView, Trace,
};
use pointsman_policy::{CallError, LogLine, OnError, Replayed, is_transient, marks};
use pointsman_record::DecisionRecord;
use serde::Serialize;
use serde_json::{Value, json};

use crate::chain::{Link, ReplayChain};
use crate::context::{ON_FAILURE, ON_REQUEST, ReplayContext, Topologies};
use crate::divergence::{Divergence, compare_decisions, compare_recoveries, compare_results};
use crate::missing::{self, MissingInput};

/// The result of a replayed call.
#[derive(Debug)]
pub(crate) enum CallVerdict {
    /// The result equals the recorded one.
    Same,
    /// The divergences and, if the version is the one that wrote the record, their possible causes.
    Differs(Vec<Divergence>, Vec<String>),
    /// Inputs are missing, so what the policy would have returned is unknown.
    Unknown(Vec<MissingInput>),
    /// The recorded call gave no advice for a transient reason, such as a deadline.
    NoAdvice(String),
    /// The call was not made at the time of the record.
    NotRecorded,
}

/// A replayed call.
#[derive(Debug)]
pub(crate) struct ReplayedCall {
    pub(crate) policy: String,
    pub(crate) hook: &'static str,
    pub(crate) recorded: Option<PolicyRef>,
    pub(crate) replayed: Option<PolicyRef>,
    pub(crate) same_version: bool,
    pub(crate) verdict: CallVerdict,
    /// What the call did; `None` if it was not replayed.
    pub(crate) detail: Option<CallDetail>,
}

/// What a replayed call did.
#[derive(Debug)]
pub(crate) struct CallDetail {
    pub(crate) reads: Vec<Read>,
    pub(crate) returned: Value,
    pub(crate) dropped: Vec<String>,
    pub(crate) log: Vec<LogLine>,
}

impl CallDetail {
    fn new<A: Serialize>(replayed: &Replayed<A>) -> Self {
        let returned = match &replayed.answer {
            Ok(answer) => json!(answer),
            Err(error) => json!({ "error": error.to_note() }),
        };
        Self {
            reads: replayed.reads.clone(),
            returned,
            dropped: replayed.dropped.clone(),
            log: replayed.log.clone(),
        }
    }
}

/// A replayed decision.
#[derive(Debug)]
pub(crate) struct ReplayedDecision {
    pub(crate) calls: Vec<ReplayedCall>,
    /// The decision and its divergences; `None` if the advice of a policy is unknown.
    pub(crate) decision: Option<(Decision, Vec<Divergence>)>,
}

/// The state of the replay of one decision.
struct DecisionReplay<'a> {
    record: &'a DecisionRecord,
    context: &'a ReplayContext,
    chain: &'a ReplayChain,
    recorded_chain: Option<&'a ChainInfo>,
    calls: Vec<ReplayedCall>,
    /// The request as the next policy sees it.
    request: Arc<dyn RequestView>,
    /// True if the request was edited differently than in the record.
    edits_differ: bool,
    /// True if the advice of a policy is unknown.
    unknown: bool,
}

/// The advice of a policy, if it gave any.
type PolicyAdvice = (PolicyRef, Option<Advice>);

/// Replays the decision of a record.
pub(crate) fn replay_decision(
    record: &DecisionRecord,
    context: &ReplayContext,
    chain: &ReplayChain,
    recorded_chain: Option<&ChainInfo>,
    topologies: &Topologies,
) -> ReplayedDecision {
    let request = Arc::clone(&context.facts.request);
    let mut replay = DecisionReplay {
        record,
        context,
        chain,
        recorded_chain,
        calls: Vec::new(),
        request,
        edits_differ: false,
        unknown: false,
    };
    let merged = replay.merged();
    let decision = (!replay.unknown).then(|| {
        let decision = Plan::from_advice(&merged, &context.fleet, &context.limits);
        let then = (&record.decision, record.merged.edits.as_slice());
        let divergences =
            compare_decisions(then, (&decision, &merged.edits), &context.fleet.topology);
        (decision, divergences)
    });
    for call in record
        .consulted
        .iter()
        .filter(|call| call.hook == ON_FAILURE && chain.replays(&call.policy.name))
    {
        let (now, verdict, detail) = replay.replay_failure(call, topologies);
        let call = replay.replayed_call(&call.policy.name, ON_FAILURE, Some(call), now, verdict);
        replay.calls.push(ReplayedCall { detail, ..call });
    }
    ReplayedDecision { calls: replay.calls, decision }
}

impl DecisionReplay<'_> {
    /// Merges the advice of all policies as a host does. The request may be recorded in part, so
    /// what it needs is taken from the record.
    fn merged(&mut self) -> Merged {
        Merged { need: self.record.merged.need, ..self.merged_advice() }
    }

    fn merged_advice(&mut self) -> Merged {
        let fleet = &self.context.fleet;
        let mut merge = Merge::new(fleet, &self.record.model, self.record.figures.endpoint);
        for link in &self.chain.links {
            let Some((policy, advice)) = self.advice_of(link) else { continue };
            match (advice, link.on_error) {
                (Some(advice), OnError::Refuse) => {
                    merge.add_required(&policy, link.weight, advice);
                }
                (Some(advice), OnError::Skip | OnError::Default) => {
                    merge.add(&policy, link.weight, advice);
                }
                (None, OnError::Skip) => {}
                (None, OnError::Default) => {
                    let facts = self.context.facts_for(&self.request, None);
                    return BuiltIn.advise(&facts, fleet, &mut Trace::off()).merged;
                }
                (None, OnError::Refuse) => {
                    let reject = Some(OnError::refusal(&policy));
                    merge.add(&policy, 0, Advice { reject, ..Advice::default() });
                }
            }
            if merge.ended() {
                break;
            }
        }
        merge.finish(self.chain.on_conflict)
    }

    /// Returns what a policy advises for the request; `None` if that is unknown.
    fn advice_of(&mut self, link: &Link) -> Option<PolicyAdvice> {
        let of_link =
            |call: &&PolicyCall| call.hook == ON_REQUEST && *call.policy.name == *link.name;
        let call = self.record.consulted.iter().find(of_link);
        if !link.is_replayed {
            // The recorded chain ended before this policy, so its advice is unknown.
            self.unknown |= call.is_none();
            let call = call?;
            if let Some(advice) = &call.advice {
                self.request = self.request.edited(&advice.edits).0;
            }
            return Some((call.policy.clone(), call.advice.clone()));
        }
        if let Some((call, note)) = call.and_then(|call| Some((call, transient_reason(call)?))) {
            let replayed_call = self.replayed_call(
                &link.name,
                ON_REQUEST,
                Some(call),
                None,
                CallVerdict::NoAdvice(note.to_owned()),
            );
            self.calls.push(replayed_call);
            return Some((call.policy.clone(), None));
        }
        self.replay_call(link, call)
    }

    fn replay_call(&mut self, link: &Link, call: Option<&PolicyCall>) -> Option<PolicyAdvice> {
        let known = self.context.known;
        let facts = self.context.facts_for(&self.request, call);
        // Results that depend on the edits of earlier policies are outdated if those edits differ.
        // With a complete request, the host calls are answered from the request instead.
        let mut reads = call.map(|call| call.reads.clone()).unwrap_or_default();
        if self.edits_differ && known.is_complete() {
            reads.retain(|read| read.call != "context" && !missing::depends_on_edits(read));
        }
        let replayed =
            self.chain.dry_run.replay(&link.name, &facts, &self.context.fleet, &reads)?;
        let mut missing_inputs = missing::missing_inputs(&replayed, known);
        if self.edits_differ && !known.is_complete() {
            missing_inputs.extend(missing::outdated_read(&replayed.reads));
        }
        self.request = Arc::clone(&replayed.request);
        let edits =
            |advice: Option<&Advice>| json!(advice.map_or(&[] as &[Edit], |advice| &advice.edits));
        let before = call.and_then(|call| call.advice.as_ref());
        self.edits_differ |= !marks::fits(&edits(before), &edits(replayed.answer.as_ref().ok()));
        self.unknown |= !missing_inputs.is_empty();
        let verdict = match call {
            _ if !missing_inputs.is_empty() => CallVerdict::Unknown(missing_inputs),
            None => CallVerdict::NotRecorded,
            Some(call) => {
                let then =
                    call.advice.as_ref().ok_or_else(|| call.note.as_deref().unwrap_or_default());
                let now = replayed.answer.as_ref().map_err(CallError::to_note);
                let now = now.as_ref().copied().map_err(String::as_str);
                self.verdict(
                    compare_results(then, now, &self.context.fleet.topology),
                    call,
                    &replayed,
                )
            }
        };
        let replayed_call = self.replayed_call(
            &link.name,
            ON_REQUEST,
            call,
            Some(replayed.policy.clone()),
            verdict,
        );
        let detail = Some(CallDetail::new(&replayed));
        self.calls.push(ReplayedCall { detail, ..replayed_call });
        Some((replayed.policy, replayed.answer.ok()))
    }

    /// Returns what the policy of a call recommends after the same failed attempt.
    fn replay_failure(
        &self,
        call: &PolicyCall,
        topologies: &Topologies,
    ) -> (Option<PolicyRef>, CallVerdict, Option<CallDetail>) {
        if let Some(note) = transient_reason(call) {
            return (None, CallVerdict::NoAdvice(note.to_owned()), None);
        }
        let unknown_because =
            |what: &str| (None, CallVerdict::Unknown(vec![MissingInput::without_hint(what)]), None);
        let read =
            |name: &str| call.reads.iter().find(|read| read.call == name).map(|read| &read.gave);
        let failed = read("failure")
            .and_then(|failed| serde_json::from_value::<FailureReport>(failed.clone()).ok());
        let Some(failed) = failed else {
            return unknown_because(
                "gets the report of a failed attempt, which the record does not contain",
            );
        };
        let generation = read("context").and_then(|context| context["topology"].as_u64());
        let fleet = match generation.unwrap_or(self.record.topology) {
            same if same == self.record.topology && call.fleet.is_empty() => {
                Some(Arc::clone(&self.context.fleet))
            }
            generation => topologies.view_for(self.record, generation, &call.fleet),
        };
        let Some(fleet) = fleet else {
            return unknown_because("was called with a topology that the record does not contain");
        };
        let (edited, _) = self.context.facts.request.edited(&self.record.merged.edits);
        let facts = self.context.facts_for(&edited, None);
        let name = &*call.policy.name;
        let replayed =
            self.chain.dry_run.replay_failure(name, &facts, &fleet, &failed, &call.reads);
        let Some(replayed) = replayed else { return unknown_because("is no longer in the chain") };
        let mut missing_inputs = missing::missing_inputs(&replayed, self.context.known);
        missing_inputs.extend(missing::missing_lane_metrics(call, &replayed.reads));
        let now = Some(replayed.policy.clone());
        let detail = Some(CallDetail::new(&replayed));
        if !missing_inputs.is_empty() {
            return (now, CallVerdict::Unknown(missing_inputs), detail);
        }
        let note = call.note.as_deref().unwrap_or_default();
        let then = serde_json::from_str::<Recovery>(note).map_err(|_| note);
        let answer = replayed.answer.as_ref().map_err(CallError::to_note);
        let answer = answer.as_ref().copied().map_err(String::as_str);
        (
            now,
            self.verdict(
                compare_recoveries(then.as_ref().map_err(|note| *note), answer, &fleet.topology),
                call,
                &replayed,
            ),
            detail,
        )
    }

    fn verdict<A>(
        &self,
        divergences: Vec<Divergence>,
        call: &PolicyCall,
        replayed: &Replayed<A>,
    ) -> CallVerdict {
        if divergences.is_empty() {
            return CallVerdict::Same;
        }
        let same_version = self.chain.is_same_version(&call.policy, self.recorded_chain);
        let causes =
            same_version.then(|| missing::possible_causes(replayed, call, self.context.known));
        CallVerdict::Differs(divergences, causes.unwrap_or_default())
    }

    fn replayed_call(
        &self,
        policy: &str,
        hook: &'static str,
        call: Option<&PolicyCall>,
        replayed: Option<PolicyRef>,
        verdict: CallVerdict,
    ) -> ReplayedCall {
        let recorded = call.map(|call| call.policy.clone());
        let same_version = recorded
            .as_ref()
            .is_some_and(|policy| self.chain.is_same_version(policy, self.recorded_chain));
        let policy = policy.to_owned();
        ReplayedCall { policy, hook, recorded, replayed, same_version, verdict, detail: None }
    }
}

/// Returns why the recorded call gave no advice, if the reason was transient.
fn transient_reason(call: &PolicyCall) -> Option<&str> {
    call.note.as_deref().filter(|note| call.advice.is_none() && is_transient(note))
}
