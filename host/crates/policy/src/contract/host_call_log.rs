//! The log of the host calls of one policy call. It is kept for decisions that are recorded, and
//! bounded.

use pointsman_domain::Read;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::contract::journal::{HostCall, Journal};

/// Maximum logged host calls of one policy call.
pub(crate) const MAX_LOGGED_CALLS: usize = 256;
/// Maximum bytes of all logged arguments and results of one policy call.
const MAX_LOG_BYTES: usize = 64 << 10;
/// The function name of the last entry of a log that is incomplete. Part of the record format.
pub(crate) const TRUNCATED: &str = "cut";

/// The host calls of one policy call, in order.
#[derive(Debug)]
pub(crate) struct HostCallLog {
    calls: Vec<Read>,
    bytes_left: usize,
    is_truncated: bool,
}

impl Default for HostCallLog {
    fn default() -> Self {
        Self { calls: Vec::new(), bytes_left: MAX_LOG_BYTES, is_truncated: false }
    }
}

impl HostCallLog {
    /// Appends a host call. After the first one that does not fit, only a truncation mark is
    /// appended, so that the log has no gaps.
    pub(crate) fn push(&mut self, function: &str, args: Vec<Value>, result: Value) {
        if self.is_truncated {
            return;
        }
        let size = args.iter().map(size).sum::<usize>() + size(&result);
        self.is_truncated = self.calls.len() == MAX_LOGGED_CALLS || size > self.bytes_left;
        if self.is_truncated {
            let (call, with, gave) = (TRUNCATED.to_owned(), Vec::new(), Value::Null);
            self.calls.push(Read { call, with, gave });
            return;
        }
        self.bytes_left -= size;
        self.calls.push(Read { call: function.to_owned(), with: args, gave: result });
    }

    pub(crate) fn into_calls(self) -> Vec<Read> {
        self.calls
    }
}

impl Journal for HostCallLog {
    fn resolve<T: Serialize + DeserializeOwned>(&mut self, host_call: HostCall, live: T) -> T {
        self.push(host_call.function, host_call.args, json!(live));
        live
    }
}

/// Returns the approximate length of a value as JSON, in bytes.
fn size(value: &Value) -> usize {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => 8,
        Value::String(text) => text.len() + 2,
        Value::Array(items) => 2 + items.iter().map(size).sum::<usize>(),
        Value::Object(fields) => {
            2 + fields.iter().map(|(key, value)| key.len() + 4 + size(value)).sum::<usize>()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_is_bounded_in_calls_and_bytes() {
        let mut many = HostCallLog::default();
        (0..1000).for_each(|number| many.push("fleet.stat", vec![json!(number)], Value::Null));
        let many = many.into_calls();
        assert_eq!(
            (many.len(), many[MAX_LOGGED_CALLS].call.as_str()),
            (MAX_LOGGED_CALLS + 1, TRUNCATED)
        );

        let mut large = HostCallLog::default();
        large.push("request.text", Vec::new(), json!("x".repeat(MAX_LOG_BYTES / 2)));
        large.push("request.text", Vec::new(), json!("y".repeat(MAX_LOG_BYTES)));
        large.push("request.model", Vec::new(), json!("small"));
        let calls: Vec<String> = large.into_calls().into_iter().map(|read| read.call).collect();
        assert_eq!(calls, ["request.text", TRUNCATED], "calls after a gap are omitted, too");
    }
}
