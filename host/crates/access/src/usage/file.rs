//! The rows in the store: transactions that add, compact and remove them.

use std::collections::{BTreeSet, HashMap};
use std::hash::{BuildHasher as _, RandomState};
use std::ops::ControlFlow;

use pointsman_store::{OrderedTable, Store, StoreError};

use super::budgets::BudgetTable;
use super::counts::Counts;
use super::memory::Batch;
use super::row::{DAY, RowKey, Span, bound};
use crate::accounts::BudgetRow;

/// Name of the table of rows.
pub(super) const ROWS: &str = "usage";

/// Name of the table with the number of the last batch.
pub(super) const META: &str = "usage.meta";

/// Its key.
const BATCH: &[u8] = b"batch";

/// The key of the id of the store in the same table.
pub(super) const ID: &[u8] = b"id";

/// Rows that a transaction compacts or removes.
const STEP: usize = 1000;

/// Transactions of a maintenance; the next one continues.
const MAX_STEPS: usize = 20;

/// Returns the number of the last batch that is in the file.
pub(super) fn last_batch(store: &Store) -> Result<u64, StoreError> {
    let mut last = 0;
    store.scan(META, (BATCH, b"batch\0"), |_, value| {
        last = number(Some(value));
        ControlFlow::Break(())
    })?;
    Ok(last)
}

/// Returns the id of the store: a random number, which the first call writes.
pub(super) fn id(store: &Store) -> Result<u64, StoreError> {
    let mut id = 0;
    store.scan(META, (ID, b"id\0"), |_, value| {
        id = number(Some(value));
        ControlFlow::Break(())
    })?;
    if id != 0 {
        return Ok(id);
    }
    store.update(|transaction| {
        let mut meta = transaction.table(META)?;
        // Two threads may be here.
        let id = match number(meta.get(ID)?.as_deref()) {
            0 => RandomState::new().hash_one(0).max(1),
            id => id,
        };
        meta.put(ID, &id.to_be_bytes())?;
        Ok(id)
    })
}

pub(super) fn number(value: Option<&[u8]>) -> u64 {
    value.and_then(|value| value.try_into().ok()).map_or(0, u64::from_be_bytes)
}

/// Adds a batch to the rows, unless the file has it already: a transaction that failed may be in
/// the file nevertheless. Removes the oldest rows if there are too many, and returns their number.
pub(super) fn write(
    store: &Store,
    batch: &Batch,
    batch_number: u64,
    budgets: &BudgetTable,
    max_rows: u64,
) -> Result<u64, StoreError> {
    store.update(|transaction| {
        budgets.write(transaction)?;
        let mut meta = transaction.table(META)?;
        let last = meta.get(BATCH)?;
        if batch.is_empty() || number(last.as_deref()) >= batch_number {
            return Ok(0);
        }
        meta.put(BATCH, &batch_number.to_be_bytes())?;
        let mut rows = transaction.table(ROWS)?;
        for (key, counts) in batch {
            add(&mut rows, key, *counts)?;
        }
        let surplus = rows.len()?.saturating_sub(max_rows);
        let surplus = usize::try_from(surplus).unwrap_or(usize::MAX);
        remove(&mut rows, &[], &[u8::MAX], surplus)
    })
}

fn add(rows: &mut OrderedTable<'_>, key: &RowKey, mut counts: Counts) -> Result<(), StoreError> {
    let key = key.to_bytes();
    if let Some(before) = rows.get(&key)? {
        counts.add(&Counts::from_bytes(&before));
    }
    rows.put(&key, &counts.to_bytes())
}

/// Removes the first rows of a range, and returns their number.
fn remove(
    rows: &mut OrderedTable<'_>,
    from: &[u8],
    to: &[u8],
    limit: usize,
) -> Result<u64, StoreError> {
    let gone = if limit == 0 { Vec::new() } else { rows.first(from, to, limit)? };
    gone.iter().try_for_each(|(key, _)| rows.remove(key))?;
    Ok(gone.len() as u64)
}

/// Removes rows from before the hour `oldest`, and adds up hours before `compact_before` to days.
/// Returns true if there is more to do, and the first hours of days to which hours were added.
pub(super) fn maintain(
    store: &Store,
    oldest: u32,
    compact_before: u32,
) -> Result<(bool, BTreeSet<u32>), StoreError> {
    // The beginning of a day: a day is in the file as hours, or as a day.
    let compact_before = compact_before - compact_before % DAY;
    let (mut is_done, mut days) = (false, BTreeSet::new());
    for _ in 0..MAX_STEPS {
        is_done = store.update(|transaction| {
            let mut rows = transaction.table(ROWS)?;
            let mut changed = 0;
            // A day is removed when its last hour is too old.
            let ends = [(Span::Day, oldest.saturating_sub(DAY - 1)), (Span::Hour, oldest)];
            for (span, end) in ends {
                changed += remove(&mut rows, &bound(span, 0), &bound(span, end), STEP)?;
            }
            changed += compact(&mut rows, compact_before, &mut days)?;
            Ok::<_, StoreError>(changed == 0)
        })?;
        if is_done {
            break;
        }
    }
    Ok((!is_done, days))
}

/// Adds up the first rows of hours before `end` to days, which are added to `changed`.
fn compact(
    rows: &mut OrderedTable<'_>,
    end: u32,
    changed: &mut BTreeSet<u32>,
) -> Result<u64, StoreError> {
    let hours = rows.first(&bound(Span::Hour, 0), &bound(Span::Hour, end), STEP)?;
    let mut days: Batch = HashMap::new();
    for (key, value) in &hours {
        rows.remove(key)?;
        // What cannot be read is not kept.
        if let Some(key) = RowKey::from_bytes(key) {
            days.entry(key.of_day()).or_default().add(&Counts::from_bytes(value));
        }
    }
    for (key, counts) in &days {
        changed.insert(key.start);
        add(rows, key, *counts)?;
    }
    Ok(hours.len() as u64)
}

/// Reads the budgets.
pub(super) fn budgets(store: &Store) -> Result<Vec<BudgetRow>, StoreError> {
    BudgetTable::read(store)
}
