//! Host calls that are answered from the inputs of the running call.

use std::sync::Arc;
use std::time::Duration;

use pointsman_domain::{
    Allowance, Facts, FieldValue, FleetView, LaneId, LaneInfo, LaneStat, MessageInfo, RequestView,
    TextMatch,
};

use crate::contract::host_api::HostApi;
use crate::contract::shared::{Level, Shared};
use crate::contract::state::entry::StateError;
use crate::contract::text_search::TextSearch;
use crate::limits::MAX_SCANNED_BYTES;

/// Maximum bytes that one host call returns.
const MAX_BYTES_PER_HOST_CALL: usize = 64 << 10;
/// Maximum bytes that all host calls of one policy call return together.
const MAX_BYTES_PER_CALL: usize = 1 << 20;
/// Maximum messages that are described.
const MAX_MESSAGES: usize = 4096;
/// Bytes that each byte of a text counts in a search for several patterns, which takes about that
/// many times as long as a search for one.
const SEARCH_COST: u64 = 4;
/// Bytes that each byte of a pattern counts.
const PATTERN_COST: u64 = 512;
/// Maximum hashes of prompt blocks of one host call.
const MAX_BLOCKS: u32 = 1024;

/// The inputs of a running call, from which host calls are answered.
#[derive(Debug, Clone)]
pub(crate) struct Current {
    /// `None` in hooks that are not about a request.
    pub(crate) request: Option<Arc<dyn RequestView>>,
    pub(crate) fleet: Arc<FleetView>,
    /// Time until the host gives up on the request.
    pub(crate) time_left: Option<Duration>,
    /// The candidates that earlier filters leave; `None` for all.
    pub(crate) lanes_left: Option<Arc<[LaneId]>>,
}

impl Current {
    /// The inputs of a call about `facts`.
    pub(crate) fn about(facts: &Facts, fleet: &Arc<FleetView>) -> Self {
        Self {
            request: Some(Arc::clone(&facts.request)),
            fleet: Arc::clone(fleet),
            time_left: facts.time_left,
            lanes_left: facts.lanes_left.clone(),
        }
    }

    /// The inputs of a call that is not about a request.
    pub(crate) fn background(fleet: &Arc<FleetView>) -> Self {
        Self { request: None, fleet: Arc::clone(fleet), time_left: None, lanes_left: None }
    }
}

/// The live implementation of host calls.
#[derive(Debug)]
pub(crate) struct LiveApi {
    shared: Arc<Shared>,
    current: Option<Current>,
    /// Bytes that host calls may still return in this call.
    bytes_left: usize,
    /// Bytes that host calls have examined in this call.
    scanned_bytes: u64,
}

impl LiveApi {
    /// Answers host calls from empty inputs.
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, current: None, bytes_left: MAX_BYTES_PER_CALL, scanned_bytes: 0 }
    }

    /// Starts a call, about which host calls are answered from `current`.
    pub(crate) fn begin(&mut self, current: Current) {
        self.current = Some(current);
        (self.bytes_left, self.scanned_bytes) = (MAX_BYTES_PER_CALL, 0);
    }

    /// Ends a call: host calls are answered from empty inputs again.
    pub(crate) fn end(&mut self) {
        self.current = None;
    }

    fn request(&self) -> Option<&dyn RequestView> {
        self.current.as_ref()?.request.as_deref()
    }

    fn fleet(&self) -> Option<&FleetView> {
        self.current.as_ref().map(|current| &*current.fleet)
    }

    fn allowed_bytes(&self, max_bytes: u32) -> usize {
        (max_bytes as usize).min(MAX_BYTES_PER_HOST_CALL).min(self.bytes_left)
    }

    /// Counts a host call that may examine up to `max` bytes of the text of the request, without
    /// images and other parts that are not text. Returns the request, unless the call exceeds the
    /// limit.
    fn scan(&mut self, max: u64) -> Option<&dyn RequestView> {
        let text_bytes = self.request()?.text_size();
        self.charge(max.min(text_bytes));
        if self.scanned_bytes > MAX_SCANNED_BYTES { None } else { self.request() }
    }

    /// Counts the bytes that a host call returns.
    fn charged<T: AsRef<[u8]>>(&mut self, result: T) -> T {
        self.charge(result.as_ref().len() as u64);
        result
    }
}

impl HostApi for LiveApi {
    fn id(&mut self) -> String {
        self.request().map_or_else(String::new, |request| request.id().to_owned())
    }

    fn model(&mut self) -> String {
        let model = self.request().map_or_else(String::new, |request| request.model().to_owned());
        self.charged(model)
    }

    fn tenant(&mut self) -> Option<String> {
        self.request()?.tenant().map(str::to_owned)
    }

    fn header(&mut self, name: &str) -> Option<String> {
        let value = self.request()?.header(name)?.to_owned();
        Some(self.charged(value))
    }

    fn field(&mut self, pointer: &str, max_bytes: u32) -> FieldValue {
        let max_bytes = self.allowed_bytes(max_bytes);
        let value =
            self.request().map_or(FieldValue::Absent, |request| request.field(pointer, max_bytes));
        if let FieldValue::Json(json) = &value {
            self.bytes_left -= json.len();
            self.charge(json.len() as u64);
        }
        value
    }

    fn messages(&mut self) -> Vec<MessageInfo> {
        let mut messages = self.request().map_or_else(Vec::new, RequestView::messages);
        messages.truncate(MAX_MESSAGES);
        self.charge((messages.len() * size_of::<MessageInfo>()) as u64);
        messages
    }

    fn text(&mut self, index: u32, offset: u64, max_bytes: u32) -> String {
        let max_bytes = self.allowed_bytes(max_bytes);
        let text = self.request().map_or_else(String::new, |request| {
            request.text(index, offset, max_bytes).into_owned()
        });
        self.bytes_left -= text.len();
        self.charged(text)
    }

    fn body(&mut self, offset: u64, max_bytes: u32) -> Vec<u8> {
        let max_bytes = self.allowed_bytes(max_bytes);
        let bytes = self
            .request()
            .map_or_else(Vec::new, |request| request.bytes(offset, max_bytes).to_vec());
        self.bytes_left -= bytes.len();
        self.charged(bytes)
    }

    fn contains(&mut self, needle: &str, ignore_case: bool) -> bool {
        self.scan(u64::MAX).is_some_and(|request| request.contains(needle, ignore_case))
    }

    fn prefix_hashes(&mut self, block_bytes: u32, max_blocks: u32) -> Vec<u64> {
        let blocks = max_blocks.min(MAX_BLOCKS);
        self.scan(u64::from(block_bytes) * u64::from(blocks)).map_or_else(Vec::new, |request| {
            request.prefix_hashes(block_bytes as usize, blocks as usize)
        })
    }

    fn deadline_ms(&mut self) -> Option<u32> {
        let left = self.current.as_ref()?.time_left?;
        // Saturates at 49 days.
        Some(u32::try_from(left.as_millis()).unwrap_or(u32::MAX))
    }

    fn find_any(&mut self, patterns: &[String], ignore_case: bool) -> Vec<TextMatch> {
        let bytes: usize = patterns.iter().map(String::len).sum();
        let text_bytes = self.request().map_or(0, RequestView::text_size);
        self.charge(bytes as u64 * PATTERN_COST);
        // `scan` counts the texts once.
        self.charge(text_bytes.saturating_mul(SEARCH_COST - 1));
        let Some(request) = self.scan(u64::MAX) else { return Vec::new() };
        let Some(mut search) = TextSearch::new(patterns, ignore_case) else { return Vec::new() };
        request.visit_texts(&mut |message, begin, text| search.read(message, begin, text));
        let found = search.into_matches();
        self.charge((found.len() * size_of::<TextMatch>()) as u64);
        found
    }

    fn endpoint_kind(&mut self) -> String {
        let endpoint = self.request().map(|request| request.info().endpoint);
        endpoint.map_or_else(String::new, |endpoint| endpoint.label().to_owned())
    }

    fn key_group(&mut self) -> Option<String> {
        self.request()?.key_group().map(str::to_owned)
    }

    fn key_name(&mut self) -> Option<String> {
        self.request()?.key_name().map(str::to_owned)
    }

    fn allowance(&mut self) -> Allowance {
        self.request().map(RequestView::allowance).unwrap_or_default()
    }

    fn stats(&mut self) -> Vec<LaneStat> {
        self.fleet().map_or_else(Vec::new, |fleet| fleet.stats().collect())
    }

    fn stat(&mut self, lane: u32) -> Option<LaneStat> {
        self.fleet()?.stat(LaneId(lane))
    }

    fn candidates(&mut self) -> Vec<u32> {
        let (Some(fleet), Some(request)) = (self.fleet(), self.request()) else {
            return Vec::new();
        };
        let endpoint = request.info().endpoint;
        let lanes = fleet.topology.candidates_for(request.model(), endpoint);
        lanes.map(|lane| lane.0).collect()
    }

    fn info(&mut self, lane: u32) -> Option<&LaneInfo> {
        self.fleet()?.topology.lane(LaneId(lane))
    }

    fn find(&mut self, name: &str) -> Option<u32> {
        Some(self.fleet()?.topology.find(name)?.0)
    }

    fn with_label(&mut self, key: &str, value: &str) -> Vec<u32> {
        let lanes =
            self.fleet().map_or_else(Vec::new, |fleet| fleet.topology.with_label(key, value));
        lanes.into_iter().map(|lane| lane.0).collect()
    }

    fn lanes_left(&mut self) -> Vec<u32> {
        let left = self.current.as_ref().and_then(|current| current.lanes_left.clone());
        match left {
            Some(left) => left.iter().map(|lane| lane.0).collect(),
            None => self.candidates(),
        }
    }

    fn get(&mut self, key: &str) -> Option<Vec<u8>> {
        let value = self.shared.state.get(key)?;
        Some(self.charged(value))
    }

    fn put(&mut self, key: String, value: &[u8], ttl_ms: u32) -> Result<(), StateError> {
        self.shared.state.put(key, value, ttl_ms)
    }

    fn delete(&mut self, key: &str) {
        self.shared.state.delete(key);
    }

    fn increment(&mut self, key: String, by: i64, ttl_ms: u32) -> Result<i64, StateError> {
        self.shared.state.increment(key, by, ttl_ms)
    }

    fn charge(&mut self, bytes: u64) {
        // Saturates above the limit.
        self.scanned_bytes = self.scanned_bytes.saturating_add(bytes);
    }

    fn scanned_bytes(&self) -> u64 {
        self.scanned_bytes
    }

    fn log(&mut self, level: Level, message: &str) {
        self.shared.log(level, message);
    }

    fn log_enabled(&mut self, level: Level) -> bool {
        self.shared.log_enabled(level)
    }

    fn add_metric(&mut self, name: &str, value: u64) {
        self.shared.metrics.add(name, value);
    }

    fn record_metric(&mut self, name: &str, value: u64) {
        self.shared.metrics.record_value(name, value);
    }
}

#[cfg(test)]
mod tests {
    use pointsman_domain::Endpoint;

    const PAGE: &str = include_str!("../../../../docs/policies-reference.md");

    #[test]
    fn documentation_names_all_endpoints() {
        let (_, table) = PAGE.split_once("<!-- endpoints -->").unwrap();
        let rows = table.trim_start().lines().take_while(|line| line.starts_with('|')).skip(2);
        let names: Vec<String> =
            rows.map(|row| row.split('|').take(3).collect::<Vec<_>>().join("|")).collect();
        let expected = Endpoint::ALL
            .map(|endpoint| format!("| `{}` | `{}` ", endpoint.label(), endpoint.path().unwrap()));
        assert_eq!(names, expected);
    }
}
