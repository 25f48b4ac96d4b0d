//! Graceful shutdown.
//!
//! ```text
//!   first signal    not ready, no new connections; in-flight responses continue
//!   drain timeout   remaining responses are aborted with an explicit error event
//!   then            queued requests are rejected, engines are stopped group by group
//!   second signal   skips draining
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

/// Time for clients to read the error event that ends an aborted stream.
const ABORT_TIMEOUT: Duration = Duration::from_secs(2);

/// Time to write the decision records that are still queued.
const RECORDS_TIMEOUT: Duration = Duration::from_secs(2);

/// The signals that the host handles.
#[derive(Debug)]
pub(crate) struct Signals {
    hangup: Signal,
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    pub(crate) fn listen() -> Result<Self> {
        let listen = |kind| signal(kind).context("failed to install signal handlers");
        Ok(Self {
            hangup: listen(SignalKind::hangup())?,
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
        })
    }

    /// Waits for a signal that stops a host that is starting, and returns its name. SIGHUP has no
    /// effect, because the files are being read.
    pub(crate) async fn stop(&mut self) -> &'static str {
        loop {
            tokio::select! {
                _ = self.interrupt.recv() => return "SIGINT",
                _ = self.terminate.recv() => return "SIGTERM",
                _ = self.hangup.recv() => {}
            }
        }
    }

    /// Waits for a signal that stops the host, and returns its name. SIGHUP reloads the
    /// configuration.
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

/// The running parts of the host that a shutdown stops.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) reloader: Arc<Reloader>,
    pub(crate) server: JoinSet<()>,
    pub(crate) fleet: FleetTasks,
    pub(crate) stop: CancellationToken,
    pub(crate) abort: CancellationToken,
    pub(crate) drain_timeout: Duration,
    /// Writes decision records.
    pub(crate) records: Option<Writer>,
}

/// Serves until a signal arrives, then shuts down.
pub(crate) async fn run(mut running: Running, mut signals: Signals) -> Result<()> {
    tokio::select! {
        ended = running.server.join_next() => {
            running.fleet.shutdown().await;
            ended.transpose().context("the server failed")?;
            anyhow::bail!("the server ended unexpectedly");
        }
        name = signals.next(&running.reloader) => {
            let timeout_s = running.drain_timeout.as_secs_f32();
            tracing::info!(event = "draining", signal = name, timeout_s, "draining; a second \
                signal skips it");
        }
    }
    running.stop.cancel();
    let drained = tokio::select! {
        drained = tokio::time::timeout(running.drain_timeout, running.server.join_next()) => {
            drained.is_ok()
        }
        name = signals.next(&running.reloader) => {
            tracing::warn!(signal = name, "second signal: skipping the drain");
            false
        }
    };
    if !drained {
        running.abort.cancel();
        if tokio::time::timeout(ABORT_TIMEOUT, running.server.join_next()).await.is_err() {
            running.server.shutdown().await;
        }
    }
    running.fleet.shutdown().await;
    finish_records(running.records).await;
    tracing::info!("stopped");
    Ok(())
}

/// Waits until the queued decision records are written. No new ones arrive: all requests have
/// ended.
async fn finish_records(records: Option<Writer>) {
    let Some(records) = records else { return };
    match tokio::task::spawn_blocking(move || records.finish(RECORDS_TIMEOUT)).await {
        Ok(true) => {}
        Ok(false) | Err(_) => {
            tracing::warn!("decision records may be missing: the writer did not finish in time")
        }
    }
}
