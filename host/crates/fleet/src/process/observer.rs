//! Observes the processes of an engine while it runs.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;

use super::listener;
use super::proc::{Id, TICKS_PER_SECOND};
use super::record::Record;
use super::tracker::{ProcessTracker, Provenance};

/// An engine computes if its processes use at least this part of one processor, in hundredths. The
/// health checks of the host alone cost a server less than one.
const COMPUTING_PERCENT: u128 = 5;

/// An observer of the processes of one engine. Clones share what was seen.
#[derive(Debug, Clone)]
pub(crate) struct ProcessObserver(Arc<Mutex<Observer>>);

#[derive(Debug)]
struct Observer {
    tracker: ProcessTracker,
    /// The processor time of each process at the last reading, and the time of that reading.
    used: HashMap<Id, u64>,
    read: Option<Instant>,
}

impl ProcessObserver {
    pub(super) fn new(record: Record) -> Self {
        // The leader is a child of this process and is reaped by the task that waits for it.
        let tracker = ProcessTracker::new(record, Provenance::Child);
        Self(Arc::new(Mutex::new(Observer { tracker, used: HashMap::new(), read: None })))
    }

    /// Returns true if the processes have used a processor since the last call; `None` at the first
    /// call, and if no process can be read.
    pub(crate) async fn computed(&self) -> Option<bool> {
        self.blocking(Observer::computed).await.flatten()
    }

    /// Returns true if the engine's processes listen on the port of the loopback address, and no
    /// other process does; `None` if that cannot be read, or if no process of the engine is visible
    /// (`/proc` mounted with `hidepid`).
    pub(crate) async fn listens_on(&self, port: u16) -> Option<bool> {
        let listens = move |observer: &mut Observer| {
            let found = observer.tracker.scan();
            let pids: Vec<u32> = found.iter().map(|process| process.id.pid).collect();
            if pids.is_empty() {
                return None;
            }
            listener::is_held_by(&pids, port)
        };
        self.blocking(listens).await.flatten()
    }

    /// Runs a reading of `/proc`, which takes some milliseconds.
    async fn blocking<T: Send + 'static>(
        &self,
        read: impl FnOnce(&mut Observer) -> T + Send + 'static,
    ) -> Option<T> {
        let observer = Arc::clone(&self.0);
        // Fails only if the runtime ends.
        tokio::task::spawn_blocking(move || read(&mut observer.lock())).await.ok()
    }
}

impl Observer {
    fn computed(&mut self) -> Option<bool> {
        let now = Instant::now();
        let found = self.tracker.scan();
        let used: HashMap<Id, u64> =
            found.iter().map(|process| (process.id, process.used)).collect();
        let before = std::mem::replace(&mut self.used, used);
        let elapsed = now.duration_since(self.read.replace(now)?);
        if self.used.is_empty() {
            return None;
        }
        let ticks: u64 = self
            .used
            .iter()
            // A process that is new since then has used all its time since then.
            .map(|(id, used)| used.saturating_sub(before.get(id).copied().unwrap_or(0)))
            .sum();
        let ticks_of_one = elapsed.as_millis() * u128::from(TICKS_PER_SECOND) / 1000;
        Some(u128::from(ticks) * 100 >= ticks_of_one.max(1) * COMPUTING_PERCENT)
    }
}
