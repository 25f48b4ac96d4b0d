//! The format of policy states in the store.
//!
//! ```text
//!   policy-state      name of the policy -> format version of its state, u32
//!   policy-state.1    length of the name (u16), name, key -> kind (u8), expiry (u64), value
//! ```
//!
//! Numbers are big-endian. The expiry is in milliseconds since 1970, and 0 if there is none; the
//! value is an i64 (kind 1) or bytes (kind 0). Each format version has a table of rows of its own:
//! an earlier host does not touch what a later one has written.

use pointsman_policy::{StateEntry, StateValue};

/// The format version that this host writes. Another one needs another table, and a migration of
/// the rows of this one in [`super::StoredStates`].
pub(super) const FORMAT: u32 = 1;

/// The table of the format versions.
pub(super) const VERSIONS: &str = "policy-state";

/// The table of the rows in this format.
pub(super) const ROWS: &str = "policy-state.1";

const BYTES: u8 = 0;
const COUNTER: u8 = 1;

/// Reads a format version; one that is not valid is that of no host.
pub(super) fn version(value: &[u8]) -> u32 {
    value.try_into().map_or(u32::MAX, u32::from_be_bytes)
}

/// Returns the key of a row.
pub(super) fn row(policy: &str, key: &str) -> Vec<u8> {
    [&prefix(policy), key.as_bytes()].concat()
}

/// Returns the range of the rows of a policy. Its beginning is what all of them begin with.
pub(super) fn range(policy: &str) -> (Vec<u8>, Vec<u8>) {
    let from = prefix(policy);
    // No UTF-8 has this byte.
    let to = [from.as_slice(), &[u8::MAX]].concat();
    (from, to)
}

fn prefix(policy: &str) -> Vec<u8> {
    // Names are limited to far less.
    let length = u16::try_from(policy.len()).unwrap_or(u16::MAX);
    [&length.to_be_bytes(), policy.as_bytes()].concat()
}

/// Returns the value of the row of an entry.
pub(super) fn value(entry: &StateEntry) -> Vec<u8> {
    let expires = entry.expires_ms.unwrap_or(0).to_be_bytes();
    match &entry.value {
        StateValue::Bytes(bytes) => [&[BYTES], &expires[..], bytes].concat(),
        StateValue::Counter(count) => [&[COUNTER], &expires[..], &count.to_be_bytes()].concat(),
    }
}

/// Reads a row. `key` is without the name of the policy.
pub(super) fn entry(key: &[u8], value: &[u8]) -> Option<StateEntry> {
    let (kind, rest) = value.split_first()?;
    let (expires, value) = rest.split_first_chunk()?;
    let expires = u64::from_be_bytes(*expires);
    let value = match *kind {
        BYTES => StateValue::Bytes(value.to_vec()),
        COUNTER => StateValue::Counter(i64::from_be_bytes(value.try_into().ok()?)),
        _ => return None,
    };
    let key = String::from_utf8(key.to_vec()).ok()?;
    Some(StateEntry { key, value, expires_ms: Some(expires).filter(|at| *at > 0) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_read_as_they_were_written() {
        let values = [
            StateValue::Counter(i64::MIN),
            StateValue::Counter(-1),
            StateValue::Bytes(Vec::new()),
            StateValue::Bytes((0..=u8::MAX).collect()),
        ];
        for (policy, key) in [("p", ""), ("", "k"), ("p\u{10ffff}", "a\0\u{10ffff}")] {
            for value in &values {
                for expires_ms in [None, Some(1), Some(u64::MAX)] {
                    let (key, value) = (key.to_owned(), value.clone());
                    let written = StateEntry { key, value, expires_ms };
                    let (from, to) = range(policy);
                    let row = row(policy, &written.key);
                    assert!(from <= row && row < to);
                    assert_eq!(entry(&row[from.len()..], &super::value(&written)), Some(written));
                }
            }
        }
    }

    #[test]
    fn invalid_rows_are_refused() {
        let counter = [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7];
        assert!(entry(b"k", &counter).is_some() && entry(&[0xff], &counter).is_none());
        for value in [&[][..], &counter[..9], &counter[..8], &[2, 0, 0, 0, 0, 0, 0, 0, 0]] {
            assert!(entry(b"k", value).is_none(), "{value:?}");
        }
    }
}
