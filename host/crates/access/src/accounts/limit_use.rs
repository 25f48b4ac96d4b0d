//! What is used of a limit.

use crate::limits::{AccountId, Limit};

/// What is used of one limit of an account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LimitUse {
    /// The account that has the limit.
    pub account: AccountId,
    /// Which limit it is.
    pub limit: Limit,
    /// Its value.
    pub max: u64,
    /// What is used of it, with what requests in flight are expected to use. May exceed `max`: a
    /// limit may be lowered, and a request may use more than expected.
    pub used: u64,
    /// When nothing of it is used any more if no further request is sent, in milliseconds since
    /// 1970; `None` if nothing is used, and for limits of requests in flight.
    pub resets_unix_ms: Option<u64>,
}

impl LimitUse {
    /// Returns what is left of the limit.
    pub fn left(&self) -> u64 {
        self.max.saturating_sub(self.used)
    }

    /// Returns how much of the limit is used, in thousandths. A limit of zero is used up.
    pub fn used_permille(&self) -> u16 {
        // At most 1000, which fits.
        let permille = u128::from(self.used) * 1000 / u128::from(self.max.max(1));
        if self.max == 0 { 1000 } else { u16::try_from(permille.min(1000)).unwrap_or(1000) }
    }
}
