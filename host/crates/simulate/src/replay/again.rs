//! One decision, made once more.

use std::sync::Arc;

use pointsman_domain::{
    Advice, Advisor as _, BuiltIn, ChainInfo, Consulted, Decision, Edit, FailureReport, Merge,
    Merged, Plan, PolicyRef, Recovery, RequestView, Trace,
};
use pointsman_policy::{OnError, Replayed, is_passing, marks};
use pointsman_record::DecisionRecord;
use serde_json::json;

use super::cast::{Cast, Link};
use super::difference::{Difference, of_answers, of_decisions, of_recovery};
use super::gaps::{self, Lacking};
use super::scene::{Scene, Topologies};
use super::{ON_FAILURE, ON_REQUEST};

/// What came of one call.
#[derive(Debug)]
pub(super) enum Verdict {
    Same,
    /// With reasons, where it is the version that wrote the record.
    Differs(Vec<Difference>, Vec<String>),
    /// It cannot be known what the policy would have said.
    Unknown(Vec<Lacking>),
    /// It said nothing then, for a reason of that moment.
    Silent(String),
    /// It was not asked then.
    New,
}

/// One call, made once more.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) policy: String,
    pub(super) hook: &'static str,
    pub(super) then: Option<PolicyRef>,
    pub(super) now: Option<PolicyRef>,
    pub(super) same_version: bool,
    pub(super) verdict: Verdict,
}

/// One decision, made once more.
#[derive(Debug)]
pub(super) struct Again {
    pub(super) calls: Vec<Call>,
    /// The decision, and what is otherwise in it; `None` if what somebody would have said is not known.
    pub(super) decision: Option<(Decision, Vec<Difference>)>,
}

/// Who says what in a decision that is made once more.
struct Course<'a> {
    record: &'a DecisionRecord,
    scene: &'a Scene,
    cast: &'a Cast,
    chain: Option<&'a ChainInfo>,
    calls: Vec<Call>,
    /// The request as the next policy sees it.
    request: Arc<dyn RequestView>,
    /// It was edited otherwise than then.
    edited_otherwise: bool,
    /// Somebody is not known to have said what the decision is made of.
    unknown: bool,
}

/// What a policy says, if it says anything.
type Said = (PolicyRef, Option<Advice>);

/// Make the decision of a record again.
pub(super) fn again(
    record: &DecisionRecord,
    scene: &Scene,
    cast: &Cast,
    chain: Option<&ChainInfo>,
    topologies: &Topologies,
) -> Again {
    let request = Arc::clone(&scene.facts.request);
    let mut course = Course {
        record,
        scene,
        cast,
        chain,
        calls: Vec::new(),
        request,
        edited_otherwise: false,
        unknown: false,
    };
    let merged = course.merged();
    let decision = (!course.unknown).then(|| {
        let decision = Plan::from_advice(&merged, &scene.fleet, &scene.limits);
        let then = (&record.decision, record.merged.edits.as_slice());
        let differences = of_decisions(then, (&decision, &merged.edits), &scene.fleet.topology);
        (decision, differences)
    });
    for call in record
        .consulted
        .iter()
        .filter(|call| call.hook == ON_FAILURE && cast.asks(&call.policy.name))
    {
        let (now, verdict) = course.after_failure(call, topologies);
        let call = course.call(&call.policy.name, ON_FAILURE, Some(call), now, verdict);
        course.calls.push(call);
    }
    Again { calls: course.calls, decision }
}

impl Course<'_> {
    /// The advice of all, as a host merges it.
    fn merged(&mut self) -> Merged {
        let fleet = &self.scene.fleet;
        let mut merge = Merge::new(fleet, &self.record.model);
        for link in &self.cast.links {
            let Some((policy, advice)) = self.says(link) else { continue };
            match (advice, link.on_error) {
                (Some(advice), _) => merge.add(&policy, link.weight, advice),
                (None, OnError::Skip) => {}
                (None, OnError::Default) => {
                    let facts = self.scene.facts_for(&self.request, None);
                    return BuiltIn.advise(&facts, fleet, &mut Trace::off());
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
        merge.finish(self.cast.on_conflict)
    }

    /// What a policy says to the request; `None` if it cannot be known.
    fn says(&mut self, link: &Link) -> Option<Said> {
        let of_link =
            |call: &&Consulted| call.hook == ON_REQUEST && *call.policy.name == *link.name;
        let call = self.record.consulted.iter().find(of_link);
        if !link.asked {
            // Nobody asked it because the chain had ended: what it would have said nobody knows.
            self.unknown |= call.is_none();
            let call = call?;
            if let Some(advice) = &call.advice {
                self.request = self.request.edited(&advice.edits).0;
            }
            return Some((call.policy.clone(), call.advice.clone()));
        }
        if let Some((call, note)) = call.and_then(|call| Some((call, stopped(call)?))) {
            let again = self.call(
                &link.name,
                ON_REQUEST,
                Some(call),
                None,
                Verdict::Silent(note.to_owned()),
            );
            self.calls.push(again);
            return Some((call.policy.clone(), None));
        }
        self.asked(link, call)
    }

    fn asked(&mut self, link: &Link, call: Option<&Consulted>) -> Option<Said> {
        let known = self.scene.known;
        let facts = self.scene.facts_for(&self.request, call);
        let mut reads = call.map(|call| call.reads.clone()).unwrap_or_default();
        if self.edited_otherwise && known.whole() {
            reads.retain(|read| read.call != "context" && !gaps::follows_edits(read));
        }
        let replayed = self.cast.rehearsal.replay(&link.name, &facts, &self.scene.fleet, &reads)?;
        let mut lacking = gaps::of(&replayed, known);
        if self.edited_otherwise && !known.whole() {
            lacking.extend(gaps::outdated(&replayed.reads));
        }
        self.request = Arc::clone(&replayed.request);
        let edits =
            |advice: Option<&Advice>| json!(advice.map_or(&[] as &[Edit], |advice| &advice.edits));
        let before = call.and_then(|call| call.advice.as_ref());
        self.edited_otherwise |=
            !marks::fits(&edits(before), &edits(replayed.answer.as_ref().ok()));
        self.unknown |= !lacking.is_empty();
        let verdict = match call {
            _ if !lacking.is_empty() => Verdict::Unknown(lacking),
            None => Verdict::New,
            Some(call) => {
                let then =
                    call.advice.as_ref().ok_or_else(|| call.note.as_deref().unwrap_or_default());
                let now = replayed.answer.as_ref().map_err(String::as_str);
                self.judged(of_answers(then, now, &self.scene.fleet.topology), call, &replayed)
            }
        };
        let again = self.call(&link.name, ON_REQUEST, call, Some(replayed.policy.clone()), verdict);
        self.calls.push(again);
        Some((replayed.policy, replayed.answer.ok()))
    }

    /// What the policy of a call wants after the same failed try.
    fn after_failure(
        &self,
        call: &Consulted,
        topologies: &Topologies,
    ) -> (Option<PolicyRef>, Verdict) {
        if let Some(note) = stopped(call) {
            return (None, Verdict::Silent(note.to_owned()));
        }
        let lacks = |what: &str| {
            let lacking = Lacking { what: what.to_owned(), kind: what.to_owned(), hint: None };
            (None, Verdict::Unknown(vec![lacking]))
        };
        let read =
            |name: &str| call.reads.iter().find(|read| read.call == name).map(|read| &read.gave);
        let failed = read("failure")
            .and_then(|failed| serde_json::from_value::<FailureReport>(failed.clone()).ok());
        let Some(failed) = failed else {
            return lacks("is told of a failed try, which the record does not have");
        };
        let generation = read("context").and_then(|context| context["topology"].as_u64());
        let fleet = match generation.unwrap_or(self.record.topology) {
            same if same == self.record.topology && call.fleet.is_empty() => {
                Some(Arc::clone(&self.scene.fleet))
            }
            generation => topologies.view(generation, &call.fleet),
        };
        let Some(fleet) = fleet else {
            return lacks("is asked about lanes that were others by then");
        };
        let (edited, _) = self.scene.facts.request.edited(&self.record.merged.edits);
        let facts = self.scene.facts_for(&edited, None);
        let name = &*call.policy.name;
        let replayed =
            self.cast.rehearsal.replay_failure(name, &facts, &fleet, &failed, &call.reads);
        let Some(replayed) = replayed else { return lacks("is not there any more") };
        let mut lacking = gaps::of(&replayed, self.scene.known);
        lacking.extend(gaps::later_fleet(call, &replayed.reads));
        let now = Some(replayed.policy.clone());
        if !lacking.is_empty() {
            return (now, Verdict::Unknown(lacking));
        }
        let note = call.note.as_deref().unwrap_or_default();
        let then = serde_json::from_str::<Recovery>(note).map_err(|_| note);
        let answer = replayed.answer.as_ref().map_err(String::as_str);
        (
            now,
            self.judged(
                of_recovery(then.as_ref().map_err(|note| *note), answer, &fleet.topology),
                call,
                &replayed,
            ),
        )
    }

    fn judged<A>(
        &self,
        differences: Vec<Difference>,
        call: &Consulted,
        replayed: &Replayed<A>,
    ) -> Verdict {
        if differences.is_empty() {
            return Verdict::Same;
        }
        let same_version = self.cast.is_same(&call.policy, self.chain);
        let why = same_version.then(|| gaps::explained(replayed, call, self.scene.known));
        Verdict::Differs(differences, why.unwrap_or_default())
    }

    fn call(
        &self,
        policy: &str,
        hook: &'static str,
        call: Option<&Consulted>,
        now: Option<PolicyRef>,
        verdict: Verdict,
    ) -> Call {
        let then = call.map(|call| call.policy.clone());
        let same_version = then.as_ref().is_some_and(|then| self.cast.is_same(then, self.chain));
        Call { policy: policy.to_owned(), hook, then, now, same_version, verdict }
    }
}

/// Why the policy said nothing then, if the reason was one of that moment.
fn stopped(call: &Consulted) -> Option<&str> {
    call.note.as_deref().filter(|note| call.advice.is_none() && is_passing(note))
}
