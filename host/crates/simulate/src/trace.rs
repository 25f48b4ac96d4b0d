//! The event trace of a run, one JSON object per line, for debugging and for comparison with the
//! behaviour of a host.
//!
//! ```text
//!   {"at":12.5,"event":"decided","request":"sim-7","class":"agents","model":"auto","lane":"coder"}
//!   {"at":12.5,"event":"engine","lane":"reader","state":"draining"}
//!   {"at":60.25,"event":"granted","request":"sim-7","lane":"coder"}
//! ```
//!
//! Times are in seconds since the start of the simulation.

use std::io::{self, Write};
use std::time::Duration;

use pointsman_domain::dispatch::SwitchReport;
use pointsman_domain::{EngineState, LaneId, PolicyRef};
use serde_json::{Value, json};

use crate::observe::{FinishedRequest, Observer, RequestResult};
use crate::traffic::SimRequest;

/// An [`Observer`] that writes the events of a run as JSON lines.
pub struct TraceWriter<W> {
    out: W,
    lanes: Vec<String>,
    classes: Vec<String>,
    /// The first write error, after which nothing more is written.
    error: Option<io::Error>,
}

impl<W> std::fmt::Debug for TraceWriter<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TraceWriter").field("error", &self.error).finish_non_exhaustive()
    }
}

impl<W: Write> TraceWriter<W> {
    /// Creates the writer for a run with these lanes, in the order of their ids, and these classes.
    pub fn new(out: W, lanes: impl IntoIterator<Item = String>, classes: &[String]) -> Self {
        Self { out, lanes: lanes.into_iter().collect(), classes: classes.to_owned(), error: None }
    }

    /// Flushes the output.
    ///
    /// # Errors
    /// The first error of any write since the start of the run.
    pub fn finish(mut self) -> io::Result<()> {
        match self.error {
            Some(error) => Err(error),
            None => self.out.flush(),
        }
    }

    fn line(&mut self, at: Duration, event: &'static str, fields: Value) {
        if self.error.is_some() {
            return;
        }
        let mut line = json!({ "at": seconds(at), "event": event });
        if let (Value::Object(line), Value::Object(fields)) = (&mut line, fields) {
            line.extend(fields.into_iter().filter(|(_, value)| !value.is_null()));
        }
        self.error = writeln!(self.out, "{line}").err();
    }

    fn lane(&self, lane: LaneId) -> Option<&str> {
        self.lanes.get(lane.index()).map(String::as_str)
    }

    fn class(&self, request: &SimRequest) -> Option<&str> {
        self.classes.get(usize::from(request.class.0)).map(String::as_str)
    }
}

impl<W: Write> Observer for TraceWriter<W> {
    fn decided(&mut self, request: &SimRequest, first: Option<LaneId>, by: &[PolicyRef]) {
        let by: Vec<String> = by.iter().map(ToString::to_string).collect();
        let fields = json!({
            "request": request.id,
            "class": self.class(request),
            "tenant": request.tenant,
            "model": request.model,
            "lane": first.and_then(|lane| self.lane(lane)),
            "by": by,
        });
        self.line(request.at, "decided", fields);
    }

    fn granted(&mut self, at: Duration, request: &SimRequest, lane: LaneId) {
        self.line(at, "granted", json!({ "request": request.id, "lane": self.lane(lane) }));
    }

    fn ended(&mut self, ended: &FinishedRequest<'_>) {
        let lane = ended.attempts.last().and_then(|attempt| self.lane(attempt.lane));
        let fields = json!({
            "request": ended.request.id,
            "class": self.class(ended.request),
            "result": label(ended.result),
            "lane": lane,
            "wait": seconds(ended.wait),
            "first-byte": ended.first_byte.map(seconds),
            "attempts": ended.attempts.len(),
            "cached-tokens": ended.cached_tokens,
            "output-tokens": ended.output_tokens,
            "reason": ended.reason,
        });
        self.line(ended.at, "ended", fields);
    }

    fn engine(&mut self, at: Duration, lane: LaneId, state: EngineState) {
        self.line(at, "engine", json!({ "lane": self.lane(lane), "state": state.label() }));
    }

    fn switched(&mut self, at: Duration, report: &SwitchReport) {
        let evicted: Vec<&str> =
            report.victims.iter().filter_map(|lane| self.lane(*lane)).collect();
        let fields = json!({
            "lane": self.lane(report.target),
            "evicted": evicted,
            "drain": seconds(report.drain),
            "stop": seconds(report.stop),
            "load": seconds(report.load),
            "overdue": report.overdue,
        });
        self.line(at, "switched", fields);
    }
}

/// Converts a time to seconds, in whole microseconds.
fn seconds(time: Duration) -> f64 {
    time.as_micros() as f64 / 1e6
}

fn label(result: RequestResult) -> &'static str {
    match result {
        RequestResult::Answered => "answered",
        RequestResult::FellBack => "fell-back",
        RequestResult::Rejected => "rejected",
        RequestResult::Error => "error",
        RequestResult::ClientGone => "client-gone",
    }
}

/// An observer that forwards every event to two others.
#[derive(Debug)]
pub(crate) struct Tee<A, B>(pub(crate) A, pub(crate) B);

impl<A: Observer, B: Observer> Observer for Tee<A, B> {
    fn decided(&mut self, request: &SimRequest, first: Option<LaneId>, by: &[PolicyRef]) {
        self.0.decided(request, first, by);
        self.1.decided(request, first, by);
    }

    fn granted(&mut self, at: Duration, request: &SimRequest, lane: LaneId) {
        self.0.granted(at, request, lane);
        self.1.granted(at, request, lane);
    }

    fn ended(&mut self, ended: &FinishedRequest<'_>) {
        self.0.ended(ended);
        self.1.ended(ended);
    }

    fn engine(&mut self, at: Duration, lane: LaneId, state: EngineState) {
        self.0.engine(at, lane, state);
        self.1.engine(at, lane, state);
    }

    fn load(&mut self, at: Duration, lane: LaneId, waiting: usize, running: u32) {
        self.0.load(at, lane, waiting, running);
        self.1.load(at, lane, waiting, running);
    }

    fn switched(&mut self, at: Duration, report: &SwitchReport) {
        self.0.switched(at, report);
        self.1.switched(at, report);
    }
}
