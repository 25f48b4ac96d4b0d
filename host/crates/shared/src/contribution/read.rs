//! Reads what hosts have contributed.

use redis::Value;

use super::{CALL_LIMIT, Contribution, ContributorIndex, base, commands};
use crate::direct::{Direct, DirectError};
use crate::settings::{Settings, SettingsError};

/// Reads what all hosts have contributed. Calls wait for the store, for a second at most.
#[derive(Debug)]
pub struct SharedContributions(Direct);

impl SharedContributions {
    /// Creates the reader. Does not connect.
    ///
    /// # Errors
    /// If the settings are invalid.
    pub fn new(settings: Settings) -> Result<Self, SettingsError> {
        Direct::with_limit(settings, CALL_LIMIT).map(Self)
    }

    /// Returns all hosts, and which days there are from `first` to `last`.
    ///
    /// # Errors
    /// If the store is away.
    pub async fn index(&self, first: u32, last: u32) -> Result<ContributorIndex, DirectError> {
        let command = commands::index(&base(self.0.prefix()), (first, last));
        commands::parse_index(&self.0.call(&command).await?).ok_or(DirectError::Reply)
    }

    /// Returns what all hosts but `except` have contributed to a day: to hours from the first to
    /// the last one, and what is not known by hour.
    ///
    /// # Errors
    /// If the store is away, or the values have more than `max_bytes`.
    pub async fn day(
        &self,
        day: u32,
        hours: (u8, u8),
        except: u64,
        max_bytes: usize,
    ) -> Result<Vec<Contribution>, DirectError> {
        let command = commands::day(&base(self.0.prefix()), day, hours, except, max_bytes);
        match self.0.call(&command).await? {
            Value::Int(0) => Err(DirectError::TooLarge(max_bytes)),
            reply => commands::parse_day(reply).ok_or(DirectError::Reply),
        }
    }
}
