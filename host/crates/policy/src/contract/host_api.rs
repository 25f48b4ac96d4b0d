//! The host calls that a guest can make, independent of the version of the contract. Linkers bind
//! the functions of a contract to this interface, so they do not know whether a call is answered
//! live, recorded or replayed:
//!
//! ```text
//!   guest ──linker──> dyn HostApi ─┬─ LiveApi                  answers from the inputs of the call
//!                                  ├─ JournalApi<HostCallLog>  … and logs the results
//!                                  └─ JournalApi<ReplayLog>    answers from a record
//! ```

use pointsman_domain::{Allowance, FieldValue, LaneInfo, LaneStat, MessageInfo, TextMatch};

use crate::contract::shared::Level;
use crate::contract::state::entry::StateError;

/// The functions that a guest can call. Between calls of hooks, all inputs are empty.
pub(crate) trait HostApi {
    /// Returns the id of the request.
    fn id(&mut self) -> String;
    /// Returns the model that the request names.
    fn model(&mut self) -> String;
    /// Returns the tenant of the request.
    fn tenant(&mut self) -> Option<String>;
    /// Returns the value of a header.
    fn header(&mut self, name: &str) -> Option<String>;
    /// Returns a field of the body.
    fn field(&mut self, pointer: &str, max_bytes: u32) -> FieldValue;
    /// Describes the messages of the request.
    fn messages(&mut self) -> Vec<MessageInfo>;
    /// Returns a part of the text of a message.
    fn text(&mut self, index: u32, offset: u64, max_bytes: u32) -> String;
    /// Returns a part of the body.
    fn body(&mut self, offset: u64, max_bytes: u32) -> Vec<u8>;
    /// Returns whether the text of the request contains `needle`.
    fn contains(&mut self, needle: &str, ignore_case: bool) -> bool;
    /// Returns hashes of the beginnings of the prompt.
    fn prefix_hashes(&mut self, block_bytes: u32, max_blocks: u32) -> Vec<u64>;
    /// Returns the milliseconds until the host gives up on the request.
    fn deadline_ms(&mut self) -> Option<u32>;
    /// Returns the first occurrence of each pattern in the texts of the request.
    fn find_any(&mut self, patterns: &[String], ignore_case: bool) -> Vec<TextMatch>;
    /// Returns the name of the endpoint.
    fn endpoint_kind(&mut self) -> String;
    /// Returns the group of the key.
    fn key_group(&mut self) -> Option<String>;
    /// Returns the name of the key.
    fn key_name(&mut self) -> Option<String>;
    /// Returns what the limits of the key leave.
    fn allowance(&mut self) -> Allowance;

    /// Returns the statistics of all lanes.
    fn stats(&mut self) -> Vec<LaneStat>;
    /// Returns the statistics of a lane.
    fn stat(&mut self, lane: u32) -> Option<LaneStat>;
    /// Returns the candidate lanes of the request.
    fn candidates(&mut self) -> Vec<u32>;
    /// Returns the description of a lane.
    fn info(&mut self, lane: u32) -> Option<&LaneInfo>;
    /// Returns the lane with this name.
    fn find(&mut self, name: &str) -> Option<u32>;
    /// Returns the lanes with this label.
    fn with_label(&mut self, key: &str, value: &str) -> Vec<u32>;
    /// Returns the candidate lanes that earlier filters leave.
    fn lanes_left(&mut self) -> Vec<u32>;

    /// Returns a value of the state.
    fn get(&mut self, key: &str) -> Option<Vec<u8>>;
    /// Stores a value in the state.
    fn put(&mut self, key: String, value: &[u8], ttl_ms: u32) -> Result<(), StateError>;
    /// Removes a value from the state.
    fn delete(&mut self, key: &str);
    /// Increments a counter of the state.
    fn increment(&mut self, key: String, by: i64, ttl_ms: u32) -> Result<i64, StateError>;

    /// Counts bytes that host calls examine, see [`MAX_SCANNED_BYTES`](crate::limits).
    fn charge(&mut self, bytes: u64);
    /// Returns the bytes that host calls of this policy call have examined.
    fn scanned_bytes(&self) -> u64;

    /// Logs a line.
    fn log(&mut self, level: Level, message: &str);
    /// Returns whether a line of this severity would be logged.
    fn log_enabled(&mut self, level: Level) -> bool;
    /// Adds to a custom counter.
    fn add_metric(&mut self, name: &str, value: u64);
    /// Records a custom value.
    fn record_metric(&mut self, name: &str, value: u64);
}
