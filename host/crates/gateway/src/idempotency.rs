//! Requests with an `Idempotency-Key`: a retry joins the original, which runs once.
//!
//! ```text
//!   first request with the key ──> execution ──bytes──> reader of the first client
//!   retry, same body ────────────────┘   └────bytes──> reader of the retry, from the beginning
//!
//!   execution ends ──> kept for a while, and replayed   (unless a retry may cure its error)
//!   no reader left ──> goes on for the grace time, then it is cancelled as without a key
//! ```
//!
//! SDKs send a key with every request and retry on their own after a lost connection, so memory is
//! bounded. A response that is longer than they allow is passed on to its
//! readers, but it can no longer be joined.

use std::sync::Arc;
use std::time::Duration;

use axum::response::Response;
use http::{HeaderMap, HeaderName};
use pointsman_access::Identity;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::claim::{Claim, Claimed};
use self::execution::Execution;
pub(crate) use self::execution::Failed;
pub(crate) use self::fingerprint::Fingerprint;
use self::reader::Reader;
use self::table::{Found, OnEnd, Table};
use crate::error::RouteError;
use crate::settings::IdempotencySettings;
use crate::shared_store::SharedHosts;

mod buffer;
mod claim;
#[cfg(test)]
mod claim_tests;
mod execution;
mod fingerprint;
mod memory;
mod reader;
mod table;
#[cfg(test)]
mod tests;

/// The header with the key.
pub(crate) const HEADER: HeaderName = HeaderName::from_static("idempotency-key");
/// Maximum length of a key in bytes.
const MAX_IDEMPOTENCY_KEY: usize = 255;

/// The requests with an idempotency key. A clone shares them.
#[derive(Clone)]
pub(crate) struct Idempotency {
    table: Arc<Table>,
    tasks: TaskTracker,
    grace: Duration,
    keep: Duration,
    /// Cancelled when the host stops: nothing goes on without a client.
    stop: CancellationToken,
    /// Other hosts that get requests with the same keys; `None` if there are none.
    shared: Option<SharedHosts>,
}

/// What follows for a request with a key.
pub(crate) enum Begun {
    /// The request is the first one. It has to be executed with [`Idempotency::run`].
    First(First),
    /// It is a retry, and gets this response.
    Joined(Joined),
    /// It has to be executed like a request without a key: there are too many with one, or its
    /// client may not use any more what serves the original.
    Untracked,
}

/// The execution of a request that is the first one with its key.
pub(crate) struct First {
    execution: Arc<Execution>,
    reader: Reader,
    fingerprint: Fingerprint,
    /// Is to be set if the response fails after its head.
    pub(crate) failed: Failed,
}

/// A retry of a request that runs, or whose response is kept.
pub(crate) struct Joined(Reader);

impl Joined {
    /// Returns the response, once it has begun.
    pub(crate) async fn response(self) -> Response {
        self.0.response(true).await
    }
}

impl Idempotency {
    pub(crate) fn new(settings: &IdempotencySettings, stop: CancellationToken) -> Self {
        let table = Arc::new(Table::new(settings));
        let IdempotencySettings { grace, keep, .. } = *settings;
        Self { table, tasks: TaskTracker::new(), grace, keep, stop, shared: None }
    }

    /// Returns the same requests, of which other hosts may have the first one.
    pub(crate) fn shared_with(self, shared: Option<SharedHosts>) -> Self {
        Self { shared, ..self }
    }

    /// Returns the same requests with changed settings.
    pub(crate) fn reconfigured(&self, settings: &IdempotencySettings) -> Self {
        self.table.reconfigure(settings);
        Self {
            table: Arc::clone(&self.table),
            tasks: self.tasks.clone(),
            grace: settings.grace,
            keep: settings.keep,
            stop: self.stop.clone(),
            shared: self.shared.clone(),
        }
    }

    /// Returns the key of a request; `None` if it has none, or keys are not used for it.
    ///
    /// # Errors
    /// If the key is not valid.
    pub(crate) fn key<'a>(&self, headers: &'a HeaderMap) -> Result<Option<&'a str>, RouteError> {
        let mut values = headers.get_all(HEADER).iter();
        let Some(value) = values.next().filter(|_| !self.table.is_disabled()) else {
            return Ok(None);
        };
        let key = std::str::from_utf8(value.as_bytes()).ok().filter(|key| {
            (1..=MAX_IDEMPOTENCY_KEY).contains(&key.len())
                && key.bytes().all(|byte| byte.is_ascii_graphic())
        });
        match (key, values.next()) {
            (Some(key), None) => Ok(Some(key)),
            (None, _) | (_, Some(_)) => Err(RouteError::IdempotencyKey),
        }
    }

    /// Finds the original of a request, or begins one.
    ///
    /// # Errors
    /// If the key was used for another request, or its original cannot be joined.
    pub(crate) fn begin(
        &self,
        fingerprint: Fingerprint,
        identity: &Arc<Identity>,
    ) -> Result<Begun, RouteError> {
        Ok(match self.table.find_or_start(fingerprint, identity)? {
            Found::Joined(reader) => Begun::Joined(Joined(reader)),
            Found::Started(execution, reader) => {
                let failed = execution.failed();
                Begun::First(First { execution, reader, fingerprint, failed })
            }
            Found::Untracked => Begun::Untracked,
        })
    }

    /// Executes the first request with a key, and returns the response to its client. What `work`
    /// returns goes on without the client for the grace time. It is given the error with which the
    /// request ends if another host executes it.
    pub(crate) async fn run<W>(
        &self,
        first: First,
        work: impl FnOnce(Option<RouteError>) -> W + Send + 'static,
    ) -> Response
    where
        W: Future<Output = Response> + Send + 'static,
    {
        let First { execution, reader, fingerprint, .. } = first;
        let this = self.clone();
        drop(self.tasks.spawn(async move {
            // Dropped also if the work panics, and after the work.
            let (table, key) = (Arc::clone(&this.table), fingerprint.key);
            let _end = OnEnd::new(table, key, Arc::clone(&execution));
            let mut claim = None;
            tokio::select! {
                () = this.drive(&execution, fingerprint, &mut claim, work) => {}
                () = execution.abandoned(this.grace, &this.stop) => {}
            }
            if let Some(claim) = claim {
                claim.end(&execution, this.keep).await;
            }
        }));
        reader.response(false).await
    }

    /// Executes a request, unless another host does.
    async fn drive<W: Future<Output = Response>>(
        &self,
        execution: &Execution,
        fingerprint: Fingerprint,
        claim: &mut Option<Claim>,
        work: impl FnOnce(Option<RouteError>) -> W,
    ) {
        let claimed = match &self.shared {
            None => Claimed::Execute(None),
            Some(shared) => claim::claim(shared, fingerprint, execution.rights()).await,
        };
        match claimed {
            Claimed::Execute(None) => execution.drive(work(None)).await,
            Claimed::Execute(Some(claimed)) => {
                let claim = claim.insert(claimed);
                tokio::select! {
                    () = execution.drive(work(None)) => {}
                    () = claim.renew() => {}
                }
            }
            Claimed::Replay(response) => execution.drive(std::future::ready(response)).await,
            Claimed::Refused(error) => execution.drive(work(Some(error))).await,
        }
    }
}
