//! What a guest may ask of the host. Answers come from the call that is running; between calls everything is empty.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use pointsman_domain::{
    FieldValue, FleetView, LaneId, LaneInfo, LaneStat, MessageInfo, RequestView,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::abi::Wasi;
use crate::call::{Current, MemoryLimit};
use crate::clock::Clock;
use crate::interview::{Asking, Question};
use crate::metrics::PolicyFigures;
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

/// What a version finds that outlives its instances: the policy's state, and the time.
#[derive(Debug, Clone)]
pub(crate) struct HostEnv {
    pub(crate) state: Arc<State>,
    pub(crate) clock: Clock,
}

/// Those of a host.
impl From<Arc<State>> for HostEnv {
    fn from(state: Arc<State>) -> Self {
        Self { state, clock: Clock::wall() }
    }
}

/// What all instances of a policy share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) name: String,
    pub(crate) state: Arc<State>,
    pub(crate) clock: Clock,
    pub(crate) figures: PolicyFigures,
    /// When the second began that lines are counted in, and how many there were.
    lines: Mutex<(Duration, u32)>,
}

impl Shared {
    pub(crate) fn new(name: String, around: impl Into<HostEnv>, figures: PolicyFigures) -> Self {
        let HostEnv { state, clock } = around.into();
        Self { name, state, clock, figures, lines: Mutex::default() }
    }

    fn may_log(&self) -> bool {
        let now = self.clock.now();
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if now >= lines.0 + Duration::from_secs(1) {
            *lines = (now, 0);
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
    /// Fuel that calls have burnt since it was last taken.
    pub(crate) burnt: u64,
    current: Option<Current>,
    left: usize,
    asking: Asking,
}

impl HostState {
    pub(crate) fn new(shared: Arc<Shared>, most_memory: u64) -> Self {
        Self {
            shared,
            memory: MemoryLimit::new(most_memory),
            wasi: Wasi::default(),
            burnt: 0,
            current: None,
            left: 0,
            asking: Asking::Plain,
        }
    }

    /// Begin a call. Until its [end](HostState::end), questions are answered from what is `current`, and go the way of `asking`.
    pub(crate) fn begin(&mut self, current: Current, asking: Asking) {
        self.current = Some(current);
        self.left = MOST_PER_CALL;
        self.asking = asking;
    }

    /// The call is over. What came of its questions, and the fuel that it burnt.
    pub(crate) fn end(&mut self) -> (Asking, u64) {
        self.current = None;
        (std::mem::take(&mut self.asking), std::mem::take(&mut self.burnt))
    }

    /// A question whose answer is to be noted, or taken from a record. In all other calls this is a branch and nothing more.
    pub(crate) fn question(
        &self,
        call: &'static str,
        with: impl FnOnce() -> Vec<Value>,
    ) -> Option<Question> {
        (!self.asking.is_plain()).then(|| Question { call, with: with() })
    }

    /// The answer to a question. The live one is made in any case, so that a call which is replayed uses up what it may be told
    /// as it did before.
    pub(crate) fn answer<T>(
        &mut self,
        question: Option<Question>,
        live: impl FnOnce(&mut Self) -> T,
    ) -> T
    where
        T: Serialize + DeserializeOwned,
    {
        let live = live(self);
        match question {
            None => live,
            Some(question) => self.asking.settle(question, live),
        }
    }

    pub(crate) fn request(&self) -> Option<&dyn RequestView> {
        self.current.as_ref()?.request.as_deref()
    }

    pub(crate) fn fleet(&self) -> Option<&FleetView> {
        self.current.as_ref().map(|current| &*current.fleet)
    }

    pub(crate) fn field(&mut self, pointer: &str, max_bytes: u32) -> FieldValue {
        let most = self.most(max_bytes);
        let value =
            self.request().map_or(FieldValue::Absent, |request| request.field(pointer, most));
        if let FieldValue::Json(json) = &value {
            self.left -= json.len();
        }
        value
    }

    pub(crate) fn text(&mut self, index: u32, offset: u64, max_bytes: u32) -> String {
        let most = self.most(max_bytes);
        let text = self
            .request()
            .map_or_else(String::new, |request| request.text(index, offset, most).into_owned());
        self.left -= text.len();
        text
    }

    pub(crate) fn body(&mut self, offset: u64, max_bytes: u32) -> Vec<u8> {
        let most = self.most(max_bytes);
        let bytes =
            self.request().map_or_else(Vec::new, |request| request.bytes(offset, most).to_vec());
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
        self.request()
            .map_or_else(Vec::new, |request| request.prefix_hashes(block_bytes as usize, blocks))
    }

    pub(crate) fn candidates(&self) -> Vec<u32> {
        let (Some(fleet), Some(request)) = (self.fleet(), self.request()) else {
            return Vec::new();
        };
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
        let lanes =
            self.fleet().map_or_else(Vec::new, |fleet| fleet.topology.with_label(key, value));
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

    /// In a rehearsal the answer must not depend on who reads the log.
    pub(crate) fn log_enabled(&self, level: Level) -> bool {
        if self.shared.clock.is_virtual() {
            return !matches!(level, Level::Trace | Level::Debug);
        }
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

#[cfg(test)]
mod tests {
    use prometheus_client::registry::Registry;

    use super::*;
    use crate::metrics::PolicyMetrics;

    #[test]
    fn what_a_rehearsed_policy_logs_follows_its_clock_and_no_subscriber() {
        let metrics = PolicyMetrics::register(&mut Registry::default());
        let figures =
            PolicyFigures::new(&metrics, &pointsman_domain::PolicyRef::new("p", "1"), &[]);
        let around = HostEnv { state: Arc::default(), clock: Clock::standing() };
        let host = HostState::new(Arc::new(Shared::new("p".into(), around, figures)), 0);
        let kept = || (0..2 * LINES_PER_SECOND).filter(|_| host.shared.may_log()).count() as u32;
        assert_eq!((kept(), kept()), (LINES_PER_SECOND, 0));
        host.shared.clock.set(Duration::from_secs(1));
        assert_eq!(kept(), LINES_PER_SECOND);
        let enabled = [Level::Trace, Level::Debug, Level::Info, Level::Warn, Level::Error]
            .map(|level| host.log_enabled(level));
        assert_eq!(enabled, [false, false, true, true, true], "and nobody reads any log here");
    }
}
