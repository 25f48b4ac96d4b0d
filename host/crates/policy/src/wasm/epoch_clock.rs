//! The epoch clock, which interrupts calls at their deadlines.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use wasmtime::Engine;

/// The interval of the clock while calls run, which is the resolution of deadlines.
pub(crate) const TICK: Duration = Duration::from_millis(1);
/// Ticks between two looks at whether calls run. Most calls take microseconds: a clock that ticks
/// while none runs takes 1 µs of CPU time for each request of a busy host, and 2 % of a core
/// always.
const IDLE_TICKS: u32 = 4;

/// The number of calls that run in an engine.
#[derive(Debug, Clone, Default)]
pub(crate) struct RunningCalls(Arc<AtomicUsize>);

impl RunningCalls {
    /// Notes that a call begins. It must be followed by [`Self::end`].
    pub(crate) fn begin(&self) {
        // Nothing else depends on the order: the clock may see it later, at its next look.
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// Notes that a call has ended.
    pub(crate) fn end(&self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }

    /// Returns the number.
    pub(crate) fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

/// The thread that increments the epoch of an engine while calls run. It is not a task, because it
/// must run while all worker threads are busy in guests.
///
/// The epoch may be ahead of the time by [`IDLE_TICKS`], and a call is then looked at early, which
/// does not end it. A call with a deadline below that is looked at late, by as much.
#[derive(Debug)]
pub(crate) struct EpochClock {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl EpochClock {
    /// Starts the thread.
    ///
    /// # Errors
    /// If it cannot be spawned.
    pub(crate) fn start(engine: &Engine, running: RunningCalls) -> std::io::Result<Self> {
        let engine = engine.weak();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new().name("policy-epoch".into()).spawn(move || {
            let mut passed = 1;
            while !stopped.load(Ordering::Relaxed)
                && let Some(engine) = engine.upgrade()
            {
                if running.count() == 0 {
                    passed = IDLE_TICKS;
                } else {
                    (0..passed).for_each(|_| engine.increment_epoch());
                    passed = 1;
                }
                drop(engine);
                #[expect(clippy::disallowed_methods, reason = "a clock")]
                std::thread::park_timeout(TICK * passed);
            }
        })?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for EpochClock {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // An error would mean that the thread panicked, which no longer matters here.
            thread.join().ok();
        }
    }
}
