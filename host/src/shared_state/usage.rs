//! The usage of all hosts: what this one contributes, at intervals, and what others have
//! contributed.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result};
use parking_lot::Mutex;
use pointsman_access::{
    Accounts, HostValue, Moment, OtherHosts, ReportedHost, UsageBook, UsagePart,
};
use pointsman_shared::{
    BudgetPart, Contribution, ContributionWriter, Contributor, CopyRole, DayPart, Settings,
    SharedContributions, Written,
};
use tokio::runtime::{Handle, Runtime};

/// Interval of contributions.
const INTERVAL: Duration = Duration::from_secs(2);
/// Interval at which all budgets are told again, and those of others read, also without requests.
const BUDGETS_INTERVAL: Duration = Duration::from_secs(60);
/// Pause if there is more to contribute, so that the store serves others as well.
const SHORT_PAUSE: Duration = Duration::from_millis(50);
/// Maximum size of a contribution in bytes, but for its last part.
const MAX_BYTES: usize = 1 << 20;
/// Maximum number of accounts of which budgets are told at a time.
const MAX_ACCOUNTS: usize = 200;
/// Time for the rest at the end.
const FINISH_LIMIT: Duration = Duration::from_secs(1);

/// Another host whose store has the same id as that of this one: one of both is a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CopiedIdentity {
    /// The name of the other host.
    pub(super) other: String,
    /// True if this host has taken another id, and the other one keeps it.
    pub(super) is_renewed: bool,
    pub(super) at: SystemTime,
}

/// The last such host that was found; `None` if there was none since the start.
pub(super) type FoundCopy = Arc<Mutex<Option<CopiedIdentity>>>;

/// The thread that contributes.
#[derive(Debug)]
pub(super) struct UsageSharing {
    stop: Sender<()>,
    thread: JoinHandle<()>,
    pub(super) copied: FoundCopy,
}

impl UsageSharing {
    /// Starts the thread. `name` is that of this host, for people. Call it in a runtime, before the
    /// first request.
    ///
    /// # Errors
    /// If the settings are invalid, or the thread cannot be created.
    pub(super) fn start(
        settings: Settings,
        name: &str,
        book: Arc<UsageBook>,
        accounts: Arc<Accounts>,
    ) -> Result<Self> {
        let contributions = SharedContributions::new(settings.clone())?;
        book.share(name, Arc::new(Others { contributions, runtime: Handle::current() }));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.context("failed to start the async runtime")?;
        let (stop, stopped) = channel();
        let (name, writer, copied) = (name.to_owned(), None, FoundCopy::default());
        let (next_budgets, found) = (Instant::now(), Arc::clone(&copied));
        let mut publisher =
            Publisher { settings, name, book, accounts, writer, next_budgets, found, runtime };
        let thread = std::thread::Builder::new().name("shared-usage".to_owned());
        let thread = thread.spawn(move || publisher.run(&stopped));
        let thread = thread.context("failed to start the thread of the shared usage")?;
        Ok(Self { stop, thread, copied })
    }

    /// Contributes what is left, as far as the store replies, and ends the thread. Blocks for some
    /// seconds at most.
    pub(super) fn finish(self) {
        drop(self.stop);
        // A thread that has panicked has nothing left to contribute.
        self.thread.join().ok();
    }
}

struct Publisher {
    settings: Settings,
    name: String,
    book: Arc<UsageBook>,
    accounts: Arc<Accounts>,
    /// With the id of what is in the store of this host; `None` until that is known.
    writer: Option<(u64, ContributionWriter)>,
    /// When all budgets are told again.
    next_budgets: Instant,
    found: FoundCopy,
    runtime: Runtime,
}

impl Publisher {
    fn run(&mut self, stopped: &Receiver<()>) {
        let mut last = self.step();
        loop {
            let pause = if matches!(last, Ok(true)) { SHORT_PAUSE } else { INTERVAL };
            match stopped.recv_timeout(pause) {
                Ok(()) | Err(RecvTimeoutError::Timeout) => last = self.step(),
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        // A store that does not reply gets no more time.
        let end = Instant::now() + FINISH_LIMIT;
        if last.is_ok() {
            while matches!(self.step(), Ok(true)) && Instant::now() < end {}
        }
    }

    /// Contributes what has changed, up to a size, and returns true if there is more.
    fn step(&mut self) -> Result<bool> {
        // Fails while another process has the store: only one of both contributes.
        let id = self.book.id()?;
        if !self.book.has_beginning() {
            self.note_beginning()?;
        }
        if self.writer.as_ref().is_none_or(|(known, _)| *known != id) {
            let writer = ContributionWriter::new(self.settings.clone(), id, &self.name)?;
            self.writer = Some((id, writer));
        }
        let parts = self.book.take_changed(MAX_BYTES)?;
        let contributed = self.contribute(&parts);
        if let Err(error) = &contributed {
            self.book.give_back(&parts);
            // The state of the store is logged by the replicator, once.
            tracing::debug!(event = "usage_not_shared", %error, "usage is shared later");
        }
        contributed.map(|()| self.book.has_changed())
    }

    /// Notes what this host has at the beginning, for the case that its store is a copy.
    fn note_beginning(&self) -> Result<()> {
        Ok(self.book.note_beginning(Moment::now(Duration::ZERO).unix_ms)?)
    }

    /// Takes note of another host with the same id. The younger process goes on with another id.
    fn resolve_copy(&mut self, other: String, role: CopyRole) -> Result<()> {
        let is_renewed = match role {
            CopyRole::Older => false,
            CopyRole::SameProcess => {
                self.note_beginning()?;
                true
            }
            CopyRole::Younger => true,
        };
        if is_renewed {
            let before = self.book.begin_anew()?;
            self.accounts.disown(before);
            // The next step writes with the new id.
            if let Some((_, writer)) = self.writer.take()
                && let Err(error) = self.runtime.block_on(writer.leave())
            {
                // The other host writes all of its own again in any case.
                tracing::debug!(event = "usage_not_removed", %error, "old usage is still shared");
            }
        }
        let found = CopiedIdentity { other, is_renewed, at: SystemTime::now() };
        let is_known = |known: &CopiedIdentity| {
            (&known.other, known.is_renewed) == (&found.other, found.is_renewed)
        };
        let mut last = self.found.lock();
        // The older process finds the other one until that has noticed it, too.
        if is_renewed || !last.as_ref().is_some_and(is_known) {
            tracing::warn!(
                event = "host_identity_copied",
                other = found.other,
                is_renewed,
                "another host has the same identity: its state directory was copied"
            );
        }
        *last = Some(found);
        Ok(())
    }

    fn contribute(&mut self, parts: &[UsagePart]) -> Result<()> {
        let Some((_, writer)) = &mut self.writer else { return Ok(()) };
        let part = |part: &UsagePart| {
            let UsagePart { day, values, is_complete, .. } = part.clone();
            DayPart { day, values, is_complete }
        };
        let parts: Vec<DayPart> = parts.iter().map(part).collect();
        let written = self.runtime.block_on(writer.write(&parts, self.book.keep()))?;
        if let Written::Copied { name, role } = &written {
            self.resolve_copy(name.clone(), *role)?;
        }
        match written {
            Written::Known => {}
            Written::Unknown | Written::Copied { .. } => {
                self.book.give_back_all()?;
                self.next_budgets = Instant::now();
            }
        }
        // Not with an id that is that of another host.
        let Some((_, writer)) = &mut self.writer else { return Ok(()) };
        if self.next_budgets <= Instant::now() {
            self.next_budgets = Instant::now() + BUDGETS_INTERVAL;
            self.accounts.mark_all_untold();
        }
        loop {
            let uses = self.accounts.take_untold(MAX_ACCOUNTS, Moment::now(Duration::ZERO));
            if uses.is_empty() {
                return Ok(());
            }
            let budgets = uses.iter().map(|budget| BudgetPart {
                name: budget.name.clone(),
                used: budget.used,
                keep: budget.keep,
            });
            let budgets: Vec<BudgetPart> = budgets.collect();
            match self.runtime.block_on(writer.write_budgets(&budgets)) {
                Ok(others) => self.accounts.tell(&uses, &others),
                Err(error) => {
                    self.accounts.give_back_untold(&uses);
                    return Err(error.into());
                }
            }
        }
    }
}

/// What other hosts have contributed.
#[derive(Debug)]
struct Others {
    contributions: SharedContributions,
    runtime: Handle,
}

impl OtherHosts for Others {
    fn hosts(&self, first: u32, last: u32) -> Result<(Vec<ReportedHost>, Vec<u32>), String> {
        let index = self.runtime.block_on(self.contributions.index(first, last));
        let index = index.map_err(|error| error.to_string())?;
        let host = |Contributor { id, name, age }| ReportedHost { id, name, age };
        Ok((index.hosts.into_iter().map(host).collect(), index.days))
    }

    fn day(
        &self,
        day: u32,
        hours: (u8, u8),
        except: u64,
        max_bytes: usize,
    ) -> Result<Vec<HostValue>, String> {
        let read = self.runtime.block_on(self.contributions.day(day, hours, except, max_bytes));
        let value = |Contribution { id, hour, value }| HostValue { id, hour, value };
        Ok(read.map_err(|error| error.to_string())?.into_iter().map(value).collect())
    }
}
