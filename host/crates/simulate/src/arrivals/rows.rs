//! The rows of files of requests, in the order of their times.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::{BufRead as _, Read as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use pointsman_domain::Endpoint;

use super::reader::Source;

/// So many rows are held to be sorted: records are written when requests end, and traces of several machines are merged.
const WINDOW: usize = 1024;

/// One request of a file, as far as it says.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Row {
    /// When, in microseconds.
    pub(super) at: i64,
    pub(super) tenant: Option<Arc<str>>,
    pub(super) model: Option<Arc<str>>,
    pub(super) endpoint: Option<Endpoint>,
    pub(super) headers: Option<Arc<[(String, String)]>>,
    pub(super) prompt: Option<u32>,
    pub(super) output: Option<u32>,
    pub(super) max_tokens: Option<u32>,
    pub(super) stream: Option<bool>,
    pub(super) body: Option<Bytes>,
    pub(super) id: Option<Arc<str>>,
    pub(super) took: Option<(Duration, Duration)>,
}

type Rows = Box<dyn Iterator<Item = Result<Row, String>>>;

/// Rows sorted within a window.
pub(super) struct Sorted {
    rows: Rows,
    held: BinaryHeap<Reverse<Held>>,
    number: u64,
}

/// Of those at the same time, the first one first.
struct Held(i64, u64, Row);

impl PartialEq for Held {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Held {}

impl PartialOrd for Held {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Held {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.0, self.1).cmp(&(other.0, other.1))
    }
}

impl Sorted {
    pub(super) fn new(rows: Rows) -> Self {
        Self { rows, held: BinaryHeap::new(), number: 0 }
    }
}

impl Iterator for Sorted {
    type Item = Result<Row, String>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.held.len() < WINDOW {
            match self.rows.next() {
                None => break,
                Some(Err(what)) => return Some(Err(what)),
                Some(Ok(row)) => self.held.push(Reverse(Held(row.at, self.number, row))),
            }
            self.number += 1;
        }
        self.held.pop().map(|Reverse(held)| Ok(held.2))
    }
}

/// The lines of a text file, each no longer than any line of such a file is.
pub(super) struct Lines(Source);

const LONGEST_LINE: u64 = 64 << 10;

impl Lines {
    pub(super) fn open(file: &Path) -> Self {
        Self(Source::open(file, 0))
    }

    /// What is wrong with the last line.
    pub(super) fn error(&self, what: impl std::fmt::Display) -> String {
        self.0.error(what)
    }

    /// The next line; nothing comes after one that cannot be read.
    pub(super) fn next(&mut self) -> Option<Result<String, String>> {
        self.0.next(|input, number| {
            let mut line = Vec::new();
            let read = input.take(LONGEST_LINE).read_until(b'\n', &mut line);
            *number += 1;
            match read {
                Ok(0) => Ok(None),
                Ok(size) if size as u64 == LONGEST_LINE => {
                    Err("is longer than any line of such a file".to_owned())
                }
                Err(error) => Err(format!("cannot be read: {error}")),
                Ok(_) => String::from_utf8(line).map(Some).map_err(|_| "is not UTF-8".to_owned()),
            }
        })
    }
}
