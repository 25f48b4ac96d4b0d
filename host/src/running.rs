//! The running parts of the host, and what a stop or a hand-over does with them.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use parking_lot::Mutex;
use pointsman_domain::LaneState;
use pointsman_fleet::{Fleet, FleetTasks};
use pointsman_gateway::Drain;
use pointsman_record::Writer;
use pointsman_store::Store;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::policy_state::StateWriter;
use crate::records::Records;
use crate::reload::Reloader;
use crate::shared_state::SharedStates;
use crate::stop_limits::{
    ABORT_TIMEOUT, CLOSE_TIMEOUT, RECORDS_TIMEOUT, STORE_TIMEOUT, StopLimits,
};
use crate::usage::UsageWriter;

/// The signals that the host handles.
#[derive(Debug)]
pub(crate) struct Signals {
    hangup: Signal,
    interrupt: Signal,
    terminate: Signal,
    upgrade: Signal,
}

/// What a signal wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// The host stops. With the name of the signal.
    Stop(&'static str),
    /// The host is replaced.
    Upgrade,
}

impl Signals {
    pub(crate) fn listen() -> Result<Self> {
        let listen = |kind| signal(kind).context("failed to install signal handlers");
        Ok(Self {
            hangup: listen(SignalKind::hangup())?,
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            upgrade: listen(SignalKind::user_defined2())?,
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
                _ = self.upgrade.recv() => {}
            }
        }
    }

    /// Waits for a signal that stops or replaces the host. SIGHUP reloads the configuration.
    pub(crate) async fn next(&mut self, reloader: &Reloader) -> Wanted {
        loop {
            tokio::select! {
                _ = self.interrupt.recv() => return Wanted::Stop("SIGINT"),
                _ = self.terminate.recv() => return Wanted::Stop("SIGTERM"),
                _ = self.hangup.recv() => reloader.wake(),
                _ = self.upgrade.recv() => return Wanted::Upgrade,
            }
        }
    }
}

/// The running parts of the host that a shutdown stops.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) reloader: Arc<Reloader>,
    pub(crate) server: JoinSet<()>,
    /// Serves the host before this one, until that has finished its requests.
    pub(crate) predecessors: JoinSet<()>,
    pub(crate) fleet: FleetTasks,
    pub(crate) lanes: Fleet,
    pub(crate) drain: Drain,
    /// How long the shutdown may take, which a reload can change.
    pub(crate) limits: Arc<Mutex<StopLimits>>,
    /// Writes decision records.
    pub(crate) records: Records,
    /// Writes usage and budgets.
    pub(crate) usage: UsageWriter,
    /// Writes the states of policies.
    pub(crate) states: Option<StateWriter>,
    /// What is shared with other hosts.
    pub(crate) shared: Option<SharedStates>,
    /// What outlives the restart.
    pub(crate) store: Store,
}

impl Running {
    /// Returns the names of the lanes in such a state.
    pub(crate) fn lanes_that(&self, is_such: impl Fn(LaneState) -> bool) -> Vec<String> {
        let view = self.lanes.view();
        let such = view.stats().filter(|stat| is_such(stat.state));
        such.map(|stat| view.topology.name(stat.id).to_owned()).collect()
    }

    /// Writes everything and closes the store, for the next host.
    pub(crate) async fn release_store(&self) {
        let (usage, states, store) = (&self.usage, self.states.as_ref(), &self.store);
        tokio::task::block_in_place(|| {
            usage.pause();
            states.inspect(|states| states.pause());
            store.release();
        });
    }

    /// Takes engines and store back from a successor that has failed.
    pub(crate) async fn take_back(&self) {
        let (usage, states, store) = (&self.usage, self.states.as_ref(), &self.store);
        let state_dir = self.fleet.state_dir();
        tokio::task::block_in_place(|| {
            if let Err(error) = state_dir.take_back() {
                tracing::error!(%error, "failed to take the engines back from the next host");
            }
            store.take_back();
            usage.resume();
            states.inspect(|states| states.resume());
        });
    }

    /// Finishes the requests of a host that has handed over, until `stop` or a signal says
    /// otherwise, or the time for them is over.
    pub(crate) async fn finish_retired(mut self, mut signals: Signals, stop: &Arc<Notify>) {
        let drain_timeout = self.limits.lock().drain_timeout;
        self.reloader.stop();
        if let Some(states) = &self.states {
            states.abandon();
        }
        let finish = async {
            // Ends with the last connection.
            self.server.join_next().await;
            // The host before this one, and what has no connection.
            while self.predecessors.join_next().await.is_some() {}
            self.drain.begin();
            self.drain.drained().await;
        };
        // Whether it has finished, and how much time is left for what is in flight.
        let (is_finished, left) = tokio::select! {
            finished = tokio::time::timeout(drain_timeout, finish) => {
                (finished.is_ok(), Duration::ZERO)
            }
            () = stop.notified() => (false, drain_timeout),
            _ = signals.stop() => (false, drain_timeout),
        };
        self.drain.begin();
        if !is_finished {
            let drained = tokio::time::timeout(left, self.drain.drained());
            let drained = tokio::select! {
                drained = drained => drained.is_ok(),
                _ = signals.stop() => false,
            };
            if !drained {
                self.drain.abort();
                tokio::time::timeout(ABORT_TIMEOUT, self.drain.drained()).await.ok();
            }
        }
        self.drain.close();
        if tokio::time::timeout(CLOSE_TIMEOUT, self.server.join_next()).await.is_err() {
            self.server.shutdown().await;
        }
        finish_records(self.records.take_writer()).await;
        finish_store(self.usage, self.states, self.shared, self.store).await;
    }
}

/// Waits until the usage, the states of policies and what is queued for the store are written. All
/// requests have ended.
pub(crate) async fn finish_store(
    usage: UsageWriter,
    states: Option<StateWriter>,
    shared: Option<SharedStates>,
    store: Store,
) {
    let flush = tokio::task::spawn_blocking(move || {
        usage.finish();
        if let Some(states) = states {
            states.finish();
        }
        store.flush();
        // Last, because the shared store may not reply.
        if let Some(shared) = shared {
            shared.finish();
        }
    });
    if tokio::time::timeout(STORE_TIMEOUT, flush).await.is_err() {
        tracing::warn!(
            "responses, usage and policy states may be missing: the store did not finish in time"
        );
    }
}

/// Waits until the queued decision records are written. No new ones arrive: all requests have
/// ended.
pub(crate) async fn finish_records(records: Option<Writer>) {
    let Some(records) = records else { return };
    match tokio::task::spawn_blocking(move || records.finish(RECORDS_TIMEOUT)).await {
        Ok(true) => {}
        Ok(false) | Err(_) => {
            tracing::warn!("decision records may be missing: the writer did not finish in time")
        }
    }
}
