//! A decision record under construction: begun with the routing decision, handed to the recorder
//! when the request has ended.

use std::fmt;
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

use crate::decisions::{DecisionDetail, Decisions};

/// Approximate size in bytes of a request's headers, for the recorder's memory limit.
const HEADERS_SIZE: usize = 1024;

/// The record of one request that has not ended: for the recorder, for the recent decisions, or for
/// both.
pub(crate) struct Recording {
    /// `None` unless the request may be recorded.
    recorder: Option<Recorder>,
    /// The record is discarded unless the request ends in an error.
    only_errors: bool,
    decision: DecisionRecord,
    fleet: Arc<FleetView>,
    chain: Option<Arc<ChainInfo>>,
    request: Option<(usize, Body)>,
    has_host_calls: bool,
}

impl fmt::Debug for Recording {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recording").field("decision", &self.decision).finish_non_exhaustive()
    }
}

/// Returns whether the request is one of those that are recorded. Selected by the seed and the
/// time: a client that chooses or repeats an id must not choose that.
fn interest(recorder: &Recorder, facts: &Facts) -> Interest {
    recorder.interest(&format!("{:x}-{:x}", facts.seed, facts.now_ms))
}

/// Returns a trace that collects policy calls if the request with these facts may be recorded, or
/// is one of the recent decisions.
pub(crate) fn trace(recorder: Option<&Recorder>, decisions: &Decisions, facts: &Facts) -> Trace {
    match recorder.map(|recorder| interest(recorder, facts)) {
        None | Some(Interest::No) => decisions.trace(),
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
        (merged, decision): (&Arc<Merged>, &Decision),
    ) -> Option<Self> {
        if !trace.is_on() {
            return None;
        }
        let interest = recorder.map_or(Interest::No, |recorder| interest(recorder, facts));
        let recorder = recorder.filter(|_| interest != Interest::No);
        let has_host_calls = trace.has_reads();
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
            merged: Arc::clone(merged),
            decision: decision.clone(),
            tries: Vec::new(),
            end: End { how: Ended::ClientGone, total: Duration::ZERO },
            outcome: None,
            request: None,
        };
        let request = match recorder.map(Recorder::mode) {
            None | Some(Mode::Decisions) => None,
            Some(Mode::Full { max_body }) => Some(request_record(request, max_body)),
        };
        Some(Self {
            recorder: recorder.cloned(),
            only_errors: interest == Interest::IfError,
            decision,
            fleet: Arc::clone(fleet),
            chain: chain.cloned(),
            request,
            has_host_calls,
        })
    }

    /// Returns true if the record is written however the request ends.
    pub(crate) fn is_certain(&self) -> bool {
        self.recorder.is_some() && !self.only_errors
    }

    /// Returns the trace for policy calls that follow the decision.
    pub(crate) fn trace(&self) -> Trace {
        if self.has_host_calls { Trace::on() } else { Trace::without_reads() }
    }

    /// Adds the policy calls after a failed attempt.
    pub(crate) fn add_policy_calls(&mut self, calls: Vec<PolicyCall>) {
        self.decision.consulted.extend(calls);
    }

    /// Hands the record to the recorder after the request has ended, and returns it for the recent
    /// decisions. The outcome is `None` without an attempt: there is no lane that it could be
    /// about.
    pub(crate) fn finish<'a>(
        mut self,
        result: RequestResult,
        total: Duration,
        attempts: impl Iterator<Item = &'a Attempt>,
        outcome: Option<Outcome>,
    ) -> DecisionDetail {
        let how = ended(result);
        self.decision.tries = attempts.map(attempt_record).collect();
        self.decision.end = End { how, total };
        self.decision.outcome = outcome;
        let (record, fleet) = (Arc::new(self.decision), self.fleet);
        let is_written = !self.only_errors || how == Ended::Error;
        if let Some(recorder) = self.recorder.filter(|_| is_written) {
            let (decision, fleet) = (Arc::clone(&record), Arc::clone(&fleet));
            let (chain, request) = (self.chain, self.request);
            recorder.record(Entry { decision, fleet, chain, request });
        }
        DecisionDetail { record, fleet, has_host_calls: self.has_host_calls }
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
