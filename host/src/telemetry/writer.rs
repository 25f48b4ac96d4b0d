//! Writes the log in a thread of its own, so that a reader that stalls or goes away holds up
//! nothing. Lines that do not fit into the buffer, or cannot be written, are dropped and counted.

use std::io::{self, ErrorKind, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::metrics::{DropReason, LogMetrics};

/// Maximum size in bytes of the lines that wait to be written.
const MAX_BUFFER: usize = 1 << 20;
/// Size in bytes at which lines do not wait for others any more.
const FULL_BUFFER: usize = MAX_BUFFER / 4;
/// How often the writer looks for lines of its own to write.
const IDLE_INTERVAL: Duration = Duration::from_secs(1);
/// How long lines for a file wait for others, which are written with them: a thread that wakes for
/// each line costs more than the line.
pub(super) const FILE_DELAY: Duration = Duration::from_millis(50);
/// Delay before the next attempt to write to a pipe that is full and was made non-blocking.
const RETRY_DELAY: Duration = Duration::from_millis(20);

/// Accepts lines for the log. Clones share the same thread.
#[derive(Debug, Clone)]
pub(super) struct Sink(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    metrics: LogMetrics,
    /// How long lines wait for others.
    delay: Duration,
}

#[derive(Debug, Default)]
struct State {
    buffer: Vec<u8>,
    /// Takes the place of the buffer while its lines are written.
    spare: Vec<u8>,
    /// Lines that were dropped since the last report.
    dropped: u64,
    is_writing: bool,
    /// Lines do not wait for others.
    is_flushing: bool,
}

impl Sink {
    /// Starts the thread. Lines wait for others for `delay`. It writes the lines of `own_lines`,
    /// which gets the number of lines that were dropped since the last call, in between.
    ///
    /// # Errors
    /// If the thread cannot be spawned.
    pub(super) fn start(
        mut out: impl Write + Send + 'static,
        delay: Duration,
        metrics: LogMetrics,
        mut own_lines: impl FnMut(u64) -> String + Send + 'static,
    ) -> io::Result<Self> {
        let shared = Shared { state: Mutex::default(), changed: Condvar::new(), metrics, delay };
        let sink = Self(Arc::new(shared));
        let shared = Arc::clone(&sink.0);
        std::thread::Builder::new().name("log".into()).spawn(move || {
            // Until the process ends: there is no time at which nothing can be logged any more.
            loop {
                shared.write_next(&mut out, &mut own_lines);
            }
        })?;
        Ok(sink)
    }

    /// Appends a line to the buffer; never blocks.
    pub(super) fn push(&self, line: &str) {
        let mut state = self.0.state.lock();
        if state.buffer.len() + line.len() > MAX_BUFFER {
            state.dropped += 1;
            self.0.metrics.dropped(DropReason::Queue, 1);
            return;
        }
        let before = state.buffer.len();
        state.buffer.extend_from_slice(line.as_bytes());
        if before == 0 || (before < FULL_BUFFER && state.buffer.len() >= FULL_BUFFER) {
            self.0.changed.notify_all();
        }
    }

    /// Waits until all lines are written, or the time is over. Returns true if they are.
    pub(super) fn flush(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let mut state = self.0.state.lock();
        state.is_flushing = true;
        self.0.changed.notify_all();
        let mut is_written = true;
        while is_written && (!state.buffer.is_empty() || state.is_writing) {
            is_written = !self.0.changed.wait_until(&mut state, deadline).timed_out();
        }
        state.is_flushing = false;
        is_written
    }
}

impl Shared {
    /// Waits for lines, and writes them.
    fn write_next(&self, out: &mut impl Write, own_lines: &mut impl FnMut(u64) -> String) {
        let mut state = self.state.lock();
        if state.buffer.is_empty() {
            self.changed.wait_for(&mut state, IDLE_INTERVAL);
        }
        let deadline = Instant::now() + self.delay;
        while !state.buffer.is_empty()
            && state.buffer.len() < FULL_BUFFER
            && !state.is_flushing
            && !self.changed.wait_until(&mut state, deadline).timed_out()
        {}
        let spare = std::mem::take(&mut state.spare);
        let mut lines = std::mem::replace(&mut state.buffer, spare);
        let dropped = std::mem::take(&mut state.dropped);
        state.is_writing = true;
        drop(state);
        let own = own_lines(dropped);
        // Those that fit were sent before those that were dropped.
        lines.extend_from_slice(own.as_bytes());
        let failed = if lines.is_empty() { 0 } else { self.write(out, &lines) };
        let is_lost = failed > 0;
        let mut state = self.state.lock();
        if is_lost {
            // The report on lines that were dropped before is lost too, and is repeated.
            let own = own.lines().count() as u64;
            self.metrics.dropped(DropReason::Write, failed.saturating_sub(own));
            state.dropped += dropped + failed.saturating_sub(own);
        }
        state.is_writing = false;
        lines.clear();
        // The memory of a rare burst is freed.
        lines.shrink_to(2 * FULL_BUFFER);
        state.spare = lines;
        drop(state);
        self.changed.notify_all();
    }

    /// Writes the lines; returns how many of them could not be written.
    fn write(&self, out: &mut impl Write, mut lines: &[u8]) -> u64 {
        while !lines.is_empty() {
            match out.write(lines) {
                Ok(0) => break,
                Ok(count) => lines = &lines[count..],
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    let mut state = self.state.lock();
                    self.changed.wait_for(&mut state, RETRY_DELAY);
                }
                // The reader has gone, or the disk is full.
                Err(_) => break,
            }
        }
        lines.iter().filter(|byte| **byte == b'\n').count() as u64
    }
}
