//! Usage and budgets in the store: restored at the start, and written twice a second.

mod command;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use pointsman_access::{
    AccountId, Accounts, BudgetRow, ForeignUsage, Moment, Period, UsageBook, UsageSettings,
};
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

/// What was counted and is not written.
pub(crate) struct Used {
    pub(crate) rows: Vec<ForeignUsage>,
    /// Differences to what was written.
    pub(crate) budgets: Vec<BudgetRow>,
}

/// Passes on what was counted, to another host that writes it.
pub(crate) type Forward = Box<dyn FnMut(Used) + Send>;

enum Command {
    /// Write, say so, and wait for the next command.
    Pause(Sender<()>),
    /// Write at intervals again.
    Resume,
    /// Another host has the store.
    Forward(Forward),
}

/// The thread that writes.
#[derive(Debug)]
pub(crate) struct UsageWriter {
    commands: Sender<Command>,
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
        let (commands, received) = channel();
        let mut writer = Writer { book, accounts, ..Writer::new(registry) };
        let thread = std::thread::Builder::new().name("usage-writer".to_owned());
        let thread = thread.spawn(move || writer.run(&received));
        Ok(Self { commands, thread: thread.context("failed to start the writer of the usage")? })
    }

    /// Writes what was counted, and nothing more until another call. Blocks.
    pub(crate) fn pause(&self) {
        let (reply, paused) = channel();
        // Fails only if the thread has panicked.
        self.commands.send(Command::Pause(reply)).ok();
        paused.recv().ok();
    }

    /// Writes at intervals again.
    pub(crate) fn resume(&self) {
        self.commands.send(Command::Resume).ok();
    }

    /// Passes on what is counted since [`UsageWriter::pause`].
    pub(crate) fn forward(&self, forward: Forward) {
        self.commands.send(Command::Forward(forward)).ok();
    }

    /// Writes what is left, and waits for that. All requests have ended. Blocks.
    pub(crate) fn finish(self) {
        drop(self.commands);
        // A writer that panicked has nothing left to write.
        self.thread.join().ok();
    }
}

struct Writer {
    forward: Option<Forward>,
    /// The budgets as they were written or passed on last.
    written: HashMap<(AccountId, Period), BudgetRow>,
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
        let (book, accounts, forward, written) = Default::default();
        let (next_log, is_failing) = (Instant::now(), false);
        Self { forward, written, book, accounts, unwritten, removed, next_log, is_failing }
    }

    fn run(&mut self, commands: &Receiver<Command>) {
        let mut next_maintenance = Instant::now();
        loop {
            let is_over = match commands.recv_timeout(INTERVAL) {
                Ok(Command::Pause(reply)) => {
                    self.save();
                    self.note_budgets();
                    reply.send(()).ok(); // Fails only if the caller does not wait.
                    self.wait(commands)
                }
                Ok(Command::Forward(forward)) => {
                    self.forward = Some(forward);
                    false
                }
                Ok(Command::Resume) | Err(RecvTimeoutError::Timeout) => false,
                Err(RecvTimeoutError::Disconnected) => true,
            };
            if self.pass_on() {
                if is_over {
                    return;
                }
                continue;
            }
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

    /// Waits until it is decided which host writes. Returns true if this one ends.
    fn wait(&mut self, commands: &Receiver<Command>) -> bool {
        match commands.recv() {
            Ok(Command::Forward(forward)) => {
                self.forward = Some(forward);
                false
            }
            Ok(Command::Pause(_) | Command::Resume) => false,
            Err(_) => true,
        }
    }

    /// Notes the budgets that are written.
    fn note_budgets(&mut self) {
        let rows = self.book.budgets().unwrap_or_default();
        self.written =
            rows.into_iter().map(|row| ((row.account.clone(), row.period), row)).collect();
    }

    /// Passes on what was counted. Returns false if this host writes it.
    fn pass_on(&mut self) -> bool {
        let Some(forward) = &mut self.forward else { return false };
        let rows = self.book.take();
        let budgets = self.accounts.take_dirty().into_iter().map(|row| {
            let before = self.written.insert((row.account.clone(), row.period), row.clone());
            before.map_or_else(|| row.clone(), |before| row.since(&before))
        });
        let budgets: Vec<BudgetRow> = budgets.collect();
        if !(rows.is_empty() && budgets.is_empty()) {
            forward(Used { rows, budgets });
        }
        true
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
