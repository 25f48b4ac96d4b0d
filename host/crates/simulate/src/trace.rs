//! What happened in a run, one line of JSON each: for whoever wants to see why, or to compare it with what a host did.
//!
//! ```text
//!   {"at":12.5,"what":"decided","request":"sim-7","class":"interactive","model":"auto","lane":"coder","by":["cortex@0.1.0"]}
//!   {"at":12.5,"what":"engine","lane":"reader","state":"draining"}
//!   {"at":60.25,"what":"granted","request":"sim-7","lane":"coder"}
//! ```
//!
//! Times are seconds since the begin.

use std::io::{self, Write};
use std::time::Duration;

use pointsman_domain::dispatch::SwitchReport;
use pointsman_domain::{EngineState, LaneId, PolicyRef};
use serde_json::{Value, json};

use crate::observe::{Ended, How, Observer};
use crate::traffic::Ask;

/// Writes down what happens.
pub struct TraceWriter<W> {
    out: W,
    lanes: Vec<String>,
    classes: Vec<String>,
    /// Why nothing is written any more.
    problem: Option<io::Error>,
}

impl<W> std::fmt::Debug for TraceWriter<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TraceWriter").field("problem", &self.problem).finish_non_exhaustive()
    }
}

impl<W: Write> TraceWriter<W> {
    /// Of a run with these lanes, in the order of their ids, and these classes.
    pub fn new(out: W, lanes: impl IntoIterator<Item = String>, classes: &[String]) -> Self {
        Self { out, lanes: lanes.into_iter().collect(), classes: classes.to_owned(), problem: None }
    }

    /// The run is over.
    ///
    /// # Errors
    /// When something could not be written.
    pub fn finish(mut self) -> io::Result<()> {
        match self.problem {
            Some(problem) => Err(problem),
            None => self.out.flush(),
        }
    }

    fn line(&mut self, at: Duration, what: &'static str, more: Value) {
        if self.problem.is_some() {
            return;
        }
        let mut line = json!({ "at": seconds(at), "what": what });
        if let (Value::Object(line), Value::Object(more)) = (&mut line, more) {
            line.extend(more.into_iter().filter(|(_, value)| !value.is_null()));
        }
        self.problem = writeln!(self.out, "{line}").err();
    }

    fn lane(&self, lane: LaneId) -> Option<&str> {
        self.lanes.get(lane.index()).map(String::as_str)
    }

    fn class(&self, ask: &Ask) -> Option<&str> {
        self.classes.get(usize::from(ask.class.0)).map(String::as_str)
    }
}

impl<W: Write> Observer for TraceWriter<W> {
    fn decided(&mut self, ask: &Ask, first: Option<LaneId>, by: &[PolicyRef]) {
        let by: Vec<String> = by.iter().map(ToString::to_string).collect();
        let more = json!({
            "request": ask.id, "class": self.class(ask), "tenant": ask.tenant, "model": ask.model,
            "lane": first.and_then(|lane| self.lane(lane)), "by": by,
        });
        self.line(ask.at, "decided", more);
    }

    fn granted(&mut self, at: Duration, ask: &Ask, lane: LaneId) {
        self.line(at, "granted", json!({ "request": ask.id, "lane": self.lane(lane) }));
    }

    fn ended(&mut self, ended: &Ended<'_>) {
        let lane = ended.tries.last().and_then(|tried| self.lane(tried.lane));
        let more = json!({
            "request": ended.ask.id, "class": self.class(ended.ask), "how": how(ended.how), "lane": lane,
            "wait": seconds(ended.wait), "first-byte": ended.first_byte.map(seconds), "tries": ended.tries.len(),
            "cached-tokens": ended.cached_tokens, "output-tokens": ended.output_tokens, "problem": ended.problem,
        });
        self.line(ended.at, "ended", more);
    }

    fn engine(&mut self, at: Duration, lane: LaneId, state: EngineState) {
        self.line(at, "engine", json!({ "lane": self.lane(lane), "state": state.label() }));
    }

    fn switched(&mut self, at: Duration, report: &SwitchReport) {
        let instead_of: Vec<&str> =
            report.victims.iter().filter_map(|lane| self.lane(*lane)).collect();
        let more = json!({
            "lane": self.lane(report.target), "instead-of": instead_of, "drain": seconds(report.drain),
            "stop": seconds(report.stop), "load": seconds(report.load), "overdue": report.overdue,
        });
        self.line(at, "switched", more);
    }
}

/// To the microsecond.
fn seconds(time: Duration) -> f64 {
    time.as_micros() as f64 / 1e6
}

fn how(how: How) -> &'static str {
    match how {
        How::Answered => "answered",
        How::FellBack => "fell-back",
        How::Rejected => "rejected",
        How::Error => "error",
        How::ClientGone => "client-gone",
    }
}

/// Two who watch the same run.
#[derive(Debug)]
pub(crate) struct Both<A, B>(pub(crate) A, pub(crate) B);

impl<A: Observer, B: Observer> Observer for Both<A, B> {
    fn decided(&mut self, ask: &Ask, first: Option<LaneId>, by: &[PolicyRef]) {
        self.0.decided(ask, first, by);
        self.1.decided(ask, first, by);
    }

    fn granted(&mut self, at: Duration, ask: &Ask, lane: LaneId) {
        self.0.granted(at, ask, lane);
        self.1.granted(at, ask, lane);
    }

    fn ended(&mut self, ended: &Ended<'_>) {
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
