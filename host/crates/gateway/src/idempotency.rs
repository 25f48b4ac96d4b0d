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

use self::execution::Execution;
pub(crate) use self::execution::Failed;
pub(crate) use self::fingerprint::Fingerprint;
use self::reader::Reader;
use self::table::{Found, OnEnd, Table};
use crate::error::RouteError;
use crate::settings::IdempotencySettings;

mod buffer;
mod execution;
mod fingerprint;
mod memory;
mod reader;
mod table;
#[cfg(test)]
mod tests;

/// The header with the key.
const HEADER: HeaderName = HeaderName::from_static("idempotency-key");
/// Maximum length of a key in bytes.
const MAX_IDEMPOTENCY_KEY: usize = 255;

/// The requests with an idempotency key. A clone shares them.
#[derive(Clone)]
pub(crate) struct Idempotency {
    table: Arc<Table>,
    tasks: TaskTracker,
    grace: Duration,
    /// Cancelled when the host stops: nothing goes on without a client.
    stop: CancellationToken,
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
    key: [u8; 32],
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
        Self { table, tasks: TaskTracker::new(), grace: settings.grace, stop }
    }

    /// Returns the same requests with changed settings.
    pub(crate) fn reconfigured(&self, settings: &IdempotencySettings) -> Self {
        self.table.reconfigure(settings);
        Self {
            table: Arc::clone(&self.table),
            tasks: self.tasks.clone(),
            grace: settings.grace,
            stop: self.stop.clone(),
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
        let key = fingerprint.key;
        Ok(match self.table.find_or_start(fingerprint, identity)? {
            Found::Joined(reader) => Begun::Joined(Joined(reader)),
            Found::Started(execution, reader) => {
                let failed = execution.failed();
                Begun::First(First { execution, reader, key, failed })
            }
            Found::Untracked => Begun::Untracked,
        })
    }

    /// Executes the first request with a key, and returns the response to its client. `work` goes
    /// on without the client for the grace time.
    pub(crate) async fn run(
        &self,
        first: First,
        work: impl Future<Output = Response> + Send + 'static,
    ) -> Response {
        let First { execution, reader, key, .. } = first;
        let (table, grace, stop) = (Arc::clone(&self.table), self.grace, self.stop.clone());
        drop(self.tasks.spawn(async move {
            // Dropped also if the work panics, and after the work.
            let _end = OnEnd::new(table, key, Arc::clone(&execution));
            tokio::select! {
                () = execution.drive(work) => {}
                () = execution.abandoned(grace, &stop) => {}
            }
        }));
        reader.response(false).await
    }
}
