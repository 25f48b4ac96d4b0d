//! Usage and budgets in the store: restored at the start, and written twice a second.

mod command;

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use pointsman_access::{Accounts, Moment, UsageBook, UsageSettings};
use pointsman_store::{Store, StoreError};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

pub(crate) use self::command::usage;

/// Interval of writes. With the time that a write takes, at most a second is lost by a kill.
const INTERVAL: Duration = Duration::from_millis(500);

/// Interval of the removal of old rows.
const MAINTENANCE_INTERVAL: Duration = Duration::from_secs(600);

/// Interval of log lines about the same problem.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// Maximum number of rows without a file.
const MAX_IN_MEMORY: u64 = 50_000;

/// Where requests are counted.
#[derive(Debug)]
pub(crate) struct Metered {
    pub(crate) accounts: Arc<Accounts>,
    pub(crate) book: Arc<UsageBook>,
    pub(crate) writer: UsageWriter,
}

/// Restores what is used of budgets, and starts the thread that writes.
///
/// # Errors
/// If the thread cannot be started.
pub(crate) fn start(
    config: &pointsman_config::Usage,
    store: &Store,
    registry: &mut Registry,
) -> Result<Metered> {
    let pointsman_config::Usage { keep, max_rows } = *config;
    let max_rows = self::max_rows(max_rows, store.is_in_memory());
    let book = Arc::new(UsageBook::new(store.clone(), UsageSettings { keep, max_rows }));
    let accounts = Arc::new(Accounts::default());
    let writer = UsageWriter::start(Arc::clone(&book), Arc::clone(&accounts), registry)?;
    Ok(Metered { accounts, book, writer })
}

/// Returns the maximum number of rows, of which fewer are kept without a file.
pub(crate) fn max_rows(wanted: u64, is_in_memory: bool) -> u64 {
    if is_in_memory { wanted.min(MAX_IN_MEMORY) } else { wanted }
}

/// The thread that writes.
#[derive(Debug)]
pub(crate) struct UsageWriter {
    stop: Sender<()>,
    thread: JoinHandle<()>,
}

impl UsageWriter {
    fn start(
        book: Arc<UsageBook>,
        accounts: Arc<Accounts>,
        registry: &mut Registry,
    ) -> Result<Self> {
        match book.budgets() {
            Ok(rows) => accounts.restore(rows),
            Err(error) => {
                let cause = cause(&error);
                tracing::error!(
                    event = "budgets_not_restored",
                    %error,
                    cause,
                    "all budgets begin anew: the store cannot be read"
                );
            }
        }
        let (stop, stopped) = channel();
        let mut writer = Writer { book, accounts, ..Writer::new(registry) };
        let thread = std::thread::Builder::new().name("usage-writer".to_owned());
        let thread = thread.spawn(move || writer.run(&stopped));
        Ok(Self { stop, thread: thread.context("failed to start the writer of the usage")? })
    }

    /// Writes what is left, and waits for that. All requests have ended. Blocks.
    pub(crate) fn finish(self) {
        drop(self.stop);
        // A writer that panicked has nothing left to write.
        self.thread.join().ok();
    }
}

struct Writer {
    book: Arc<UsageBook>,
    accounts: Arc<Accounts>,
    unwritten: Gauge,
    removed: Counter,
    next_log: Instant,
    is_failing: bool,
}

impl Writer {
    fn new(registry: &mut Registry) -> Self {
        let (unwritten, removed) = (Gauge::default(), Counter::default());
        registry.register(
            "pointsman_usage_unwritten",
            "Rows of the usage that could not be written yet",
            unwritten.clone(),
        );
        registry.register(
            "pointsman_usage_removed",
            "Rows of the usage that were removed because there were too many",
            removed.clone(),
        );
        let (book, accounts) = Default::default();
        Self { book, accounts, unwritten, removed, next_log: Instant::now(), is_failing: false }
    }

    fn run(&mut self, stopped: &Receiver<()>) {
        let mut next_maintenance = Instant::now();
        loop {
            let is_over = match stopped.recv_timeout(INTERVAL) {
                Err(RecvTimeoutError::Timeout) => false,
                Ok(()) | Err(RecvTimeoutError::Disconnected) => true,
            };
            self.save();
            if is_over {
                return;
            }
            if Instant::now() >= next_maintenance {
                // If there is more to do, it goes on after the next write.
                let now = Moment::now(Duration::ZERO);
                let has_more = self.book.maintain(now.unix_ms).unwrap_or(false);
                let pause = if has_more { Duration::ZERO } else { MAINTENANCE_INTERVAL };
                next_maintenance = Instant::now() + pause;
            }
        }
    }

    fn save(&mut self) {
        let saved = self.book.save(self.accounts.take_dirty());
        let error = match saved {
            Ok(saved) => {
                self.removed.inc_by(saved.removed);
                if std::mem::take(&mut self.is_failing) {
                    self.unwritten.set(0);
                    tracing::info!(event = "usage_written", "the usage is written again");
                }
                return;
            }
            Err(error) => error,
        };
        let rows = self.book.unwritten();
        self.unwritten.set(i64::try_from(rows).unwrap_or(i64::MAX));
        let now = Instant::now();
        if !self.is_failing || now >= self.next_log {
            self.next_log = now + LOG_INTERVAL;
            let cause = cause(&error);
            tracing::error!(
                event = "usage_not_written",
                rows,
                %error,
                cause,
                "the usage cannot be written; it is kept in memory"
            );
        }
        self.is_failing = true;
    }
}

fn cause(error: &StoreError) -> Option<String> {
    std::error::Error::source(error).map(ToString::to_string)
}
