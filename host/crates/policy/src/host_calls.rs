//! What a guest may ask of the host. Answers come from the call that is running; between calls everything is empty.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use pointsman_domain::{FieldValue, FleetView, LaneId, LaneInfo, LaneStat, MessageInfo, Read, RequestView};
use serde_json::Value;

use crate::abi::Wasi;
use crate::call::{Current, MemoryLimit};
use crate::metrics::PolicyFigures;
use crate::reads::Reads;
use crate::state::State;

/// Bytes that one question can yield.
const MOST_PER_QUESTION: usize = 64 << 10;
/// Bytes that the questions of one call can yield in all.
const MOST_PER_CALL: usize = 1 << 20;
/// Longest log line; more is cut off.
const LONGEST_LINE: usize = 1 << 10;
/// Log lines of one policy in a second; more are dropped.
const LINES_PER_SECOND: u32 = 100;

/// Severity of a guest's log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Level {
    Trace,
    Debug,
    Info,
    Warn,
    Error,
}

/// What all instances of a policy share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) name: String,
    pub(crate) state: Arc<State>,
    pub(crate) figures: PolicyFigures,
    lines: Mutex<(Instant, u32)>,
}

impl Shared {
    pub(crate) fn new(name: String, state: Arc<State>, figures: PolicyFigures) -> Self {
        Self { name, state, figures, lines: Mutex::new((Instant::now(), 0)) }
    }

    fn may_log(&self) -> bool {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.0.elapsed() >= Duration::from_secs(1) {
            *lines = (Instant::now(), 0);
        }
        lines.1 += 1;
        lines.1 <= LINES_PER_SECOND
    }
}

/// The host's side of one instance.
#[derive(Debug)]
pub(crate) struct HostState {
    pub(crate) shared: Arc<Shared>,
    pub(crate) memory: MemoryLimit,
    /// The world outside, for those guests that were built to see one.
    pub(crate) wasi: Wasi,
    current: Option<Current>,
    left: usize,
    reads: Option<Reads>,
}

impl HostState {
    pub(crate) fn new(shared: Arc<Shared>, most_memory: u64) -> Self {
        let memory = MemoryLimit::new(most_memory);
        Self { shared, memory, wasi: Wasi::default(), current: None, left: 0, reads: None }
    }

    /// Begin a call about a request. What it asks is kept for [`HostState::take_reads`] if it is `recorded`.
    pub(crate) fn begin(&mut self, current: Current, recorded: bool) {
        self.current = Some(current);
        self.left = MOST_PER_CALL;
        self.reads = recorded.then(Reads::default);
    }

    /// What the call asked so far; none, if it is not recorded.
    pub(crate) fn take_reads(&mut self) -> Vec<Read> {
        self.reads.take().map(Reads::into_list).unwrap_or_default()
    }

    /// Keep a question with its answer, if the call is recorded; otherwise this is a branch and nothing more.
    pub(crate) fn note(&mut self, call: &str, asked: impl FnOnce() -> (Vec<Value>, Value)) {
        if let Some(reads) = &mut self.reads {
            let (with, gave) = asked();
            reads.push(call, with, gave);
        }
    }

    /// Arguments that are gone by the time there is an answer to note.
    pub(crate) fn noting(&self, with: impl FnOnce() -> Vec<Value>) -> Option<Vec<Value>> {
        self.reads.is_some().then(with)
    }

    /// As [`HostState::note`] with the answer at hand, which is handed on.
    pub(crate) fn noted<T>(
        &mut self,
        call: &str,
        answer: T,
        asked: impl FnOnce(&T) -> (Vec<Value>, Value),
    ) -> T {
        self.note(call, || asked(&answer));
        answer
    }

    /// The call is over.
    pub(crate) fn end(&mut self) {
        self.current = None;
        self.reads = None;
    }

    pub(crate) fn request(&self) -> Option<&dyn RequestView> {
        self.current.as_ref()?.request.as_deref()
    }

    pub(crate) fn fleet(&self) -> Option<&FleetView> {
        self.current.as_ref().map(|current| &*current.fleet)
    }

    pub(crate) fn field(&mut self, pointer: &str, max_bytes: u32) -> FieldValue {
        let most = self.most(max_bytes);
        let value = self.request().map_or(FieldValue::Absent, |request| request.field(pointer, most));
        if let FieldValue::Json(json) = &value {
            self.left -= json.len();
        }
        value
    }

    pub(crate) fn text(&mut self, index: u32, offset: u64, max_bytes: u32) -> String {
        let most = self.most(max_bytes);
        let text =
            self.request().map_or_else(String::new, |request| request.text(index, offset, most).into_owned());
        self.left -= text.len();
        text
    }

    pub(crate) fn body(&mut self, offset: u64, max_bytes: u32) -> Vec<u8> {
        let most = self.most(max_bytes);
        let bytes = self.request().map_or_else(Vec::new, |request| request.bytes(offset, most).to_vec());
        self.left -= bytes.len();
        bytes
    }

    pub(crate) fn messages(&self) -> Vec<MessageInfo> {
        const MOST: usize = 4096;
        let mut messages = self.request().map_or_else(Vec::new, RequestView::messages);
        messages.truncate(MOST);
        messages
    }

    pub(crate) fn prefix_hashes(&self, block_bytes: u32, max_blocks: u32) -> Vec<u64> {
        const MOST: u32 = 1024;
        let blocks = max_blocks.min(MOST) as usize;
        self.request().map_or_else(Vec::new, |request| request.prefix_hashes(block_bytes as usize, blocks))
    }

    pub(crate) fn candidates(&self) -> Vec<u32> {
        let (Some(fleet), Some(request)) = (self.fleet(), self.request()) else { return Vec::new() };
        fleet.topology.candidates(request.model()).iter().map(|lane| lane.0).collect()
    }

    pub(crate) fn stats(&self) -> &[LaneStat] {
        self.fleet().map_or(&[], |fleet| &fleet.stats)
    }

    pub(crate) fn stat(&self, lane: u32) -> Option<&LaneStat> {
        self.fleet()?.stat(LaneId(lane))
    }

    pub(crate) fn info(&self, lane: u32) -> Option<&LaneInfo> {
        self.fleet()?.topology.lane(LaneId(lane))
    }

    pub(crate) fn with_label(&self, key: &str, value: &str) -> Vec<u32> {
        let lanes = self.fleet().map_or_else(Vec::new, |fleet| fleet.topology.with_label(key, value));
        lanes.into_iter().map(|lane| lane.0).collect()
    }

    pub(crate) fn log(&self, level: Level, message: &str) {
        if !self.shared.may_log() {
            self.shared.figures.dropped("log");
            return;
        }
        let cut = pointsman_domain::char_slice(message, 0, LONGEST_LINE);
        let line: String = cut.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        let policy = self.shared.name.as_str();
        let request = self.request().map_or("", RequestView::id);
        match level {
            Level::Trace => tracing::trace!(target: "policy", policy, request, "{line}"),
            Level::Debug => tracing::debug!(target: "policy", policy, request, "{line}"),
            Level::Info => tracing::info!(target: "policy", policy, request, "{line}"),
            Level::Warn => tracing::warn!(target: "policy", policy, request, "{line}"),
            Level::Error => tracing::error!(target: "policy", policy, request, "{line}"),
        }
    }

    pub(crate) fn log_enabled(level: Level) -> bool {
        match level {
            Level::Trace => tracing::enabled!(target: "policy", tracing::Level::TRACE),
            Level::Debug => tracing::enabled!(target: "policy", tracing::Level::DEBUG),
            Level::Info => tracing::enabled!(target: "policy", tracing::Level::INFO),
            Level::Warn => tracing::enabled!(target: "policy", tracing::Level::WARN),
            Level::Error => tracing::enabled!(target: "policy", tracing::Level::ERROR),
        }
    }

    fn most(&self, wanted: u32) -> usize {
        (wanted as usize).min(MOST_PER_QUESTION).min(self.left)
    }
}
