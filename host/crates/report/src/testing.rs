//! Runs for the tests of this crate.

pub(crate) mod day;

use std::sync::Arc;
use std::time::Duration;

use pointsman_domain::dispatch::SwitchReport;
use pointsman_domain::{
    Attempt, AttemptResult, EngineKind, EngineState, LaneId, LaneInfo, PolicyRef, RequestResult,
};

use crate::collector::Collector;
use crate::events::EndedRequest;
use crate::run::Run;

/// A request as it arrives.
pub(crate) struct TestRequest {
    pub(crate) at: Duration,
    pub(crate) class: usize,
    pub(crate) tenant: Option<Arc<str>>,
}

impl TestRequest {
    pub(crate) fn new(seconds: f64, class: usize, tenant: &str) -> Self {
        let tenant = (!tenant.is_empty()).then(|| tenant.into());
        Self { at: at(seconds), class, tenant }
    }

    /// Returns the end of the request at `at`, after one second in queues and without an attempt.
    pub(crate) fn failed<'a>(&'a self, ended_at: f64, reason: &'a str) -> EndedRequest<'a> {
        EndedRequest {
            arrived_at: self.at,
            class: self.class,
            tenant: self.tenant.as_ref(),
            prompt_tokens: 100,
            result: RequestResult::Error,
            at: at(ended_at),
            wait: at(1.0),
            first_byte: None,
            attempts: &[],
            cached_tokens: 0,
            output_tokens: 0,
            reason: Some(reason),
        }
    }
}

pub(crate) fn at(seconds: f64) -> Duration {
    Duration::from_micros((seconds * 1e6).round() as u64)
}

pub(crate) fn lane(id: u32, name: &str, engine: EngineKind) -> LaneInfo {
    LaneInfo {
        id: LaneId(id),
        name: name.to_owned(),
        engine,
        models: vec!["auto".to_owned()],
        names: Default::default(),
        labels: Vec::new(),
        max_context: 0,
        endpoints: pointsman_domain::EndpointSet::all(),
        slots: 4,
        group: 0,
        cost_milli: 0,
        is_peer: false,
    }
}

/// Reports the whole life of a request: its lane, its outcome, and its wait, time to first byte and
/// total time in seconds.
pub(crate) fn live(
    to: &mut Collector,
    request: &TestRequest,
    lane: u32,
    how: RequestResult,
    [wait, first, end]: [f64; 3],
) {
    to.arrived(request.at, request.class, &[PolicyRef::new("cortex", "1.0.0")]);
    let attempt = |lane, result, queue| Attempt {
        result,
        queue,
        ..Attempt::new(LaneId(lane), Duration::ZERO)
    };
    let failed = attempt(1 - lane, AttemptResult::Overloaded, Duration::ZERO);
    let result = if how.is_success() { AttemptResult::Ok } else { AttemptResult::ServerError };
    let last = attempt(lane, result, at(wait));
    let attempts = if how == RequestResult::FellBack { vec![failed, last] } else { vec![last] };
    to.ended(&EndedRequest {
        result: how,
        at: request.at + at(end),
        wait: at(wait),
        first_byte: how.is_success().then(|| at(first)),
        attempts: if how == RequestResult::Rejected { &[] } else { &attempts },
        cached_tokens: 25,
        output_tokens: 10,
        reason: (how == RequestResult::Error).then_some("the engine broke off"),
        ..request.failed(end, "")
    });
}

pub(crate) fn small() -> Collector {
    let lanes = [lane(0, "coder", EngineKind::Vllm), lane(1, "remote", EngineKind::External)];
    Collector::new(&lanes, &["interactive".to_owned(), "batch".to_owned()])
}

/// Returns a run of 100 seconds with two lanes, two classes and every outcome.
pub(crate) fn test_run() -> Run {
    let mut to = small();
    let coder = LaneId(0);
    to.engine(at(0.0), coder, EngineState::Starting);
    to.load(at(5.0), coder, 2, 0);
    to.engine(at(40.0), coder, EngineState::Ready);
    to.load(at(40.0), coder, 0, 2);
    to.load(at(60.0), coder, 0, 0);
    to.load(at(70.0), coder, 1, 1);
    to.engine(at(70.0), coder, EngineState::Draining);
    to.load(at(80.0), coder, 1, 0);
    to.engine(at(80.0), coder, EngineState::Stopping);
    to.engine(at(85.0), coder, EngineState::Cold);
    to.load(at(90.0), coder, 0, 0);
    let report = |victims: Vec<LaneId>| SwitchReport {
        target: coder,
        victims,
        drain: at(1.0),
        stop: at(2.0),
        load: at(3.0),
        overdue: false,
    };
    to.switched(&report(vec![LaneId(1)]));
    to.switched(&report(Vec::new()));
    live(
        &mut to,
        &TestRequest::new(5.0, 0, "alice"),
        0,
        RequestResult::Answered,
        [35.0, 36.0, 40.0],
    );
    live(&mut to, &TestRequest::new(5.0, 1, "bob"), 0, RequestResult::Answered, [35.0, 36.0, 40.0]);
    live(&mut to, &TestRequest::new(50.0, 1, "bob"), 1, RequestResult::FellBack, [0.0, 0.5, 1.5]);
    live(&mut to, &TestRequest::new(60.0, 1, "bob"), 1, RequestResult::Rejected, [0.0, 0.0, 0.0]);
    live(&mut to, &TestRequest::new(70.0, 0, ""), 0, RequestResult::Error, [10.0, 0.0, 10.0]);
    live(
        &mut to,
        &TestRequest::new(70.0, 0, "alice"),
        0,
        RequestResult::ClientGone,
        [20.0, 0.0, 20.0],
    );
    to.finish(7, 7, at(100.0))
}
