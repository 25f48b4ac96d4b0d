//! Signals that end `pointsman top`, also while its main thread is blocked: crossterm 0.29 reads
//! the terminal until a key is complete, and a request to the host takes as long as the host.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::thread::Builder;
use std::time::Duration;

use anyhow::{Context as _, Result};
use futures_util::future::select_all;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Time for the main thread to end by itself, and then for the terminal to be restored: one whose
/// output is stopped takes no text.
const GRACE: Duration = Duration::from_millis(500);

/// Whether a signal has asked the program to end.
#[derive(Debug, Clone, Default)]
pub(super) struct StopFlag(Arc<AtomicBool>);

impl StopFlag {
    /// Returns true if the program has to end.
    pub(super) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Sets a flag when a signal asks the program to end. If the program has not ended soon after, it
/// is ended, with the terminal as `restore` leaves it.
///
/// # Errors
/// If signals cannot be received, or the thread that waits for them cannot be spawned.
pub(super) fn watch(restore: fn()) -> Result<StopFlag> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("failed to start the async runtime")?;
    let kinds = [SignalKind::hangup(), SignalKind::interrupt(), SignalKind::terminate()];
    let signals = {
        let _in_runtime = runtime.enter();
        kinds.into_iter().map(signal).collect::<std::io::Result<Vec<Signal>>>()
    };
    let mut signals = signals.context("failed to install signal handlers")?;
    let stop = StopFlag::default();
    let flag = stop.clone();
    let work = move || {
        runtime.block_on(async {
            select_all(signals.iter_mut().map(|signal| Box::pin(signal.recv()))).await;
            flag.0.store(true, Ordering::Relaxed);
            // The process ends meanwhile, unless its main thread is blocked.
            tokio::time::sleep(GRACE).await;
        });
        end(restore);
    };
    Builder::new().name("signals".into()).spawn(work).context("failed to spawn a thread")?;
    Ok(stop)
}

/// Restores the terminal and ends the process.
#[expect(
    clippy::disallowed_methods,
    reason = "the main thread is blocked, and there are no engines"
)]
fn end(restore: fn()) {
    let (done, restored) = channel();
    let work = move || {
        restore();
        done.send(()).ok(); // Fails if the time is over.
    };
    if Builder::new().spawn(work).is_ok() {
        restored.recv_timeout(GRACE).ok(); // Fails if the time is over.
    }
    std::process::exit(0);
}
