//! What is used of budgets, in the store.

use std::collections::HashMap;
use std::ops::ControlFlow;

use pointsman_store::{Store, StoreError, Transaction};

use crate::accounts::BudgetRow;
use crate::limits::{AccountId, Period};

/// Name of the table.
const TABLE: &str = "budgets";

/// Budgets that are not written yet.
#[derive(Debug, Default)]
pub(super) struct BudgetTable {
    rows: HashMap<(AccountId, Period), BudgetRow>,
}

impl BudgetTable {
    /// Adds rows; each replaces the earlier one of its account and period.
    pub(super) fn extend(&mut self, rows: Vec<BudgetRow>) {
        self.rows.extend(rows.into_iter().map(|row| ((row.account.clone(), row.period), row)));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    pub(super) fn write(&self, transaction: &Transaction) -> Result<(), StoreError> {
        if self.rows.is_empty() {
            return Ok(());
        }
        let mut table = transaction.table(TABLE)?;
        for (key, row) in &self.rows {
            table.put(&serde_json::to_vec(key)?, &serde_json::to_vec(row)?)?;
        }
        Ok(())
    }

    /// Reads all rows. One that cannot be read is left out.
    pub(super) fn read(store: &Store) -> Result<Vec<BudgetRow>, StoreError> {
        let mut rows = Vec::new();
        // Keys are JSON, whose bytes are less than these.
        store.scan(TABLE, (&[], &[u8::MAX]), |_, value| {
            rows.extend(serde_json::from_slice::<BudgetRow>(value).ok());
            ControlFlow::Continue(())
        })?;
        Ok(rows)
    }

    /// Removes rows of periods that began before this time: they have ended.
    pub(super) fn remove_before(store: &Store, start_unix_ms: u64) -> Result<(), StoreError> {
        let mut old = Vec::new();
        store.scan(TABLE, (&[], &[u8::MAX]), |key, value| {
            let row = serde_json::from_slice::<BudgetRow>(value);
            if row.map_or(true, |row| row.start_unix_ms < start_unix_ms) {
                old.push(key.to_vec());
            }
            ControlFlow::Continue(())
        })?;
        if old.is_empty() {
            return Ok(());
        }
        store.update(|transaction| {
            let mut table = transaction.table(TABLE)?;
            old.iter().try_for_each(|key| table.remove(key))
        })
    }
}
