//! A decision record under construction: begun with the routing decision, handed to the recorder
//! when the request has ended.

use std::sync::Arc;
use std::time::Duration;

use pointsman_domain::{
    Attempt, ChainInfo, Decision, Facts, FleetView, Merged, Outcome, PolicyCall, RequestResult,
    RequestView as _, Trace,
};
use pointsman_openai::Request;
use pointsman_record::{
    AttemptRecord, Body, DecisionRecord, End, Ended, Entry, Interest, Mode, Recorder, RequestRecord,
};

/// Approximate size in bytes of a request's headers, for the recorder's memory limit.
const HEADERS_SIZE: usize = 1024;

/// The record of one request that has not ended.
#[derive(Debug)]
pub(crate) struct Recording {
    recorder: Recorder,
    entry: Entry,
    /// The record is discarded unless the request ends in an error.
    only_errors: bool,
}

/// Returns whether the request is one of those that are recorded. Selected by the seed and the
/// time: a client that chooses or repeats an id must not choose that.
fn interest(recorder: &Recorder, facts: &Facts) -> Interest {
    recorder.interest(&format!("{:x}-{:x}", facts.seed, facts.now_ms))
}

/// Returns a trace that collects policy calls if the request with these facts may be recorded.
pub(crate) fn trace(recorder: Option<&Recorder>, facts: &Facts) -> Trace {
    match recorder.map(|recorder| interest(recorder, facts)) {
        None | Some(Interest::No) => Trace::off(),
        Some(Interest::IfError | Interest::Yes) => Trace::on(),
    }
}

impl Recording {
    /// Begins the record of a decision; returns `None` unless its trace is on.
    pub(crate) fn new(
        recorder: Option<&Recorder>,
        trace: Trace,
        request: &Request,
        facts: &Facts,
        (fleet, chain): (&Arc<FleetView>, Option<&Arc<ChainInfo>>),
        (merged, decision): (&Merged, &Decision),
    ) -> Option<Self> {
        let recorder = recorder.filter(|_| trace.is_on())?;
        let decision = DecisionRecord {
            request_id: request.id().into(),
            tenant: request.tenant().map(Arc::from),
            model: request.model().into(),
            now_ms: facts.now_ms,
            seed: facts.seed,
            age: facts.age,
            attempt: facts.attempt,
            figures: request.info(),
            topology: fleet.topology.generation(),
            guards: request.constraint().cloned(),
            chain: chain.map(|chain| chain.chain.as_str().into()),
            fleet: Vec::new(),
            consulted: trace.into_calls(),
            merged: merged.clone(),
            decision: decision.clone(),
            tries: Vec::new(),
            end: End { how: Ended::ClientGone, total: Duration::ZERO },
            outcome: None,
            request: None,
        };
        let request = match recorder.mode() {
            Mode::Decisions => None,
            Mode::Full { max_body } => Some(request_record(request, max_body)),
        };
        Some(Self {
            recorder: recorder.clone(),
            only_errors: interest(recorder, facts) == Interest::IfError,
            entry: Entry { decision, fleet: Arc::clone(fleet), chain: chain.cloned(), request },
        })
    }

    /// Returns true if the record is written however the request ends.
    pub(crate) fn is_certain(&self) -> bool {
        !self.only_errors
    }

    /// Adds the policy calls after a failed attempt.
    pub(crate) fn add_policy_calls(&mut self, calls: Vec<PolicyCall>) {
        self.entry.decision.consulted.extend(calls);
    }

    /// Hands the record to the recorder after the request has ended. The outcome is `None` without
    /// an attempt: there is no lane that it could be about.
    pub(crate) fn finish<'a>(
        mut self,
        result: RequestResult,
        total: Duration,
        attempts: impl Iterator<Item = &'a Attempt>,
        outcome: Option<Outcome>,
    ) {
        let how = ended(result);
        if self.only_errors && how != Ended::Error {
            return;
        }
        let decision = &mut self.entry.decision;
        decision.tries = attempts.map(attempt_record).collect();
        decision.end = End { how, total };
        decision.outcome = outcome;
        self.recorder.record(self.entry);
    }
}

fn ended(result: RequestResult) -> Ended {
    match result {
        RequestResult::Answered => Ended::Answered,
        RequestResult::FellBack => Ended::FellBack,
        RequestResult::Rejected | RequestResult::Error => Ended::Error,
        RequestResult::ClientGone => Ended::ClientGone,
    }
}

fn attempt_record(attempt: &Attempt) -> AttemptRecord {
    let Attempt { lane, result, status, begun, queue, took } = *attempt;
    AttemptRecord { lane, result, status, begun, queue, took }
}

/// Returns the whole request for the record, with its approximate size. It is only converted on
/// the recorder's thread. A body of more than `max_body` bytes is left out, so that the queue of
/// records does not keep it alive.
fn request_record(request: &Request, max_body: usize) -> (usize, Body) {
    let headers = request.headers().clone();
    let body = Some(request.body().clone()).filter(|body| body.len() <= max_body);
    let size = HEADERS_SIZE + body.as_ref().map_or(0, bytes::Bytes::len);
    let make = move || RequestRecord {
        headers: headers
            .iter()
            .map(|(name, value)| {
                (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned())
            })
            .collect(),
        body: body.map(|body| String::from_utf8_lossy(&body).into_owned()),
    };
    (size, Box::new(make))
}
