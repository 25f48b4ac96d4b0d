//! A decision record in the making: begun when the request is decided, handed over when it has ended.

use std::sync::Arc;
use std::time::Duration;

use pointsman_domain::{
    AttemptResult, ChainInfo, Consulted, Decision, Facts, FleetView, LaneId, Merged, Outcome,
    RequestView as _, Trace,
};
use pointsman_openai::Request;
use pointsman_record::{
    Body, DecisionRecord, End, Ended, Entry, Interest, Mode, Recorder, RequestRecord, TryRecord,
};

/// What a request's headers weigh in the queue of records, about.
const HEADERS: usize = 1024;

/// The record of one request that has not ended.
#[derive(Debug)]
pub(crate) struct Recording {
    recorder: Recorder,
    entry: Entry,
    /// It is of interest only if the request ends in an error.
    only_errors: bool,
    /// The try that is under way.
    trying: Option<TryRecord>,
}

/// A trace that is on if the request with this id may be recorded.
pub(crate) fn trace(recorder: Option<&Recorder>, request_id: &str) -> Trace {
    match recorder.map(|recorder| recorder.interest(request_id)) {
        None | Some(Interest::No) => Trace::off(),
        Some(Interest::IfError | Interest::Yes) => Trace::on(),
    }
}

impl Recording {
    /// The record of a decision, if its trace is on.
    pub(crate) fn of(
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
            figures: request.figures(),
            topology: fleet.topology.generation(),
            chain: chain.map(|chain| chain.chain.as_str().into()),
            fleet: Vec::new(),
            consulted: trace.into_consulted(),
            merged: merged.clone(),
            decision: decision.clone(),
            tries: Vec::new(),
            end: End { how: Ended::ClientGone, total: Duration::ZERO },
            outcome: None,
            request: None,
        };
        let request = match recorder.mode() {
            Mode::Decisions => None,
            Mode::Full { max_body } => Some(whole(request, max_body)),
        };
        Some(Self {
            recorder: recorder.clone(),
            only_errors: recorder.interest(&decision.request_id) == Interest::IfError,
            entry: Entry { decision, fleet: Arc::clone(fleet), chain: chain.cloned(), request },
            trying: None,
        })
    }

    /// Will there be a record, however the request ends?
    pub(crate) fn is_certain(&self) -> bool {
        !self.only_errors
    }

    /// Policies were asked once more.
    pub(crate) fn consulted(&mut self, calls: Vec<Consulted>) {
        self.entry.decision.consulted.extend(calls);
    }

    /// A lane is being tried at this age of the request.
    pub(crate) fn tries(&mut self, lane: LaneId, age: Duration) {
        let (result, zero) = (AttemptResult::Other, Duration::ZERO);
        self.trying =
            Some(TryRecord { lane, result, status: 0, begun: age, queue: zero, took: zero });
    }

    /// The try under way has a slot, or was refused one.
    pub(crate) fn waited(&mut self, queue: Duration) {
        if let Some(trying) = &mut self.trying {
            trying.queue = queue;
        }
    }

    /// The engine has answered with this status.
    pub(crate) fn answers(&mut self, status: u16) {
        if let Some(trying) = &mut self.trying {
            trying.status = status;
        }
    }

    /// The try under way has ended.
    pub(crate) fn tried(&mut self, result: AttemptResult, age: Duration) {
        if let Some(trying) = self.trying.take() {
            let took = age.saturating_sub(trying.begun);
            self.entry.decision.tries.push(TryRecord { result, took, ..trying });
        }
    }

    /// The request has ended: hand the record over.
    pub(crate) fn ended(mut self, how: Ended, last: AttemptResult, outcome: Outcome) {
        if self.only_errors && how != Ended::Error {
            return;
        }
        self.tried(last, outcome.total);
        let Self { recorder, mut entry, .. } = self;
        entry.decision.end = End { how, total: outcome.total };
        entry.decision.outcome = (outcome.tries > 0).then_some(outcome);
        recorder.record(entry);
    }
}

/// The whole request, as it came. A body that is too long is not kept alive for the record.
fn whole(request: &Request, max_body: usize) -> (usize, Body) {
    let headers = request.headers().clone();
    let body = Some(request.body().clone()).filter(|body| body.len() <= max_body);
    let weight = HEADERS + body.as_ref().map_or(0, bytes::Bytes::len);
    let make = move || RequestRecord {
        headers: headers
            .iter()
            .map(|(name, value)| {
                (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned())
            })
            .collect(),
        body: body.map(|body| String::from_utf8_lossy(&body).into_owned()),
    };
    (weight, Box::new(make))
}
