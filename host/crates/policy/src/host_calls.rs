//! The host calls that a guest can make. Results come from the inputs of the running call; between
//! calls all inputs are empty.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use pointsman_domain::{
    FieldValue, FleetView, LaneId, LaneInfo, LaneStat, MessageInfo, PolicyRef, RequestView,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::abi::Wasi;
use crate::call::{Current, MemoryLimit};
use crate::clock::Clock;
use crate::host_call_mode::{HostCall, HostCallMode};
use crate::metrics::VersionMetrics;
use crate::state::State;

/// Maximum bytes that one host call returns.
const MAX_BYTES_PER_HOST_CALL: usize = 64 << 10;
/// Maximum bytes that all host calls of one policy call return together.
const MAX_BYTES_PER_CALL: usize = 1 << 20;
/// Maximum length of a log line, in bytes; longer lines are truncated.
const MAX_LINE_BYTES: usize = 1 << 10;
/// Maximum log lines of one policy per second; further lines are dropped.
const MAX_LINES_PER_SECOND: u32 = 100;

/// The severity of a guest's log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Level {
    Trace,
    Debug,
    Info,
    Warn,
    Error,
}

/// The environment of a version, which outlives its instances: the policy's state, and the clock.
#[derive(Debug, Clone)]
pub(crate) struct HostEnv {
    pub(crate) state: Arc<State>,
    pub(crate) clock: Clock,
}

/// The environment in a host, which runs in real time.
impl From<Arc<State>> for HostEnv {
    fn from(state: Arc<State>) -> Self {
        Self { state, clock: Clock::wall() }
    }
}

/// Data that all instances of a version share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) policy: PolicyRef,
    pub(crate) state: Arc<State>,
    pub(crate) clock: Clock,
    pub(crate) metrics: VersionMetrics,
    /// The start of the current second of the rate limit, and the log lines in it.
    lines: Mutex<(Duration, u32)>,
}

impl Shared {
    pub(crate) fn new(policy: PolicyRef, env: impl Into<HostEnv>, metrics: VersionMetrics) -> Self {
        let HostEnv { state, clock } = env.into();
        Self { policy, state, clock, metrics, lines: Mutex::default() }
    }

    /// Takes a log line from the rate limit. Returns false if the limit is reached.
    fn may_log(&self) -> bool {
        let now = self.clock.now();
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if now >= lines.0 + Duration::from_secs(1) {
            *lines = (now, 0);
        }
        lines.1 += 1;
        lines.1 <= MAX_LINES_PER_SECOND
    }
}

/// The host's side of one instance: the data of its store.
#[derive(Debug)]
pub(crate) struct HostState {
    pub(crate) shared: Arc<Shared>,
    pub(crate) memory: MemoryLimit,
    /// Only used by guests that import WASI.
    pub(crate) wasi: Wasi,
    /// Fuel that calls have consumed since [`HostState::end`].
    pub(crate) fuel_used: u64,
    current: Option<Current>,
    /// Bytes that host calls may still return in this call.
    bytes_left: usize,
    mode: HostCallMode,
}

impl HostState {
    pub(crate) fn new(shared: Arc<Shared>, max_memory: u64) -> Self {
        Self {
            shared,
            memory: MemoryLimit::new(max_memory),
            wasi: Wasi::default(),
            fuel_used: 0,
            current: None,
            bytes_left: 0,
            mode: HostCallMode::Live,
        }
    }

    /// Starts a call. Until its [end](HostState::end), host calls are answered from `current` and
    /// handled as `mode` says.
    pub(crate) fn begin(&mut self, current: Current, mode: HostCallMode) {
        self.current = Some(current);
        self.bytes_left = MAX_BYTES_PER_CALL;
        self.mode = mode;
    }

    /// Ends a call. Returns the mode with what it logged, and the fuel that the call consumed.
    pub(crate) fn end(&mut self) -> (HostCallMode, u64) {
        self.current = None;
        (std::mem::take(&mut self.mode), std::mem::take(&mut self.fuel_used))
    }

    /// Returns the host call if its result has to be logged or taken from a record. In live mode
    /// this costs a branch.
    pub(crate) fn host_call(
        &self,
        function: &'static str,
        args: impl FnOnce() -> Vec<Value>,
    ) -> Option<HostCall> {
        (!self.mode.is_live()).then(|| HostCall { function, args: args() })
    }

    /// Returns the result of a host call. The live result is computed in any case, so that a
    /// replayed call consumes the byte limits as the recorded one did.
    pub(crate) fn result<T>(
        &mut self,
        host_call: Option<HostCall>,
        live: impl FnOnce(&mut Self) -> T,
    ) -> T
    where
        T: Serialize + DeserializeOwned,
    {
        let live = live(self);
        match host_call {
            None => live,
            Some(host_call) => self.mode.resolve(host_call, live),
        }
    }

    pub(crate) fn request(&self) -> Option<&dyn RequestView> {
        self.current.as_ref()?.request.as_deref()
    }

    pub(crate) fn fleet(&self) -> Option<&FleetView> {
        self.current.as_ref().map(|current| &*current.fleet)
    }

    pub(crate) fn field(&mut self, pointer: &str, max_bytes: u32) -> FieldValue {
        let max_bytes = self.allowed_bytes(max_bytes);
        let value =
            self.request().map_or(FieldValue::Absent, |request| request.field(pointer, max_bytes));
        if let FieldValue::Json(json) = &value {
            self.bytes_left -= json.len();
        }
        value
    }

    pub(crate) fn text(&mut self, index: u32, offset: u64, max_bytes: u32) -> String {
        let max_bytes = self.allowed_bytes(max_bytes);
        let text = self.request().map_or_else(String::new, |request| {
            request.text(index, offset, max_bytes).into_owned()
        });
        self.bytes_left -= text.len();
        text
    }

    pub(crate) fn body(&mut self, offset: u64, max_bytes: u32) -> Vec<u8> {
        let max_bytes = self.allowed_bytes(max_bytes);
        let bytes = self
            .request()
            .map_or_else(Vec::new, |request| request.bytes(offset, max_bytes).to_vec());
        self.bytes_left -= bytes.len();
        bytes
    }

    pub(crate) fn messages(&self) -> Vec<MessageInfo> {
        const MAX_MESSAGES: usize = 4096;
        let mut messages = self.request().map_or_else(Vec::new, RequestView::messages);
        messages.truncate(MAX_MESSAGES);
        messages
    }

    pub(crate) fn prefix_hashes(&self, block_bytes: u32, max_blocks: u32) -> Vec<u64> {
        const MAX_BLOCKS: u32 = 1024;
        let blocks = max_blocks.min(MAX_BLOCKS) as usize;
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

    /// Logs a line of the guest. The span of the call carries the hook and the request.
    pub(crate) fn log(&self, level: Level, message: &str) {
        if !self.shared.may_log() {
            self.shared.metrics.record_dropped("log");
            return;
        }
        let truncated = pointsman_domain::char_slice(message, 0, MAX_LINE_BYTES);
        // Control characters could forge lines, or drive the terminal that shows the log.
        let line: String =
            truncated.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        match level {
            Level::Trace => tracing::trace!(target: "policy", "{line}"),
            Level::Debug => tracing::debug!(target: "policy", "{line}"),
            Level::Info => tracing::info!(target: "policy", "{line}"),
            Level::Warn => tracing::warn!(target: "policy", "{line}"),
            Level::Error => tracing::error!(target: "policy", "{line}"),
        }
    }

    /// Returns whether a line of this severity would be logged. In virtual time the result must not
    /// depend on the log filter of the process.
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

    fn allowed_bytes(&self, max_bytes: u32) -> usize {
        (max_bytes as usize).min(MAX_BYTES_PER_HOST_CALL).min(self.bytes_left)
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::registry::Registry;

    use super::*;
    use crate::metrics::PolicyMetrics;

    #[test]
    fn log_limits_follow_a_virtual_clock_and_not_the_subscriber() {
        let metrics = PolicyMetrics::register(&mut Registry::default());
        let policy = PolicyRef::new("p", "1");
        let metrics = VersionMetrics::new(&metrics, &policy, &[]);
        let env = HostEnv { state: Arc::default(), clock: Clock::manual() };
        let host = HostState::new(Arc::new(Shared::new(policy, env, metrics)), 0);
        let admitted =
            || (0..2 * MAX_LINES_PER_SECOND).filter(|_| host.shared.may_log()).count() as u32;
        assert_eq!((admitted(), admitted()), (MAX_LINES_PER_SECOND, 0));
        host.shared.clock.set(Duration::from_secs(1));
        assert_eq!(admitted(), MAX_LINES_PER_SECOND);
        let enabled = [Level::Trace, Level::Debug, Level::Info, Level::Warn, Level::Error]
            .map(|level| host.log_enabled(level));
        assert_eq!(enabled, [false, false, true, true, true], "without a subscriber");
    }
}
