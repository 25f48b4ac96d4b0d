//! Other hosts that share their usage.

use std::time::Duration;

/// A host that has contributed to a report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReportedHost {
    /// The id of what it has stored. A host that began anew has another one.
    pub id: u64,
    /// Its name. Several ids may have the same.
    pub name: String,
    /// Time since it has told its usage last.
    pub age: Duration,
}

/// What a host has used in a day or an hour.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostValue {
    /// The id of the host.
    pub id: u64,
    /// The hour from 0 to 23; `None` for what is not known by hour.
    pub hour: Option<u8>,
    /// The value of a `UsagePart` of that host.
    pub value: Vec<u8>,
}

/// The usage of other hosts in the store that all of them share. Calls block, for a bounded time.
pub trait OtherHosts: std::fmt::Debug + Send + Sync {
    /// Returns all hosts that have contributed, and the days that have usage from the first to the
    /// last one, in days since 1970.
    ///
    /// # Errors
    /// If the store is away, with the reason.
    fn hosts(&self, first: u32, last: u32) -> Result<(Vec<ReportedHost>, Vec<u32>), String>;

    /// Returns what all hosts but `except` have used on a day, from the first to the last hour. It
    /// has at most `max_bytes`.
    ///
    /// # Errors
    /// If the store is away, or has more, with the reason.
    fn day(
        &self,
        day: u32,
        hours: (u8, u8),
        except: u64,
        max_bytes: usize,
    ) -> Result<Vec<HostValue>, String>;
}
