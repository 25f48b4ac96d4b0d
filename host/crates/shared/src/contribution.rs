//! What each host has counted, as absolute values that outlive the host: by day, and of budgets.
//!
//! ```text
//!   {PREFIX:usage}:hosts   a field for each host: mark of its last write, time, name
//!   {PREFIX:usage}:days    the days that have a hash
//!   {PREFIX:usage}:d:DAY   fields HOST:HOUR, and HOST:d for what is not known by hour
//!   {PREFIX:usage}:b:NAME  of a budget: a field for each host
//! ```
//!
//! A host writes all of an hour and not a difference, so that a write that is repeated counts once.
//! Each write leaves a mark with the values, in one script. A host that finds another mark than its
//! last one writes everything again: the store has lost data, or has executed a write late that was
//! given up. All keys are in one slot of a cluster, so that the mark is lost with the values.
//!
//! A mark that is always that of another process is one of a second host with the same id: see
//! `contribution/rival.rs`.

mod commands;
mod read;
mod rival;

use std::time::{Duration, Instant};

use redis::{Cmd, Value};

use self::commands::{Before, Mark};
pub use self::read::SharedContributions;
pub use self::rival::CopyRole;
use self::rival::{Sighting, Sightings};
use crate::direct::{Direct, DirectError};
use crate::replica::random;
use crate::settings::{Settings, SettingsError};

/// Maximum time of a call, which may have a MiB of values.
const CALL_LIMIT: Duration = Duration::from_secs(1);

/// All that is kept of hosts at a time. One more removes that which was silent for longest.
pub(crate) const MAX_HOSTS: usize = 2048;

/// What a host contributes to a day.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DayPart {
    /// The day, in days since 1970.
    pub day: u32,
    /// Values of hours from 0 to 23; `None` for what is not known by hour.
    pub values: Vec<(Option<u8>, Vec<u8>)>,
    /// True if the host has contributed nothing else to the day.
    pub is_complete: bool,
}

/// What a host has used of a budget: counts that never become less.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BudgetPart {
    /// The budget and its period: a name that all hosts have for it.
    pub name: String,
    /// The counts, which are less than 2⁵³.
    pub used: [u64; 3],
    /// For how long the store keeps the budget, at least.
    pub keep: Duration,
}

/// A host that has contributed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contributor {
    /// Its id.
    pub id: u64,
    /// Its name, for people.
    pub name: String,
    /// Time since it has written last, by the clock of the store.
    pub age: Duration,
}

/// Who has contributed, and to which days.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ContributorIndex {
    /// All hosts.
    pub hosts: Vec<Contributor>,
    /// Days since 1970, in their order.
    pub days: Vec<u32>,
}

/// What a host has contributed to a day or an hour.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contribution {
    /// The id of the host.
    pub id: u64,
    /// The hour from 0 to 23; `None` for what is not known by hour.
    pub hour: Option<u8>,
    /// What it has written.
    pub value: Vec<u8>,
}

/// What a write has found in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Written {
    /// All that was written before.
    Known,
    /// Not all of it, as at the first write of a process: all has to be written again.
    Unknown,
    /// The writes of another process with the same id, which is running.
    Copied {
        /// The name of the host of that process.
        name: String,
        /// What this process has to do.
        role: CopyRole,
    },
}

/// Writes what one host contributes. There must be one of a host at a time.
#[derive(Debug)]
pub struct ContributionWriter {
    direct: Direct,
    id: u64,
    name: String,
    started: Instant,
    /// The process, the number of its last write, and when it began.
    mark: Mark,
    /// The number of the last write that was confirmed; 0 if none was.
    confirmed: u64,
    others: Sightings,
}

impl ContributionWriter {
    /// Creates a writer. Does not connect. `id` is that of what the host has stored: a host that
    /// begins anew has another one. `name` is for people.
    ///
    /// # Errors
    /// If the settings are invalid.
    pub fn new(settings: Settings, id: u64, name: &str) -> Result<Self, SettingsError> {
        Ok(Self {
            direct: Direct::with_limit(settings, CALL_LIMIT)?,
            id,
            name: name.to_owned(),
            started: Instant::now(),
            mark: Mark { process: random(), number: 0, began: None },
            confirmed: 0,
            others: Sightings::default(),
        })
    }

    /// Writes parts, and that the host is there. The store keeps them for `keep` after the end of
    /// the day. Returns what the store had of the host before.
    ///
    /// # Errors
    /// If the store is away. The parts have to be written again.
    pub async fn write(
        &mut self,
        parts: &[DayPart],
        keep: Duration,
    ) -> Result<Written, DirectError> {
        self.mark.number += 1;
        let (base, mark) = (base(self.direct.prefix()), (self.mark, self.started.elapsed()));
        let command = commands::write(&base, (self.id, &self.name), mark, parts, keep);
        let reply = self.direct.call(&command).await?;
        let (before, began) = commands::parse_write(&reply).ok_or(DirectError::Reply)?;
        let written = self.compare(before);
        self.mark.began = Some(began);
        self.confirmed = self.mark.number;
        Ok(written)
    }

    /// Compares what was there before a write with what this process has written.
    fn compare(&mut self, before: Option<Before>) -> Written {
        let Some(Before { mark: found, name }) = before else { return Written::Unknown };
        let is_own = found.process == self.mark.process && found.number < self.mark.number;
        if is_own && found.number >= self.confirmed {
            return Written::Known;
        }
        // A process finds the mark of the one before it at first.
        if is_own || self.confirmed == 0 {
            return Written::Unknown;
        }
        match self.others.note(self.mark, found) {
            Sighting::Unclear => Written::Unknown,
            Sighting::Running(role) => Written::Copied { name, role },
        }
    }

    /// Removes what was written with this id, for the process that has it as well: that writes all
    /// again when it finds nothing.
    ///
    /// # Errors
    /// If the store is away.
    pub async fn leave(self) -> Result<(), DirectError> {
        let base = base(self.direct.prefix());
        let index = self.direct.call(&commands::index(&base, (0, u32::MAX))).await?;
        let days = commands::parse_index(&index).ok_or(DirectError::Reply)?.days;
        self.direct.call(&commands::leave(&base, self.id, &days)).await.map(drop)
    }

    /// Writes what this host has used of budgets, and returns what all others have used of each,
    /// in the same order.
    ///
    /// # Errors
    /// If the store is away.
    pub async fn write_budgets(
        &mut self,
        parts: &[BudgetPart],
    ) -> Result<Vec<[u64; 3]>, DirectError> {
        if parts.is_empty() {
            return Ok(Vec::new());
        }
        let command = commands::write_budgets(&base(self.direct.prefix()), self.id, parts);
        let reply = self.direct.call(&command).await?;
        let sums = commands::parse_budgets(&reply).filter(|sums| sums.len() == parts.len());
        sums.ok_or(DirectError::Reply)
    }
}

/// Returns the command that reads which hosts have contributed, for [`contributors`].
pub(crate) fn hosts_command(prefix: &str) -> Cmd {
    commands::index(&base(prefix), (0, 0))
}

/// Returns the hosts that have contributed; none if the reply is not one of the command.
pub(crate) fn contributors(reply: &Value) -> Vec<Contributor> {
    commands::parse_index(reply).unwrap_or_default().hosts
}

/// Returns the prefix of all keys. Braces: those with the same text in them are in the same slot.
fn base(prefix: &str) -> String {
    format!("{{{prefix}:usage}}")
}
