//! Graceful shutdown.
//!
//! ```text
//!   first signal    not ready; new requests get 503, in-flight responses continue
//!   drain timeout   remaining responses are aborted with an explicit error event
//!   then            queued requests are rejected, engines are stopped group by group; health
//!                   checks are still answered
//!   at the end      the listeners close
//!   second signal   skips draining; engines get a few seconds, then the keeper kills them
//! ```

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use parking_lot::Mutex;
use pointsman_fleet::FleetTasks;
use pointsman_gateway::Drain;
use pointsman_record::Writer;
use pointsman_store::Store;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;

use crate::policy_state::StateWriter;
use crate::records::Records;
use crate::reload::Reloader;
use crate::service_manager;
use crate::stop_limits::{
    ABORT_TIMEOUT, CLOSE_TIMEOUT, RECORDS_TIMEOUT, STORE_TIMEOUT, StopLimits,
};
use crate::usage::UsageWriter;

/// Time for engines to stop after a second signal.
const FORCED_STOP_TIMEOUT: Duration = Duration::from_secs(3);

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
    pub(crate) drain: Drain,
    /// How long the shutdown may take, which a reload can change.
    pub(crate) limits: Arc<Mutex<StopLimits>>,
    /// Writes decision records.
    pub(crate) records: Records,
    /// Writes usage and budgets.
    pub(crate) usage: UsageWriter,
    /// Writes the states of policies.
    pub(crate) states: Option<StateWriter>,
    /// What outlives the restart.
    pub(crate) store: Store,
}

/// Serves until a signal arrives, then shuts down.
pub(crate) async fn run(mut running: Running, mut signals: Signals) -> Result<()> {
    let limits;
    tokio::select! {
        ended = running.server.join_next() => {
            running.fleet.shutdown().await;
            ended.transpose().context("the server failed")?;
            anyhow::bail!("the server ended unexpectedly");
        }
        name = signals.next(&running.reloader) => {
            limits = *running.limits.lock();
            let timeout_s = limits.drain_timeout.as_secs_f32();
            let limit_s = limits.limit.as_secs_f32();
            tracing::info!(event = "draining", signal = name, timeout_s, limit_s, "draining; a \
                second signal skips it");
        }
    }
    service_manager::stopping(limits.limit);
    running.drain.begin();
    running.fleet.announce_stop();
    let (drained, is_forced) = tokio::select! {
        drained = tokio::time::timeout(limits.drain_timeout, running.drain.drained()) => {
            (drained.is_ok(), false)
        }
        name = signals.next(&running.reloader) => {
            tracing::warn!(signal = name, "second signal: skipping the drain");
            (false, true)
        }
    };
    if !drained {
        running.drain.abort();
        tokio::time::timeout(ABORT_TIMEOUT, running.drain.drained()).await.ok();
        running.drain.cut();
    }
    let forced = async {
        if !is_forced {
            let name = signals.next(&running.reloader).await;
            tracing::warn!(signal = name, "second signal: not waiting for the engines");
        }
        tokio::time::sleep(FORCED_STOP_TIMEOUT).await;
    };
    tokio::select! {
        () = running.fleet.shutdown() => {}
        () = forced => tracing::warn!("engines are left to the keeper, which kills them"),
    }
    running.drain.close();
    running.reloader.stop();
    if tokio::time::timeout(CLOSE_TIMEOUT, running.server.join_next()).await.is_err() {
        running.server.shutdown().await;
    }
    finish_records(running.records.take_writer()).await;
    finish_store(running.usage, running.states, running.store).await;
    tracing::info!("stopped");
    Ok(())
}

/// Waits until the usage, the states of policies and what is queued for the store are written. All
/// requests have ended.
async fn finish_store(usage: UsageWriter, states: Option<StateWriter>, store: Store) {
    let flush = tokio::task::spawn_blocking(move || {
        usage.finish();
        if let Some(states) = states {
            states.finish();
        }
        store.flush();
    });
    if tokio::time::timeout(STORE_TIMEOUT, flush).await.is_err() {
        tracing::warn!(
            "responses, usage and policy states may be missing: the store did not finish in time"
        );
    }
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
