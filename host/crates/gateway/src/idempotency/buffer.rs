//! The bytes of a response between its execution and its readers.
//!
//! ```text
//!   joinable   all chunks are held, and each reader is somewhere in them
//!   too long   only what some reader has not taken is held, up to a window; who is further behind
//!              than that while another one waits for data is cut off
//! ```

use std::collections::{BTreeMap, VecDeque};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http::{HeaderMap, StatusCode};

use super::memory::{Charge, MAX_JOINABLE};
use crate::headers::EngineLength;

/// Bytes that are held of a response that is too long, for its readers.
const WINDOW: usize = 256 << 10;

/// The head of a response.
#[derive(Debug, Clone)]
pub(super) struct Head {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    /// The length of the body, if it is known from the beginning.
    pub(super) length: Option<u64>,
    pub(super) engine_length: Option<EngineLength>,
}

/// How an execution has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Complete,
    /// The response is not complete, or the request was cancelled.
    Broken,
}

/// What a reader gets next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    Data(Bytes),
    Complete,
    Broken,
}

/// The bytes of a response, and its readers.
#[derive(Debug)]
pub(super) struct Buffer {
    head: Option<Head>,
    chunks: VecDeque<Bytes>,
    /// The number of chunks that are no longer held.
    dropped: usize,
    /// The size of the chunks that are held.
    bytes: usize,
    /// All chunks are held, so that further readers can begin.
    is_joinable: bool,
    end: Option<End>,
    readers: BTreeMap<u64, Position>,
    next_reader: u64,
    charge: Option<Charge>,
}

/// Where a reader is.
#[derive(Debug, Default)]
struct Position {
    /// The number of the chunk that it reads next.
    next: usize,
    waker: Option<Waker>,
}

impl Buffer {
    pub(super) fn new(charge: Charge) -> Self {
        Self {
            head: None,
            chunks: VecDeque::new(),
            dropped: 0,
            bytes: 0,
            is_joinable: true,
            end: None,
            readers: BTreeMap::new(),
            next_reader: 0,
            charge: Some(charge),
        }
    }

    pub(super) fn head(&self) -> Option<&Head> {
        self.head.as_ref()
    }

    pub(super) fn set_head(&mut self, head: Head) {
        self.head = Some(head);
    }

    pub(super) fn end(&self) -> Option<End> {
        self.end
    }

    /// Sets how the execution has ended, unless it had ended before.
    pub(super) fn set_end(&mut self, end: End) {
        self.end.get_or_insert(end);
    }

    /// Ends the execution if it has no reader; returns false if it has one.
    pub(super) fn end_unless_read(&mut self) -> bool {
        if self.readers.is_empty() {
            self.set_end(End::Broken);
        }
        self.readers.is_empty()
    }

    pub(super) fn is_joinable(&self) -> bool {
        self.is_joinable
    }

    /// Returns the whole response; `None` if it is not complete, or not all of it is held.
    pub(super) fn whole(&self) -> Option<(Head, Bytes)> {
        let is_whole = self.is_joinable && self.end == Some(End::Complete);
        let chunks = self.chunks.iter().flat_map(|chunk| chunk.iter().copied());
        self.head.clone().filter(|_| is_whole).map(|head| (head, chunks.collect()))
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn release_charge(&mut self) {
        self.charge = None;
    }

    pub(super) fn has_readers(&self) -> bool {
        !self.readers.is_empty()
    }

    /// Adds a reader from the beginning, and returns its number.
    pub(super) fn add_reader(&mut self) -> u64 {
        let reader = self.next_reader;
        self.next_reader += 1;
        self.readers.insert(reader, Position::default());
        reader
    }

    pub(super) fn remove_reader(&mut self, reader: u64) {
        self.readers.remove(&reader);
    }

    /// Returns the wakers of all readers that wait.
    pub(super) fn take_wakers(&mut self) -> Vec<Waker> {
        self.readers.values_mut().filter_map(|reader| reader.waker.take()).collect()
    }

    /// Adds a chunk, or returns it if readers have to take something before.
    pub(super) fn push(&mut self, data: Bytes) -> Option<Bytes> {
        if data.is_empty() {
            return None;
        }
        if self.is_joinable {
            let is_short = self.bytes + data.len() <= MAX_JOINABLE;
            let charge = self.charge.as_mut();
            self.is_joinable = is_short && charge.is_some_and(|charge| charge.grow(data.len()));
        }
        if !self.is_joinable {
            self.drop_taken();
            // What waits for data must not wait for what is slow.
            while !self.has_space(data.len()) && self.has_starved_reader() {
                self.cut_slowest();
                self.drop_taken();
            }
            if !self.has_space(data.len()) {
                return Some(data);
            }
        }
        self.bytes += data.len();
        self.chunks.push_back(data);
        None
    }

    fn has_space(&self, length: usize) -> bool {
        self.chunks.is_empty() || self.bytes + length <= WINDOW
    }

    /// Drops the chunks that all readers have taken.
    fn drop_taken(&mut self) {
        let Some(first) = self.readers.values().map(|reader| reader.next).min() else { return };
        while self.dropped < first
            && let Some(chunk) = self.chunks.pop_front()
        {
            self.dropped += 1;
            self.bytes -= chunk.len();
        }
        if let Some(charge) = &mut self.charge {
            charge.shrink_to(self.bytes);
        }
    }

    fn has_starved_reader(&self) -> bool {
        let end = self.dropped + self.chunks.len();
        self.readers.values().any(|reader| reader.next == end)
    }

    /// Removes the reader that is furthest behind: its response is aborted.
    fn cut_slowest(&mut self) {
        let slowest = self.readers.iter().min_by_key(|(_, reader)| reader.next);
        let slowest = slowest.map(|(reader, _)| *reader);
        let cut = slowest.and_then(|reader| self.readers.remove(&reader));
        if let Some(waker) = cut.and_then(|reader| reader.waker) {
            waker.wake();
        }
    }

    pub(super) fn poll_head(&mut self, reader: u64, cx: &Context<'_>) -> Poll<Option<Head>> {
        if self.head.is_some() || self.end.is_some() {
            return Poll::Ready(self.head.clone());
        }
        if let Some(position) = self.readers.get_mut(&reader) {
            position.waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }

    pub(super) fn poll_next(&mut self, reader: u64, cx: &Context<'_>) -> Poll<Next> {
        // A reader that was cut off is not one any more.
        let Some(position) = self.readers.get_mut(&reader) else {
            return Poll::Ready(Next::Broken);
        };
        let index = position.next.checked_sub(self.dropped);
        if let Some(data) = index.and_then(|index| self.chunks.get(index)).cloned() {
            position.next += 1;
            return Poll::Ready(Next::Data(data));
        }
        match self.end {
            Some(End::Complete) => Poll::Ready(Next::Complete),
            Some(End::Broken) => Poll::Ready(Next::Broken),
            None => {
                position.waker = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}
