//! The thread that talks to the store.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};

use crate::backoff::Backoff;
use crate::connection::{Connection, StoreError};
use crate::namespace::Namespace;
use crate::presence::Presence;
use crate::replica::{Replica, random};
use crate::settings::Settings;
use crate::status::{Change, StatusCell};

/// Maximum number of items in a round, over all namespaces.
const MAX_ROUND: usize = 4000;
/// Maximum number of entries of a bucket that are read when a namespace is loaded.
const MAX_LOADED: usize = 2000;
/// Without anything to send, the store is asked at this interval whether it is there.
const PING_INTERVAL: Duration = Duration::from_millis(500);

/// The namespaces, by name.
pub(crate) type Namespaces = Arc<Mutex<BTreeMap<String, Namespace>>>;

#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) settings: Settings,
    pub(crate) replica: Arc<Replica>,
    pub(crate) namespaces: Namespaces,
    pub(crate) status: Arc<StatusCell>,
    link: Link,
    round: u64,
    last_contact: Option<Instant>,
    presence: Presence,
}

#[derive(Debug, Default)]
struct Link {
    connection: Option<Connection>,
    backoff: Backoff,
    /// When to connect again.
    retry_at: Option<Instant>,
}

impl Worker {
    pub(crate) fn new(
        settings: Settings,
        replica: Arc<Replica>,
        namespaces: Namespaces,
        status: Arc<StatusCell>,
    ) -> Self {
        let (link, presence) = (Link::default(), Presence::default());
        let last_contact = None;
        Self { settings, replica, namespaces, status, link, round: 0, last_contact, presence }
    }

    /// Makes rounds until `stop` is closed or true, and one more then.
    pub(crate) async fn run(mut self, mut stop: watch::Receiver<bool>) {
        let mut ticks = interval(self.settings.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let step = async {
                ticks.tick().await;
                self.step().await;
            };
            let is_over = tokio::select! {
                () = step => false,
                // Fails if the replicator was dropped, which ends it as well.
                _ = stop.wait_for(|is_over| *is_over) => true,
            };
            if is_over {
                // What an aborted round has sent is sent again, which counts once. A store that is
                // not connected gets no more time.
                if self.link.connection.is_some() {
                    self.step().await;
                }
                return;
            }
        }
    }

    /// Connects if need be, and makes a round.
    async fn step(&mut self) {
        let started = Instant::now();
        if self.link.connection.is_none() {
            if self.link.retry_at.is_some_and(|at| started < at) {
                return;
            }
            match Connection::open(&self.settings).await {
                Ok(connection) => self.link.connection = Some(connection),
                Err(error) => return self.failed(&error),
            }
        }
        match self.round().await {
            Ok(true) => {
                self.last_contact = Some(Instant::now());
                self.link.backoff.reset();
                let change = self.status.succeeded(self.replica.now().mono, started.elapsed());
                if change == Some(Change::Up) {
                    tracing::info!(event = "shared_state_up", "shared state is available");
                }
                self.count_replicas().await;
            }
            Ok(false) => {}
            Err(error) => self.failed(&error),
        }
    }

    /// Makes a round, and returns true if the store has replied. What could not be sent stays.
    async fn round(&mut self) -> Result<bool, StoreError> {
        let Some(connection) = &self.link.connection else { return Ok(false) };
        let namespaces: Vec<Namespace> = self.namespaces.lock().values().cloned().collect();
        let mut loading = Vec::new();
        for namespace in namespaces.iter().filter(|namespace| !namespace.is_loaded()) {
            for base in namespace.bases() {
                namespace.discover(&connection.index(base, MAX_LOADED).await?);
            }
            loading.push(namespace);
        }
        let (mut sources, mut batches, mut left) = (Vec::new(), Vec::new(), MAX_ROUND);
        for namespace in &namespaces {
            for (bucket, batch) in namespace.collect(left) {
                left = left.saturating_sub(batch.items.len());
                sources.push((namespace, bucket));
                batches.push(batch);
            }
        }
        if batches.is_empty() {
            loading.iter().for_each(|namespace| namespace.set_loaded());
            if self.last_contact.is_some_and(|last| last.elapsed() < PING_INTERVAL) {
                return Ok(false);
            }
            return connection.ping().await.map(|()| true);
        }
        self.round += 1;
        let replies = connection.run(&batches, self.replica.id, self.round).await;
        let mut failure: Option<StoreError> = None;
        for (((namespace, bucket), batch), reply) in sources.iter().zip(&batches).zip(replies) {
            match reply {
                Ok(reply) => namespace.apply(*bucket, batch, &reply),
                // The error that asks for another connection is the one that counts.
                Err(error) if failure.as_ref().is_none_or(StoreError::keeps_connection) => {
                    failure = Some(error);
                }
                Err(_) => {}
            }
        }
        if let Some(error) = failure {
            return Err(error);
        }
        loading.iter().for_each(|namespace| namespace.set_loaded());
        Ok(true)
    }

    /// Counts the processes that use the store. Without effect on anything else if that fails: the
    /// next round finds out whether the store is there.
    async fn count_replicas(&mut self) {
        let Some(connection) = &self.link.connection else { return };
        let (prefix, id) = (&self.settings.prefix, self.replica.id);
        match self.presence.announce(connection, prefix, id).await {
            Ok(count) => count.into_iter().for_each(|count| self.status.counted_replicas(count)),
            Err(error) => tracing::debug!(%error, "the store does not count its users"),
        }
    }

    fn failed(&mut self, error: &StoreError) {
        let now = Instant::now();
        if self.link.connection.is_none() || !error.keeps_connection() {
            self.link.connection = None;
            self.link.retry_at = Some(now + self.link.backoff.next(random()));
        }
        if self.status.failed(self.replica.now().mono) == Some(Change::Down) {
            tracing::warn!(
                event = "shared_state_down",
                error = %error,
                "shared state is not available; this host goes on with what it knows"
            );
        }
    }
}
