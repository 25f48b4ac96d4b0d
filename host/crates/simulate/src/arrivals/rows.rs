//! The rows of trace files, sorted by time.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::{BufRead as _, Read as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use pointsman_domain::Endpoint;

use super::error::{TraceError, TraceLineError};
use super::reader::TraceReader;

/// The number of rows that are buffered for sorting. Files are only roughly sorted: records are
/// written when requests end, and traces of several machines are merged.
const SORT_WINDOW: usize = 1024;

/// One request of a trace file, with the values that the file contains.
#[derive(Debug, Default, PartialEq)]
pub(super) struct TraceRow {
    /// The time in microseconds, from any origin.
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
    pub(super) recorded_times: Option<(Duration, Duration)>,
}

type Rows = Box<dyn Iterator<Item = Result<TraceRow, TraceError>>>;

/// An iterator over rows that sorts them within a window.
pub(super) struct SortedRows {
    rows: Rows,
    buffer: BinaryHeap<Reverse<BufferedRow>>,
    sequence: u64,
}

/// A row with its time and its position in the file, by which rows are ordered.
struct BufferedRow(i64, u64, TraceRow);

impl PartialEq for BufferedRow {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for BufferedRow {}

impl PartialOrd for BufferedRow {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for BufferedRow {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.0, self.1).cmp(&(other.0, other.1))
    }
}

impl SortedRows {
    pub(super) fn new(rows: Rows) -> Self {
        Self { rows, buffer: BinaryHeap::new(), sequence: 0 }
    }
}

impl Iterator for SortedRows {
    type Item = Result<TraceRow, TraceError>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.buffer.len() < SORT_WINDOW {
            match self.rows.next() {
                None => break,
                Some(Err(error)) => return Some(Err(error)),
                Some(Ok(row)) => {
                    self.buffer.push(Reverse(BufferedRow(row.at, self.sequence, row)));
                }
            }
            self.sequence += 1;
        }
        self.buffer.pop().map(|Reverse(buffered)| Ok(buffered.2))
    }
}

/// The lines of a text file, with a maximum length.
pub(super) struct Lines(TraceReader);

/// The maximum length of a line in bytes.
const MAX_LINE: u64 = 64 << 10;

impl Lines {
    pub(super) fn open(file: &Path) -> Self {
        Self(TraceReader::open(file, 0))
    }

    /// Returns an error in the last line.
    pub(super) fn error(&self, error: TraceLineError) -> TraceError {
        self.0.error(error)
    }

    /// Returns the next line. The first error ends the file.
    pub(super) fn next(&mut self) -> Option<Result<String, TraceError>> {
        self.0.next(|input, number| {
            let mut line = Vec::new();
            let read = input.take(MAX_LINE).read_until(b'\n', &mut line);
            *number += 1;
            match read? {
                0 => Ok(None),
                size if size as u64 == MAX_LINE => Err(TraceLineError::TooLong { max: MAX_LINE }),
                _ => String::from_utf8(line).map(Some).map_err(|_| TraceLineError::NotUtf8),
            }
        })
    }
}
