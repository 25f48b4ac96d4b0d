//! What a guest asked in one call, and what it was told: kept for decisions that are recorded, bounded, and free of cost for
//! all others.

use pointsman_domain::Read;
use serde_json::Value;

/// Most questions of one call that are kept.
pub(crate) const MOST_READS: usize = 256;
/// Bytes that they hold, arguments and answers together.
const MOST_BYTES: usize = 64 << 10;
/// The last entry of a list that is not complete.
pub(crate) const CUT: &str = "cut";

/// The questions of one call, in order.
#[derive(Debug)]
pub(crate) struct HostCallLog {
    reads: Vec<Read>,
    left: usize,
    cut: bool,
}

impl Default for HostCallLog {
    fn default() -> Self {
        Self { reads: Vec::new(), left: MOST_BYTES, cut: false }
    }
}

impl HostCallLog {
    /// Keep one. After the first that does not fit, nothing is kept but a mark that says so: what is there has no gaps.
    pub(crate) fn push(&mut self, call: &str, with: Vec<Value>, gave: Value) {
        if self.cut {
            return;
        }
        let size = with.iter().map(size).sum::<usize>() + size(&gave);
        self.cut = self.reads.len() == MOST_READS || size > self.left;
        if self.cut {
            self.reads.push(Read { call: CUT.to_owned(), with: Vec::new(), gave: Value::Null });
            return;
        }
        self.left -= size;
        self.reads.push(Read { call: call.to_owned(), with, gave });
    }

    pub(crate) fn into_list(self) -> Vec<Read> {
        self.reads
    }
}

/// About as long as its text.
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
    use serde_json::json;

    use super::*;

    #[test]
    fn questions_are_bounded_in_number_and_bytes() {
        let mut many = HostCallLog::default();
        (0..1000).for_each(|number| many.push("fleet.stat", vec![json!(number)], Value::Null));
        let many = many.into_list();
        assert_eq!((many.len(), many[MOST_READS].call.as_str()), (MOST_READS + 1, CUT));

        let mut large = HostCallLog::default();
        large.push("request.text", Vec::new(), json!("x".repeat(MOST_BYTES / 2)));
        large.push("request.text", Vec::new(), json!("y".repeat(MOST_BYTES)));
        large.push("request.model", Vec::new(), json!("small"));
        let calls: Vec<String> = large.into_list().into_iter().map(|read| read.call).collect();
        assert_eq!(calls, ["request.text", CUT], "what comes after a gap is left out, too");
    }
}
