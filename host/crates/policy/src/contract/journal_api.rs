//! Host calls that pass through a journal: recorded, or answered from a record.
//!
//! The live result is computed in any case, so that a replayed call consumes the byte limits as the
//! recorded one did.

use pointsman_domain::{Allowance, FieldValue, LaneInfo, LaneStat, MessageInfo, TextMatch};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::contract::encoded_bytes::Bytes;
use crate::contract::host_api::HostApi;
use crate::contract::journal::{HostCall, Journal};
use crate::contract::live_api::LiveApi;
use crate::contract::shared::Level;
use crate::contract::state::entry::StateError;

/// Live host calls with a journal.
#[derive(Debug)]
pub(crate) struct JournalApi<J> {
    live: LiveApi,
    journal: J,
}

impl<J: Journal> JournalApi<J> {
    pub(crate) fn new(live: LiveApi, journal: J) -> Self {
        Self { live, journal }
    }

    pub(crate) fn into_journal(self) -> J {
        self.journal
    }

    /// Passes an argument of the call through the journal, like the result of a host call: it is an
    /// input of the guest as well.
    pub(crate) fn input<T>(&mut self, name: &'static str, value: T) -> T
    where
        T: Serialize + DeserializeOwned,
    {
        self.resolve(name, Vec::new(), value)
    }

    fn resolve<T>(&mut self, function: &'static str, args: Vec<Value>, live: T) -> T
    where
        T: Serialize + DeserializeOwned,
    {
        self.journal.resolve(HostCall { function, args }, live)
    }
}

/// The result of a write to the state, as in records: `{"ok": …}` or `{"error": "too-long"}`.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Stored<T> {
    Ok(T),
    Error(StateError),
}

impl<T> From<Result<T, StateError>> for Stored<T> {
    fn from(result: Result<T, StateError>) -> Self {
        result.map_or_else(Self::Error, Self::Ok)
    }
}

impl<T> From<Stored<T>> for Result<T, StateError> {
    fn from(stored: Stored<T>) -> Self {
        match stored {
            Stored::Ok(value) => Ok(value),
            Stored::Error(error) => Err(error),
        }
    }
}

/// Every function of the contract that is an input passes through the journal, so every input that
/// is recorded can be replayed. Logs and metrics are no inputs.
impl<J: Journal> HostApi for JournalApi<J> {
    fn id(&mut self) -> String {
        let live = self.live.id();
        self.resolve("request.id", Vec::new(), live)
    }

    fn model(&mut self) -> String {
        let live = self.live.model();
        self.resolve("request.model", Vec::new(), live)
    }

    fn tenant(&mut self) -> Option<String> {
        let live = self.live.tenant();
        self.resolve("request.tenant", Vec::new(), live)
    }

    fn header(&mut self, name: &str) -> Option<String> {
        let live = self.live.header(name);
        self.resolve("request.header", vec![json!(name)], live)
    }

    fn field(&mut self, pointer: &str, max_bytes: u32) -> FieldValue {
        let live = self.live.field(pointer, max_bytes);
        self.resolve("request.field", vec![json!(pointer), json!(max_bytes)], live)
    }

    fn messages(&mut self) -> Vec<MessageInfo> {
        let live = self.live.messages();
        self.resolve("request.messages", Vec::new(), live)
    }

    fn text(&mut self, index: u32, offset: u64, max_bytes: u32) -> String {
        let live = self.live.text(index, offset, max_bytes);
        let args = vec![json!(index), json!(offset), json!(max_bytes)];
        self.resolve("request.text", args, live)
    }

    fn body(&mut self, offset: u64, max_bytes: u32) -> Vec<u8> {
        let live = Bytes(self.live.body(offset, max_bytes));
        self.resolve("request.body", vec![json!(offset), json!(max_bytes)], live).0
    }

    fn contains(&mut self, needle: &str, ignore_case: bool) -> bool {
        let live = self.live.contains(needle, ignore_case);
        self.resolve("request.contains", vec![json!(needle), json!(ignore_case)], live)
    }

    fn prefix_hashes(&mut self, block_bytes: u32, max_blocks: u32) -> Vec<u64> {
        let live = self.live.prefix_hashes(block_bytes, max_blocks);
        self.resolve("request.prefix-hashes", vec![json!(block_bytes), json!(max_blocks)], live)
    }

    fn deadline_ms(&mut self) -> Option<u32> {
        let live = self.live.deadline_ms();
        self.resolve("request.deadline-ms", Vec::new(), live)
    }

    fn find_any(&mut self, patterns: &[String], ignore_case: bool) -> Vec<TextMatch> {
        let live = self.live.find_any(patterns, ignore_case);
        self.resolve("request.find-any", vec![json!(patterns), json!(ignore_case)], live)
    }

    fn endpoint_kind(&mut self) -> String {
        let live = self.live.endpoint_kind();
        self.resolve("request.endpoint-kind", Vec::new(), live)
    }

    fn key_group(&mut self) -> Option<String> {
        let live = self.live.key_group();
        self.resolve("request.key-group", Vec::new(), live)
    }

    fn key_name(&mut self) -> Option<String> {
        let live = self.live.key_name();
        self.resolve("request.key-name", Vec::new(), live)
    }

    fn allowance(&mut self) -> Allowance {
        let live = self.live.allowance();
        self.resolve("request.allowance", Vec::new(), live)
    }

    // Every record has the statistics and the descriptions of the lanes, so only the calls are
    // logged, without results.

    fn stats(&mut self) -> Vec<LaneStat> {
        self.resolve("fleet.stats", Vec::new(), ());
        self.live.stats()
    }

    fn stat(&mut self, lane: u32) -> Option<LaneStat> {
        self.resolve("fleet.stat", vec![json!(lane)], ());
        self.live.stat(lane)
    }

    fn candidates(&mut self) -> Vec<u32> {
        let live = self.live.candidates();
        self.resolve("fleet.candidates", Vec::new(), live)
    }

    fn info(&mut self, lane: u32) -> Option<&LaneInfo> {
        self.resolve("fleet.info", vec![json!(lane)], ());
        self.live.info(lane)
    }

    fn find(&mut self, name: &str) -> Option<u32> {
        let live = self.live.find(name);
        self.resolve("fleet.find", vec![json!(name)], live)
    }

    fn with_label(&mut self, key: &str, value: &str) -> Vec<u32> {
        let live = self.live.with_label(key, value);
        self.resolve("fleet.with-label", vec![json!(key), json!(value)], live)
    }

    fn lanes_left(&mut self) -> Vec<u32> {
        let live = self.live.lanes_left();
        self.resolve("fleet.lanes-left", Vec::new(), live)
    }

    fn get(&mut self, key: &str) -> Option<Vec<u8>> {
        let live = self.live.get(key).map(Bytes);
        self.resolve("state.get", vec![json!(key)], live).map(|Bytes(bytes)| bytes)
    }

    fn put(&mut self, key: String, value: &[u8], ttl_ms: u32) -> Result<(), StateError> {
        let args = vec![json!(key), json!(Bytes(value.to_vec())), json!(ttl_ms)];
        let live = Stored::from(self.live.put(key, value, ttl_ms));
        self.resolve("state.put", args, live).into()
    }

    fn delete(&mut self, key: &str) {
        self.live.delete(key);
        self.resolve("state.delete", vec![json!(key)], ());
    }

    fn increment(&mut self, key: String, by: i64, ttl_ms: u32) -> Result<i64, StateError> {
        let args = vec![json!(key), json!(by), json!(ttl_ms)];
        let live = Stored::from(self.live.increment(key, by, ttl_ms));
        self.resolve("state.increment", args, live).into()
    }

    fn charge(&mut self, bytes: u64) {
        self.live.charge(bytes);
    }

    fn scanned_bytes(&self) -> u64 {
        self.live.scanned_bytes()
    }

    fn log(&mut self, level: Level, message: &str) {
        self.live.log(level, message);
    }

    fn log_enabled(&mut self, level: Level) -> bool {
        self.live.log_enabled(level)
    }

    fn add_metric(&mut self, name: &str, value: u64) {
        self.live.add_metric(name, value);
    }

    fn record_metric(&mut self, name: &str, value: u64) {
        self.live.record_metric(name, value);
    }
}
