//! What was used since the last write.

use std::collections::HashMap;
use std::hash::RandomState;
use std::sync::Arc;

use super::counts::Counts;
use super::row::{Names, NamesRef, RowKey, Span};

/// Maximum number of combinations of names in an hour. Others are counted together.
const MAX_NAMES: usize = 65_536;

/// Maximum number of combinations of names of one tenant in an hour.
const MAX_TENANT_NAMES: usize = MAX_NAMES / 8;

/// Maximum number of rows that wait to be written, while the disk is full.
const MAX_ROWS: usize = 2 * MAX_NAMES;

/// Stands for names of which there are too many.
pub(super) const OTHER: &str = "(other)";

/// What was used since the last write, by row.
pub(super) type Batch = HashMap<RowKey, Counts>;

/// What was used since the last write, and which names the current hour has.
#[derive(Debug, Default)]
pub(super) struct Memory {
    /// What is not in `current` any more.
    rows: Batch,
    hour: u32,
    /// All names of the hour, and what they have used since their counts were moved to `rows`; none
    /// if nothing was added since. Names may be those of clients, so the table is one that they
    /// cannot make slow.
    current: hashbrown::HashMap<Arc<Names>, Option<Counts>, RandomState>,
    /// Names with counts to move.
    changed: Vec<Arc<Names>>,
    by_tenant: HashMap<Box<str>, usize>,
}

impl Memory {
    /// Adds what was used in an hour.
    pub(super) fn add(&mut self, hour: u32, names: NamesRef<'_>, counts: &Counts) {
        if self.hour != hour {
            self.move_to_rows();
            self.hour = hour;
            self.current.clear();
            self.by_tenant.clear();
        }
        if let Some((names, known)) = self.current.get_key_value_mut(&names) {
            if known.is_none() {
                self.changed.push(Arc::clone(names));
            }
            known.get_or_insert_default().add(counts);
            return;
        }
        let names = Arc::new(self.accepted(names));
        let known = self.current.entry(Arc::clone(&names)).or_default();
        if known.is_none() {
            self.changed.push(names);
        }
        known.get_or_insert_default().add(counts);
    }

    /// Returns under which names new ones are counted: these, unless there are too many.
    fn accepted(&mut self, names: NamesRef<'_>) -> Names {
        let of_tenant = self.by_tenant.get(names.tenant).copied().unwrap_or(0);
        if of_tenant >= MAX_TENANT_NAMES || self.current.len() >= MAX_NAMES {
            let is_known = self.by_tenant.contains_key(names.tenant);
            let tenant = if is_known { names.tenant } else { OTHER };
            return Names::new(tenant, OTHER, OTHER, OTHER);
        }
        self.by_tenant.insert(names.tenant.into(), of_tenant + 1);
        names.to_names()
    }

    fn move_to_rows(&mut self) {
        for names in self.changed.drain(..) {
            let Some(counts) = self.current.get_mut(&names).and_then(Option::take) else {
                continue;
            };
            let mut key = RowKey { span: Span::Hour, start: self.hour, names };
            if self.rows.len() >= MAX_ROWS && !self.rows.contains_key(&key) {
                key.names = Arc::new(Names::new(OTHER, OTHER, OTHER, OTHER));
            }
            self.rows.entry(key).or_default().add(&counts);
        }
    }

    /// Takes all rows.
    pub(super) fn take(&mut self) -> Batch {
        self.move_to_rows();
        std::mem::take(&mut self.rows)
    }

    pub(super) fn rows(&mut self) -> &Batch {
        self.move_to_rows();
        &self.rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(memory: &mut Memory, hour: u32, tenant: &str, model: usize) {
        let one = Counts { requests: 1, ..Counts::default() };
        memory.add(hour, NamesRef::new(tenant, "k", &model.to_string(), "lane"), &one);
    }

    fn requests(memory: &mut Memory, tenant: &str, model: &str) -> u64 {
        let rows = memory.rows().iter().filter(|(key, _)| {
            *key.names.tenant == *tenant && (model.is_empty() || *key.names.model == *model)
        });
        rows.map(|(_, counts)| counts.requests).sum()
    }

    #[test]
    fn tenant_with_many_names_is_counted_and_leaves_space_for_others() {
        let mut memory = Memory::default();
        for model in 0..20_000 {
            add(&mut memory, 1, "a", model);
        }
        add(&mut memory, 1, "b", 1);
        assert_eq!(requests(&mut memory, "a", ""), 20_000);
        assert_eq!(requests(&mut memory, "a", OTHER), 20_000 - MAX_TENANT_NAMES as u64);
        assert_eq!(requests(&mut memory, "b", "1"), 1);
        // The next hour begins anew.
        add(&mut memory, 2, "a", 19_999);
        assert_eq!(requests(&mut memory, "a", "19999"), 1);
    }

    #[test]
    fn rows_that_wait_for_the_disk_are_bounded() {
        let mut memory = Memory::default();
        for hour in 0..40 {
            for model in 0..5_000 {
                add(&mut memory, hour, "a", model);
            }
        }
        assert!(memory.rows().len() <= MAX_ROWS + 40);
        assert_eq!(memory.rows().values().map(|counts| counts.requests).sum::<u64>(), 200_000);
    }

    /// Counts that were taken are not taken again, and names stay known.
    #[test]
    fn rows_have_what_was_used_since_they_were_taken() {
        let mut memory = Memory::default();
        for round in 1..4 {
            for hour in [5, 6, 6] {
                add(&mut memory, hour, "a", 1);
            }
            let mut taken: Vec<(u32, u64)> =
                memory.take().iter().map(|(row, counts)| (row.start, counts.requests)).collect();
            taken.sort_unstable();
            assert_eq!(taken, [(5, 1), (6, 2)], "round {round}");
            assert!(memory.take().is_empty());
        }
    }
}
