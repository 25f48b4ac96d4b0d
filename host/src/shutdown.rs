//! Stopping in good order.
//!
//! ```text
//!   first signal   not ready, no new connections; answers that are on their way may finish
//!   drain over     what is left of them ends with an explicit error event
//!   then           whoever still waits is refused, the engines are ended, group by group
//!   second signal  straight to the end
//! ```

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use pointsman_fleet::FleetTasks;
use pointsman_record::Writer;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::reload::Reloader;

/// How long clients may take to read the error event that their streams were cut with.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// How long the last decision records may take.
const LAST_RECORDS: Duration = Duration::from_secs(2);

/// The signals that ask us to stop.
#[derive(Debug)]
pub(crate) struct Signals {
    hangup: Signal,
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    pub(crate) fn listen() -> Result<Self> {
        let listen = |kind| signal(kind).context("signals cannot be listened for");
        Ok(Self {
            hangup: listen(SignalKind::hangup())?,
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
        })
    }

    /// The next signal that asks us to stop, by name. SIGHUP asks to look at the configuration, as of old.
    pub(crate) async fn next(&mut self, reloader: &Reloader) -> &'static str {
        loop {
            tokio::select! {
                _ = self.interrupt.recv() => return "SIGINT",
                _ = self.terminate.recv() => return "SIGTERM",
                _ = self.hangup.recv() => reloader.wake(),
            }
        }
    }
}

/// The parts that have to be stopped.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) reloader: Arc<Reloader>,
    pub(crate) server: JoinSet<()>,
    pub(crate) fleet: FleetTasks,
    pub(crate) stop: CancellationToken,
    pub(crate) cut: CancellationToken,
    pub(crate) drain: Duration,
    /// Writes decision records.
    pub(crate) records: Option<Writer>,
}

/// Serve until a signal comes, then stop.
pub(crate) async fn run(mut running: Running, mut signals: Signals) -> Result<()> {
    tokio::select! {
        ended = running.server.join_next() => {
            running.fleet.shutdown().await;
            return ended.transpose().context("the server failed").and(Err(anyhow::anyhow!("the server ended by itself")));
        }
        name = signals.next(&running.reloader) => {
            tracing::info!("{name}: draining for at most {} s; a second signal ends at once", running.drain.as_secs_f32());
        }
    }
    running.stop.cancel();
    let drained = tokio::select! {
        drained = tokio::time::timeout(running.drain, running.server.join_next()) => drained.is_ok(),
        name = signals.next(&running.reloader) => {
            tracing::warn!("{name} again: ending at once");
            false
        }
    };
    if !drained {
        running.cut.cancel();
        if tokio::time::timeout(LAST_WORDS, running.server.join_next()).await.is_err() {
            running.server.shutdown().await;
        }
    }
    running.fleet.shutdown().await;
    finish_records(running.records).await;
    tracing::info!("stopped");
    Ok(())
}

/// The requests have ended, and with them the last records were handed over.
async fn finish_records(records: Option<Writer>) {
    let Some(records) = records else { return };
    match tokio::task::spawn_blocking(move || records.finish(LAST_RECORDS)).await {
        Ok(true) => {}
        Ok(false) | Err(_) => tracing::warn!("the last decision records may be missing"),
    }
}
