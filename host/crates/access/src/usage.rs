//! What was used, by hour, tenant, key, model and lane.
//!
//! ```text
//!   record ──> memory (bounded) ──save, twice a second──> batch ──one transaction──> store
//!                                                           └── kept and tried again if it fails
//! ```
//!
//! Memory has only what was used since the last write, which is added to the rows of the store. So
//! nothing has to be read at the start, and a clock that is set back does no harm. Each batch has a
//! number, which is in the store with it: a batch whose transaction failed is not added twice.

mod budgets;
mod contribution;
mod counts;
mod export;
mod file;
mod foreign;
mod hosts;
mod inherited;
mod memory;
mod query;
mod row;

use std::ops::ControlFlow;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use pointsman_domain::TokenCounts;
use pointsman_store::{Store, StoreError};

use self::budgets::BudgetTable;
pub use self::contribution::UsagePart;
use self::contribution::{Changed, Sharing};
pub use self::counts::Counts;
pub use self::foreign::ForeignUsage;
pub use self::hosts::{HostValue, OtherHosts, ReportedHost};
use self::inherited::{Beginning, Inherited};
use self::memory::{Batch, Memory};
use self::query::hour_of;
pub use self::query::{Column, UsageError, UsageQuery, UsageReport};
use self::row::{NamesRef, RowKey, Span, bound};
use crate::accounts::BudgetRow;
use crate::identity::Identity;

/// Age in hours after which the hours of a day are added up.
const COMPACT_AGE: u32 = 35 * row::DAY;

/// Age after which a period of a budget has ended: more than the longest month.
const BUDGET_AGE: Duration = Duration::from_secs(32 * 24 * 3600);

/// What one request has used on one lane.
#[derive(Debug, Clone)]
pub struct UsageEvent<'a> {
    /// When the request ended, in milliseconds since 1970.
    pub unix_ms: u64,
    /// Who sent it.
    pub identity: &'a Arc<Identity>,
    /// The model name, as the lane has it.
    pub model: &'a str,
    /// The lane; empty if none was attempted.
    pub lane: &'a str,
    /// One for the lane that ended the request, and zero for lanes that failed before it.
    pub requests: u64,
    /// True if the request ended with an error.
    pub failed: bool,
    /// Tokens that the engine reported, or that were counted.
    pub tokens: TokenCounts,
    /// Time that the request waited for a slot of the lane.
    pub waiting: Duration,
    /// Time for which the engine worked on it.
    pub engine: Duration,
}

/// How much is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UsageSettings {
    /// Maximum age of a row.
    pub keep: Duration,
    /// Maximum number of rows. The oldest are removed for new ones.
    pub max_rows: u64,
}

impl Default for UsageSettings {
    fn default() -> Self {
        Self { keep: Duration::from_secs(400 * 24 * 3600), max_rows: 1_000_000 }
    }
}

/// What was used.
#[derive(Debug, Default)]
pub struct UsageBook {
    memory: Mutex<Memory>,
    /// Held while the disk is used.
    unwritten: Mutex<Unwritten>,
    /// `None` to keep nothing but what is in memory.
    store: Option<Store>,
    settings: Mutex<UsageSettings>,
    /// What other hosts do not know yet.
    changed: Mutex<Changed>,
    sharing: OnceLock<Sharing>,
    /// What is the contribution of another host; `None` until it was read.
    inherited: Mutex<Option<Arc<Inherited>>>,
    /// What the store had when the process began; `None` if that is not known.
    beginning: Mutex<Option<Beginning>>,
}

/// What is being written, or could not be written.
#[derive(Debug, Default)]
struct Unwritten {
    batch: Batch,
    /// The number of the batch; `None` if it was not tried to write it.
    number: Option<u64>,
    budgets: BudgetTable,
}

/// What a write has done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Saved {
    /// Number of rows that were removed because there are too many.
    pub removed: u64,
}

impl UsageBook {
    /// Creates a book that is kept in a store.
    pub fn new(store: Store, settings: UsageSettings) -> Self {
        Self { store: Some(store), settings: Mutex::new(settings), ..Self::default() }
    }

    /// Returns true if nothing outlives the process.
    pub fn is_in_memory(&self) -> bool {
        self.store.as_ref().is_none_or(Store::is_in_memory)
    }

    /// Changes how much is kept, from the next write on.
    pub fn reconfigure(&self, settings: UsageSettings) {
        *self.settings.lock() = settings;
    }

    /// Adds what a request has used. Does not wait for the disk.
    pub fn record(&self, event: &UsageEvent<'_>) {
        let UsageEvent { identity, tokens, .. } = event;
        let tenant = identity.tenant.as_deref().unwrap_or_default();
        let names = NamesRef::new(tenant, &identity.name, event.model, event.lane);
        let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let counts = Counts {
            requests: event.requests,
            failed: if event.failed { event.requests } else { 0 },
            prompt_tokens: tokens.prompt.into(),
            cached_tokens: tokens.cached.into(),
            output_tokens: tokens.output.into(),
            waiting_ms: ms(event.waiting),
            engine_ms: ms(event.engine),
        };
        self.memory.lock().add(hour_of(event.unix_ms), names, &counts);
    }

    /// Writes what was used since the last write, and what is used of budgets. What cannot be
    /// written is kept, and written by a later call. Blocks.
    ///
    /// # Errors
    /// If the store cannot be written.
    pub fn save(&self, budgets: Vec<BudgetRow>) -> Result<Saved, StoreError> {
        let mut unwritten = self.unwritten.lock();
        unwritten.budgets.extend(budgets);
        let Some(store) = &self.store else { return Ok(Saved::default()) };
        let mut saved = Saved::default();
        // Twice, if there is a batch that could not be written before.
        loop {
            if unwritten.batch.is_empty() {
                unwritten.batch = self.memory.lock().take();
            }
            if unwritten.batch.is_empty() && unwritten.budgets.is_empty() {
                return Ok(saved);
            }
            saved.removed += self.write(store, &mut unwritten)?;
        }
    }

    fn write(&self, store: &Store, unwritten: &mut Unwritten) -> Result<u64, StoreError> {
        let number = match unwritten.number {
            Some(number) => number,
            None => *unwritten.number.insert(file::last_batch(store)? + 1),
        };
        let Unwritten { batch, budgets, .. } = &*unwritten;
        let max_rows = self.settings.lock().max_rows;
        let removed = file::write(store, batch, number, budgets, max_rows)?;
        self.note_changed(batch.keys().map(|row| (row.span, row.start)));
        *unwritten = Unwritten::default();
        Ok(removed)
    }

    /// Returns the number of rows that are not written.
    pub fn unwritten(&self) -> usize {
        let waiting = self.unwritten.lock().batch.len();
        waiting + self.memory.lock().rows().len()
    }

    /// Returns what was used of budgets, as it was written last. Blocks.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn budgets(&self) -> Result<Vec<BudgetRow>, StoreError> {
        self.store.as_ref().map_or_else(|| Ok(Vec::new()), file::budgets)
    }

    /// Removes what is too old, and adds up old hours to days. Returns true if there is more to do.
    /// Blocks.
    ///
    /// # Errors
    /// If the store cannot be written.
    pub fn maintain(&self, now_unix_ms: u64) -> Result<bool, StoreError> {
        let Some(store) = &self.store else { return Ok(false) };
        let before = |age: Duration| {
            let age = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
            now_unix_ms.saturating_sub(age)
        };
        BudgetTable::remove_before(store, before(BUDGET_AGE))?;
        let compact_before = hour_of(now_unix_ms).saturating_sub(COMPACT_AGE);
        let keep = self.settings.lock().keep;
        // So that a report has each row once: as an hour, or in its day.
        let _unwritten = self.unwritten.lock();
        let (has_more, days) = file::maintain(store, hour_of(before(keep)), compact_before)?;
        self.note_changed(days.into_iter().map(|start| (Span::Day, start)));
        Ok(has_more)
    }

    /// Adds up what a query wants, up to now. Blocks.
    ///
    /// # Errors
    /// If the store cannot be read, the report has too many rows, or is by host.
    pub fn report(&self, query: &UsageQuery) -> Result<UsageReport, UsageError> {
        if query.is_by_host() {
            return Err(UsageError::HostColumn);
        }
        self.own_report(query, "", &Inherited::default())
    }

    /// Adds up what a query wants of this host, which has this name in the report, without what is
    /// inherited.
    fn own_report(
        &self,
        query: &UsageQuery,
        host: &str,
        inherited: &Inherited,
    ) -> Result<UsageReport, UsageError> {
        let mut report = UsageReport { host: host.to_owned(), ..UsageReport::new(query) };
        let Some(store) = &self.store else {
            self.add_unwritten(&mut report)?;
            return Ok(report);
        };
        // So that the file has all.
        if self.save(Vec::new()).is_err() {
            self.add_unwritten(&mut report)?;
        }
        // No rows are compacted meanwhile.
        let _unwritten = self.unwritten.lock();
        for span in [Span::Day, Span::Hour] {
            let (from, to) = (bound(span, query.from), bound(span, query.to));
            let mut result = Ok(());
            store.scan(file::ROWS, (&from, &to), |key, value| {
                if let Some(row) = RowKey::from_bytes(key)
                    && let Some(counts) = inherited.without(&row, Counts::from_bytes(value))
                {
                    result = report.add(&row, &counts);
                }
                if result.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            })?;
            result?;
        }
        Ok(report)
    }

    fn add_unwritten(&self, report: &mut UsageReport) -> Result<(), UsageError> {
        let unwritten = self.unwritten.lock();
        let mut memory = self.memory.lock();
        let mut rows = unwritten.batch.iter().chain(memory.rows());
        rows.try_for_each(|(row, counts)| report.add(row, counts))
    }
}

#[cfg(test)]
mod tests;
