//! An index into the containers of a request body, so that reading all fields of a large body one
//! by one takes time in proportion to the body, and not to its square.
//!
//! A container is scanned when a field in it is read for the first time, and the positions of its
//! children are kept. Small containers are scanned every time.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::scan::{self, Child, Children};

/// Containers up to this length in bytes are not indexed.
const SMALL: usize = 256;
/// Minimum distance in bytes of two elements whose positions are kept. Bounds the index of an array
/// to a quarter of the array.
const MIN_DISTANCE: usize = 32;
/// Elements of an array from this position on are not found: the array has so many of them that it
/// is a list of token ids. Bounds the time of a read.
const MAX_ELEMENTS: usize = 1_000_000;
/// Values of at least this length have their end kept.
const LONG: usize = 4 << 10;

/// The index of one body. Offsets are those of the body.
#[derive(Debug, Default)]
pub(crate) struct Index {
    known: Mutex<Known>,
    /// Keyed at random, so that a client cannot choose keys with equal hashes.
    hasher: RandomState,
}

#[derive(Debug, Default)]
struct Known {
    /// Indexed containers by their start.
    containers: HashMap<usize, Arc<Positions>>,
    /// Ends of long values by their start.
    ends: HashMap<usize, usize>,
}

/// The positions of the children of one container, relative to its start.
#[derive(Debug)]
enum Positions {
    /// Number and position of some elements, in order.
    Array(Vec<(u32, u32)>),
    /// Hash and position of all keys, sorted.
    Object(Vec<(u32, u32)>),
}

impl Index {
    /// Returns where the value at `tokens` is in `json`, which is the same at each call.
    pub(crate) fn find(&self, json: &[u8], tokens: &[String]) -> Option<Range<usize>> {
        let mut start = json.len() - json.trim_ascii_start().len();
        for token in tokens {
            start = self.child(json, start, token)?;
        }
        Some(start..self.value_end(json, start))
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // What is known is valid even if another thread panicked.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn value_end(&self, json: &[u8], start: usize) -> usize {
        if let Some(end) = self.known().ends.get(&start) {
            return *end;
        }
        let end = scan::value_end(json, start);
        if end - start >= LONG {
            self.known().ends.insert(start, end);
        }
        end
    }

    /// Returns the start of the child that `token` names.
    fn child(&self, json: &[u8], start: usize, token: &str) -> Option<usize> {
        let window = json.get(..json.len().min(start + SMALL))?;
        let is_small = scan::container_end(window, start).is_some();
        // Positions are 32 bits wide.
        if is_small || json.len() > u32::MAX as usize {
            return scan_child(json, start, token);
        }
        match &*self.positions(json, start)? {
            Positions::Array(elements) => {
                let number: usize = token.parse().ok()?;
                if number >= MAX_ELEMENTS {
                    return None;
                }
                let after = elements.partition_point(|(at, _)| *at as usize <= number);
                let (at, position) = elements.get(after.checked_sub(1)?)?;
                let mut from = Children::from_element(json, start + *position as usize);
                from.nth(number - *at as usize).map(|child| child.start)
            }
            Positions::Object(keys) => {
                let hash = self.hash(token);
                let begin = keys.partition_point(|(other, _)| *other < hash);
                let end = keys.partition_point(|(other, _)| *other <= hash);
                // Of duplicate members the last one counts, as in most parsers.
                keys[begin..end].iter().rev().find_map(|(_, position)| {
                    let child = Children::member(json, start + *position as usize)?;
                    (scan::key(&json[child.key.clone()]) == token).then_some(child.start)
                })
            }
        }
    }

    /// Returns the positions of a container's children, which are found once.
    fn positions(&self, json: &[u8], start: usize) -> Option<Arc<Positions>> {
        let mut known = self.known();
        if let Some(positions) = known.containers.get(&start) {
            return Some(Arc::clone(positions));
        }
        // Under the lock, so that two threads do not scan the same container.
        let positions = Arc::new(self.scan(json, start)?);
        known.containers.insert(start, Arc::clone(&positions));
        Some(positions)
    }

    fn scan(&self, json: &[u8], start: usize) -> Option<Positions> {
        // Saturates never: `child` has checked that 32 bits suffice.
        let relative = |at: usize| u32::try_from(at - start).unwrap_or(u32::MAX);
        let children = Children::new(json, start)?;
        if json.get(start) == Some(&b'[') {
            let mut elements: Vec<(u32, u32)> = Vec::new();
            for (number, child) in (0..).zip(children.take(MAX_ELEMENTS)) {
                let position = relative(child.start);
                let last = elements.last().map(|(_, last)| *last);
                if last.is_none_or(|last| (position - last) as usize >= MIN_DISTANCE) {
                    elements.push((number, position));
                }
            }
            return Some(Positions::Array(elements));
        }
        let entry = |child: Child| {
            let hash = self.hash(&scan::key(&json[child.key.clone()]));
            (hash, relative(child.key.start))
        };
        let mut keys: Vec<(u32, u32)> = children.map(entry).collect();
        keys.sort_unstable();
        Some(Positions::Object(keys))
    }

    /// Returns the lower half of the key's hash.
    fn hash(&self, key: &str) -> u32 {
        self.hasher.hash_one(key) as u32
    }
}

/// Returns the start of the child that `token` names, without an index.
fn scan_child(json: &[u8], start: usize, token: &str) -> Option<usize> {
    let mut children = Children::new(json, start)?;
    if json.get(start) == Some(&b'[') {
        return children.nth(token.parse().ok()?).map(|child| child.start);
    }
    // Of duplicate members the last one counts, as in most parsers.
    children
        .filter(|child| scan::key(&json[child.key.clone()]) == token)
        .last()
        .map(|child| child.start)
}

/// Returns the JSON text of the value at `tokens`, without an index.
pub(crate) fn find<'a>(json: &'a str, tokens: &[String]) -> Option<&'a str> {
    let bytes = json.as_bytes();
    let start = bytes.len() - bytes.trim_ascii_start().len();
    let start = tokens.iter().try_fold(start, |start, token| scan_child(bytes, start, token))?;
    json.get(start..scan::value_end(bytes, start))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::json::{tokens, work};

    fn read(index: &Index, json: &str, pointer: &str) -> Option<String> {
        let found = index.find(json.as_bytes(), &tokens(pointer).unwrap())?;
        Some(json[found].to_owned())
    }

    #[test]
    fn fields_of_large_containers_are_found() {
        let messages: Vec<Value> =
            (0..100).map(|number| json!({"role": "user", "content": number})).collect();
        let many: serde_json::Map<String, Value> =
            (0..100).map(|number| (format!("k{number}\""), number.into())).collect();
        let json = format!(
            " {{\"a\":1,\"messages\":{},\"many\":{},\"a\":2}}",
            Value::from(messages),
            Value::from(many)
        );
        let index = Index::default();
        for _ in 0..2 {
            for (pointer, expected) in [
                ("/messages/0/content", Some("0")),
                ("/messages/99", Some(r#"{"content":99,"role":"user"}"#)),
                ("/messages/99/role", Some("\"user\"")),
                ("/messages/100", None),
                ("/messages/x", None),
                ("/many/k57\"", Some("57")),
                ("/many/none", None),
                ("/a", Some("2")),
                ("/a/b", None),
                ("/none", None),
            ] {
                let expected = expected.map(str::len);
                let found = read(&index, &json, pointer).map(|found| found.len());
                assert_eq!(found, expected, "{pointer}");
            }
        }
    }

    /// Reads each message and its content; returns the bytes that this scans.
    fn work_of_reading(count: usize) -> usize {
        let messages: Vec<Value> =
            (0..count).map(|_| json!({"role": "user", "content": "four"})).collect();
        let json = json!({"model": "m", "messages": messages}).to_string();
        work::counted(|| {
            let index = Index::default();
            for number in 0..count {
                for pointer in
                    [format!("/messages/{number}"), format!("/messages/{number}/content")]
                {
                    assert!(read(&index, &json, &pointer).is_some());
                }
            }
        })
    }

    #[test]
    fn reading_all_messages_takes_linear_time() {
        let (few, many) = (work_of_reading(2_000), work_of_reading(20_000));
        assert!(many <= 15 * few, "{few} bytes for 2,000 messages, {many} for 20,000");
    }

    proptest! {
        #[test]
        fn index_agrees_with_a_scan(
            children in prop::collection::vec(("[ab\"é]{0,2}", "[a\\\\\"]{0,40}"), 0..40),
            key in "[ab\"é]{0,2}",
            number in 0_usize..40,
        ) {
            let texts: Vec<Value> =
                children.iter().map(|(_, text)| Value::from(text.as_str())).collect();
            let members: Vec<String> = children
                .iter()
                .map(|(key, text)| format!("{}:{}", Value::from(&**key), Value::from(&**text)))
                .collect();
            let (list, object) = (Value::from(texts), members.join(","));
            let json = format!("{{\"list\":{list},\"o\":{{{object}}}}}");
            let (index, bytes) = (Index::default(), json.as_bytes());
            let end = |start| scan::value_end(bytes, start);
            for (parent, token) in [("list", number.to_string()), ("o", key)] {
                let scanned = scan_child(bytes, scan_child(bytes, 0, parent).unwrap(), &token);
                let scanned = scanned.map(|start| start..end(start));
                prop_assert_eq!(index.find(bytes, &[parent.to_owned(), token]), scanned);
            }
        }
    }
}
