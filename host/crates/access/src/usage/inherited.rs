//! What a store has from the host that it was copied from: it is that host's contribution.
//!
//! ```text
//!   the process begins ──> found to be a copy ──> another id, for what was used since
//!        └── the rows of this hour are remembered ──┘
//! ```
//!
//! Reports of the host itself have all rows. Those of all hosts have what was used since then, and
//! the rest as a contribution of the other host.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::ops::ControlFlow;
use std::sync::Arc;

use pointsman_store::{OrderedTable, Store, StoreError};

use super::counts::Counts;
use super::file::{ID, META, ROWS, number};
use super::query::hour_of;
use super::row::{DAY, RowKey, Span, bound};
use super::{BudgetTable, UsageBook};
use crate::accounts::BudgetRow;

/// Name of the table of inherited rows: those of the first hour, and the sum of its day before.
const TABLE: &str = "usage.inherited";
/// The key of the first hour in the table of numbers.
const HOUR: &[u8] = b"inherited";
const AFTER_HOUR: &[u8] = b"inherited\0";

/// What is not the contribution of this host.
#[derive(Debug, Default)]
pub(super) struct Inherited {
    /// The hour in which the contribution begins, in hours since 1970; 0 if nothing is inherited.
    hour: u32,
    /// What is inherited of that hour, and of its day.
    rows: HashMap<RowKey, Counts>,
}

impl Inherited {
    fn read(store: &Store) -> Result<Self, StoreError> {
        let mut inherited = Self::default();
        store.scan(META, (HOUR, AFTER_HOUR), |_, value| {
            inherited.hour = u32::try_from(number(Some(value))).unwrap_or(0);
            ControlFlow::Break(())
        })?;
        if inherited.hour > 0 {
            store.scan(TABLE, (&[], &[u8::MAX]), |key, value| {
                let key = RowKey::from_bytes(key);
                inherited.rows.extend(key.map(|key| (key, Counts::from_bytes(value))));
                ControlFlow::Continue(())
            })?;
        }
        Ok(inherited)
    }

    /// Returns the first hour of a span that is not inherited as a whole.
    pub(super) fn first(&self, span: Span) -> u32 {
        match span {
            Span::Day => self.hour - self.hour % DAY,
            Span::Hour => self.hour,
        }
    }

    /// Returns what of a row was used at this host; `None` if nothing was.
    pub(super) fn without(&self, row: &RowKey, counts: Counts) -> Option<Counts> {
        if row.start < self.first(row.span) {
            return None;
        }
        match self.rows.get(row) {
            Some(inherited) => {
                Some(counts.minus(inherited)).filter(|rest| *rest != Counts::default())
            }
            None => Some(counts),
        }
    }
}

/// What the store had when the process began, as far as it can change.
#[derive(Debug)]
pub(super) struct Beginning {
    hour: u32,
    rows: HashMap<RowKey, Counts>,
    budgets: Vec<BudgetRow>,
}

impl UsageBook {
    /// Returns what is not the contribution of this host. Reads the store at the first time.
    pub(super) fn inherited(&self) -> Result<Arc<Inherited>, StoreError> {
        let mut known = self.inherited.lock();
        if let Some(inherited) = &*known {
            return Ok(Arc::clone(inherited));
        }
        let inherited = self.store.as_ref().map(Inherited::read).transpose()?.unwrap_or_default();
        Ok(Arc::clone(known.insert(Arc::new(inherited))))
    }

    /// Notes what the store has now: what is used from now on is that of this host, if the store
    /// turns out to be a copy. Blocks.
    ///
    /// # Errors
    /// If the store cannot be read, also because another process has it.
    pub fn note_beginning(&self, now_unix_ms: u64) -> Result<(), StoreError> {
        let Some(store) = &self.store else { return Ok(()) };
        // Nothing is written meanwhile.
        let _unwritten = self.unwritten.lock();
        let hour = hour_of(now_unix_ms);
        let mut rows = HashMap::new();
        let range = (&bound(Span::Hour, hour)[..], &bound(Span::Hour, hour.saturating_add(1))[..]);
        store.scan(ROWS, range, |key, value| {
            rows.extend(RowKey::from_bytes(key).map(|key| (key, Counts::from_bytes(value))));
            ControlFlow::Continue(())
        })?;
        let budgets = BudgetTable::read(store)?;
        *self.beginning.lock() = Some(Beginning { hour, rows, budgets });
        Ok(())
    }

    /// Gives the store another id, because it is a copy of the store of another host: what was used
    /// before [`UsageBook::note_beginning`] is the contribution of that host. All parts are to be
    /// contributed with the new id. Returns what was used of budgets before. Blocks.
    ///
    /// # Errors
    /// If the store cannot be read or written. Nothing has changed then.
    pub fn begin_anew(&self) -> Result<Vec<BudgetRow>, StoreError> {
        let Some(store) = &self.store else { return Err(StoreError::Closed) };
        let _unwritten = self.unwritten.lock();
        let mut beginning = self.beginning.lock();
        let Some(Beginning { hour, rows, budgets }) = &*beginning else { return Ok(Vec::new()) };
        let inherited = store.update(|transaction| {
            let day = hour - hour % DAY;
            let before = transaction.table(ROWS)?;
            let range = (bound(Span::Hour, day), bound(Span::Hour, *hour));
            let before = before.first(&range.0, &range.1, usize::MAX)?.into_iter();
            let before = before.filter_map(|(key, value)| {
                Some((RowKey::from_bytes(&key)?, Counts::from_bytes(&value)))
            });
            let mut inherited = Inherited { hour: *hour, rows: rows.clone() };
            for (row, counts) in before.chain(rows.clone()) {
                inherited.rows.entry(row.of_day()).or_default().add(&counts);
            }
            replace(&mut transaction.table(TABLE)?, &inherited.rows)?;
            let mut meta = transaction.table(META)?;
            meta.put(HOUR, &u64::from(*hour).to_be_bytes())?;
            meta.put(ID, &RandomState::new().hash_one(0).max(1).to_be_bytes())?;
            Ok::<_, StoreError>(inherited)
        })?;
        *self.inherited.lock() = Some(Arc::new(inherited));
        let budgets = budgets.clone();
        *beginning = None;
        Ok(budgets)
    }

    /// Returns true if it is known what the store had when the process began.
    pub fn has_beginning(&self) -> bool {
        self.beginning.lock().is_some()
    }
}

fn replace(table: &mut OrderedTable<'_>, rows: &HashMap<RowKey, Counts>) -> Result<(), StoreError> {
    for (key, _) in table.first(&[], &[u8::MAX], usize::MAX)? {
        table.remove(&key)?;
    }
    rows.iter().try_for_each(|(row, counts)| table.put(&row.to_bytes(), &counts.to_bytes()))
}
