//! What this host contributes to the usage of all hosts, and what the others have contributed.
//!
//! ```text
//!   rows that were written ──> changed hours ──parts, all of an hour each──> shared store
//!   report of all hosts = rows of this host + what the store has of the others
//! ```
//!
//! Parts are read from the store of this host, so that what the shared store has lost can be
//! written again at any time.

use std::collections::{BTreeSet, HashMap};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use pointsman_store::StoreError;

use super::counts::Counts;
use super::hosts::{HostValue, OtherHosts, ReportedHost};
use super::memory::OTHER;
use super::query::{Column, UsageError, UsageQuery, UsageReport};
use super::row::{DAY, Names, RowKey, Span, bound};
use super::{UsageBook, file};

/// The first byte of a value.
const VERSION: u8 = 1;
/// Maximum size of a value in bytes. Names that exceed it are counted together.
const MAX_VALUE: usize = 256 << 10;
/// The most that is read for one report, in bytes.
const MAX_READ: usize = 64 << 20;

/// The days and hours that have to be written again. Days are first, as they are older.
pub(super) type Changed = BTreeSet<(Span, u32)>;

/// What a host contributes to a day.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsagePart {
    /// The day, in days since 1970.
    pub day: u32,
    /// Values of hours from 0 to 23; `None` for what is not known by hour.
    pub values: Vec<(Option<u8>, Vec<u8>)>,
    /// True if the host has no other usage of the day.
    pub is_complete: bool,
    /// The first hour, in hours since 1970.
    start: u32,
}

impl UsagePart {
    /// Returns the number of bytes of its values.
    pub fn size(&self) -> usize {
        self.values.iter().map(|(_, value)| value.len()).sum()
    }

    fn changed(&self) -> (Span, u32) {
        (if self.is_complete { Span::Day } else { Span::Hour }, self.start)
    }
}

/// Where the usage of other hosts is, and the name of this host.
#[derive(Debug)]
pub(super) struct Sharing {
    name: String,
    others: Arc<dyn OtherHosts>,
}

impl UsageBook {
    /// Shares the usage with other hosts, before the first request. `name` is that of this host,
    /// for people.
    pub fn share(&self, name: &str, others: Arc<dyn OtherHosts>) {
        // Called once; a second call has no effect.
        self.sharing.set(Sharing { name: name.to_owned(), others }).ok();
    }

    /// Returns the id of the store: a random number, which stays the same as long as the rows.
    /// Blocks.
    ///
    /// # Errors
    /// If the store cannot be read or written, also because another process has it.
    pub fn id(&self) -> Result<u64, StoreError> {
        let Some(store) = &self.store else { return Err(StoreError::Closed) };
        file::id(store)
    }

    /// Returns how long rows are kept.
    pub fn keep(&self) -> Duration {
        self.settings.lock().keep
    }

    /// Returns parts that have changed, the latest first: at least one if there is any, and more
    /// until they have `max_bytes`. What cannot be contributed has to be given back by
    /// [`UsageBook::give_back`]. Blocks.
    ///
    /// # Errors
    /// If the store cannot be read, also because another process has it. Nothing was taken then.
    pub fn take_changed(&self, max_bytes: usize) -> Result<Vec<UsagePart>, StoreError> {
        let (mut parts, mut bytes) = (Vec::new(), 0);
        while bytes < max_bytes {
            let Some(next) = self.changed.lock().pop_last() else { break };
            match self.part(next) {
                Ok(part) => {
                    bytes += part.size();
                    parts.push(part);
                }
                Err(error) => {
                    self.changed.lock().insert(next);
                    self.give_back(&parts);
                    return Err(error);
                }
            }
        }
        Ok(parts)
    }

    /// Returns true if there are parts that have changed.
    pub fn has_changed(&self) -> bool {
        !self.changed.lock().is_empty()
    }

    /// Notes that parts were not contributed.
    pub fn give_back(&self, parts: &[UsagePart]) {
        self.changed.lock().extend(parts.iter().map(UsagePart::changed));
    }

    /// Notes that all parts have to be contributed again. Blocks.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn give_back_all(&self) -> Result<(), StoreError> {
        let Some(store) = &self.store else { return Ok(()) };
        let inherited = self.inherited()?;
        for span in [Span::Day, Span::Hour] {
            let mut from = inherited.first(span);
            loop {
                let mut found = None;
                store.scan(file::ROWS, (&bound(span, from), &[span as u8 + 1]), |key, _| {
                    found = key.get(1..5).and_then(|start| start.try_into().ok());
                    ControlFlow::Break(())
                })?;
                let Some(start) = found.map(u32::from_be_bytes) else { break };
                self.changed.lock().insert((span, start));
                from = start.saturating_add(1);
            }
        }
        Ok(())
    }

    /// Notes that rows have changed, if that has to be told to other hosts.
    pub(super) fn note_changed(&self, changed: impl Iterator<Item = (Span, u32)>) {
        if self.sharing.get().is_some() {
            self.changed.lock().extend(changed);
        }
    }

    fn part(&self, (span, start): (Span, u32)) -> Result<UsagePart, StoreError> {
        // No rows are compacted meanwhile.
        let _unwritten = self.unwritten.lock();
        let (day, hour) = (start / DAY, |start: u32| u8::try_from(start % DAY).ok());
        let values = match span {
            Span::Hour => self.value(span, start)?.map(|value| (hour(start), value)),
            Span::Day => self.value(span, start)?.map(|value| (None, value)),
        };
        let mut values: Vec<_> = values.into_iter().collect();
        if span == Span::Day {
            for hour_start in start..start.saturating_add(DAY) {
                let value = self.value(Span::Hour, hour_start)?;
                values.extend(value.map(|value| (hour(hour_start), value)));
            }
        }
        Ok(UsagePart { day, values, is_complete: span == Span::Day, start })
    }

    /// Returns what was used in a day or an hour; `None` if nothing was.
    fn value(&self, span: Span, start: u32) -> Result<Option<Vec<u8>>, StoreError> {
        let Some(store) = &self.store else { return Ok(None) };
        let (inherited, mut rows) = (self.inherited()?, Vec::new());
        let range = (&bound(span, start)[..], &bound(span, start.saturating_add(1))[..]);
        store.scan(file::ROWS, range, |key, value| {
            let row = RowKey::from_bytes(key)
                .and_then(|key| Some((inherited.without(&key, Counts::from_bytes(value))?, key)));
            rows.extend(row.map(|(counts, key)| (key.names, counts)));
            ControlFlow::Continue(())
        })?;
        Ok((!rows.is_empty()).then(|| encode(rows)))
    }

    /// Adds up what a query wants of all hosts: of this one up to now, and of others as they have
    /// told it. Blocks.
    ///
    /// # Errors
    /// If hosts do not share their usage, a store cannot be read, or the report has too many rows.
    pub fn report_all(&self, query: &UsageQuery) -> Result<UsageReport, UsageError> {
        let Sharing { name, others } = self.sharing.get().ok_or(UsageError::NotShared)?;
        let own = self.id()?;
        let (first, last) = (query.from, query.to.saturating_sub(1));
        let read = others.hosts(first / DAY, last / DAY);
        let (mut hosts, days) = read.map_err(UsageError::HostsUnavailable)?;
        let inherited = self.inherited().map_err(UsageError::from)?;
        let mut report = self.own_report(query, name, &inherited)?;
        let mut left = MAX_READ;
        for day in days {
            let hour_of_day = |start: u32| u8::try_from(start % DAY).unwrap_or_default();
            let hours = (
                if day == first / DAY { hour_of_day(first) } else { 0 },
                if day == last / DAY { hour_of_day(last) } else { 23 },
            );
            let values = others.day(day, hours, own, left);
            for HostValue { id, hour, value } in values.map_err(UsageError::HostsUnavailable)? {
                left = left.saturating_sub(value.len());
                report.host = hosts
                    .iter()
                    .find(|host| host.id == id)
                    .map_or_else(|| format!("{id:016x}"), |host| host.name.clone());
                let span = if hour.is_some() { Span::Hour } else { Span::Day };
                let start = day.saturating_mul(DAY).saturating_add(hour.unwrap_or(0).into());
                for (names, counts) in decode(&value) {
                    report.add(&RowKey { span, start, names: Arc::new(names) }, &counts)?;
                }
            }
        }
        hosts.retain(|host| host.id != own);
        hosts.push(ReportedHost { id: own, name: name.clone(), age: Duration::ZERO });
        hosts.sort_by(|one, other| (&one.name, one.age).cmp(&(&other.name, other.age)));
        // A host that began anew is one host: its latest contribution says how old its usage is.
        hosts.dedup_by(|later, first| later.name == first.name);
        report.hosts = Some(hosts);
        Ok(report)
    }
}

impl UsageQuery {
    /// Returns true if usage is added up by host.
    pub(super) fn is_by_host(&self) -> bool {
        self.by.contains(&Column::Host)
    }
}

/// Writes rows. If they are too large, those with the fewest requests are added up: for their
/// tenants, and if there are too many of these as well, for all.
fn encode(rows: Vec<(Arc<Names>, Counts)>) -> Vec<u8> {
    let mut bytes = vec![VERSION];
    let rest = write_rows(&mut bytes, rows, MAX_VALUE / 2);
    let mut tenants: HashMap<Box<str>, Counts> = HashMap::new();
    for (names, counts) in rest {
        tenants.entry(names.tenant.clone()).or_default().add(&counts);
    }
    let tenants = tenants
        .into_iter()
        .map(|(tenant, counts)| (Arc::new(Names::new(&tenant, OTHER, OTHER, OTHER)), counts));
    let rest = write_rows(&mut bytes, tenants.collect(), MAX_VALUE);
    let sum = rest.into_iter().reduce(|(names, mut sum), (_, counts)| {
        sum.add(&counts);
        (names, sum)
    });
    if let Some((_, sum)) = sum {
        write_row(&mut bytes, &Names::new(OTHER, OTHER, OTHER, OTHER), sum);
    }
    bytes
}

/// Writes rows up to a size, and returns the others: those with the fewest requests.
fn write_rows(
    bytes: &mut Vec<u8>,
    mut rows: Vec<(Arc<Names>, Counts)>,
    max: usize,
) -> Vec<(Arc<Names>, Counts)> {
    rows.sort_by_key(|(_, counts)| std::cmp::Reverse(counts.requests));
    let written = rows.iter().position(|(names, counts)| {
        let before = bytes.len();
        write_row(bytes, names, *counts);
        let is_over = bytes.len() > max;
        if is_over {
            bytes.truncate(before);
        }
        is_over
    });
    written.map_or_else(Vec::new, |written| rows.split_off(written))
}

fn write_row(bytes: &mut Vec<u8>, names: &Names, counts: Counts) {
    let (names, counts) = (names.to_bytes(), counts.to_bytes());
    // Four names of at most 200 bytes, and seven numbers.
    let length = u16::try_from(names.len() + counts.len()).unwrap_or(u16::MAX);
    bytes.extend(length.to_be_bytes());
    bytes.extend(names);
    bytes.extend(counts);
}

/// Reads what [`encode`] has written, up to what cannot be read.
fn decode(value: &[u8]) -> impl Iterator<Item = (Names, Counts)> {
    let mut rest = value.strip_prefix(&[VERSION]).unwrap_or_default();
    std::iter::from_fn(move || {
        let (length, after) = rest.split_first_chunk()?;
        let (row, after) = after.split_at_checked(u16::from_be_bytes(*length).into())?;
        rest = after;
        let (names, counts) = Names::from_bytes(row)?;
        Some((names, Counts::from_bytes(counts)))
    })
}

#[cfg(test)]
mod tests;
