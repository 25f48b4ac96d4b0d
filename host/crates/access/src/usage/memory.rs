//! What was used since the last write.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::counts::Counts;
use super::row::{Names, RowKey, Span};

/// Maximum number of combinations of names in an hour. Others are counted together.
const MAX_NAMES: usize = 65_536;

/// Maximum number of combinations of names of one tenant in an hour.
const MAX_TENANT_NAMES: usize = MAX_NAMES / 8;

/// Maximum number of rows that wait to be written, while the disk is full.
const MAX_ROWS: usize = 2 * MAX_NAMES;

/// Stands for names of which there are too many.
const OTHER: &str = "(other)";

/// What was used since the last write, by row.
pub(super) type Batch = HashMap<RowKey, Counts>;

/// What was used since the last write, and which names the current hour has.
#[derive(Debug, Default)]
pub(super) struct Memory {
    rows: Batch,
    hour: u32,
    names: HashSet<Arc<Names>>,
    by_tenant: HashMap<Box<str>, usize>,
}

impl Memory {
    /// Adds what was used in an hour.
    pub(super) fn add(&mut self, hour: u32, names: Names, counts: &Counts) {
        if self.hour != hour {
            self.hour = hour;
            self.names.clear();
            self.by_tenant.clear();
        }
        let names = self.known(names);
        let mut key = RowKey { span: Span::Hour, start: hour, names };
        if self.rows.len() >= MAX_ROWS && !self.rows.contains_key(&key) {
            key.names = Arc::new(Names::new(OTHER, OTHER, OTHER, OTHER));
        }
        self.rows.entry(key).or_default().add(counts);
    }

    /// Returns the names under which a request is counted: its own, unless there are too many.
    fn known(&mut self, names: Names) -> Arc<Names> {
        if let Some(known) = self.names.get(&names) {
            return Arc::clone(known);
        }
        let of_tenant = self.by_tenant.get(&names.tenant).copied().unwrap_or(0);
        if of_tenant >= MAX_TENANT_NAMES || self.names.len() >= MAX_NAMES {
            let is_known = self.by_tenant.contains_key(&names.tenant);
            let tenant = if is_known { &names.tenant } else { OTHER };
            return Arc::new(Names::new(tenant, OTHER, OTHER, OTHER));
        }
        self.by_tenant.insert(names.tenant.clone(), of_tenant + 1);
        let names = Arc::new(names);
        self.names.insert(Arc::clone(&names));
        names
    }

    /// Takes all rows.
    pub(super) fn take(&mut self) -> Batch {
        std::mem::take(&mut self.rows)
    }

    pub(super) fn rows(&self) -> &Batch {
        &self.rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(tenant: &str, model: usize) -> Names {
        Names::new(tenant, "k", &model.to_string(), "lane")
    }

    fn requests(memory: &Memory, tenant: &str, model: &str) -> u64 {
        let rows = memory.rows.iter().filter(|(key, _)| {
            *key.names.tenant == *tenant && (model.is_empty() || *key.names.model == *model)
        });
        rows.map(|(_, counts)| counts.requests).sum()
    }

    #[test]
    fn tenant_with_many_names_is_counted_and_leaves_space_for_others() {
        let one = Counts { requests: 1, ..Counts::default() };
        let mut memory = Memory::default();
        for model in 0..20_000 {
            memory.add(1, names("a", model), &one);
        }
        memory.add(1, names("b", 1), &one);
        assert_eq!(requests(&memory, "a", ""), 20_000);
        assert_eq!(requests(&memory, "a", OTHER), 20_000 - MAX_TENANT_NAMES as u64);
        assert_eq!(requests(&memory, "b", "1"), 1);
        // The next hour begins anew.
        memory.add(2, names("a", 19_999), &one);
        assert_eq!(requests(&memory, "a", "19999"), 1);
    }

    #[test]
    fn rows_that_wait_for_the_disk_are_bounded() {
        let one = Counts { requests: 1, ..Counts::default() };
        let mut memory = Memory::default();
        for hour in 0..40 {
            for model in 0..5_000 {
                memory.add(hour, names("a", model), &one);
            }
        }
        assert!(memory.rows.len() <= MAX_ROWS + 40);
        assert_eq!(memory.rows.values().map(|counts| counts.requests).sum::<u64>(), 200_000);
    }
}
