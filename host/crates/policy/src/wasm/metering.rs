//! The unit in which the time of calls is measured.

use std::time::Duration;

/// Fuel that a call gets for each millisecond of its deadline. Every WebAssembly instruction
/// consumes about one unit, and so does every byte of a bulk copy. A current CPU core consumes four
/// to seven million units in a millisecond of pure computation, so a call within its wall clock
/// deadline is within its fuel as well.
pub const FUEL_PER_MS: u64 = 5_000_000;

/// The unit in which the time of a call is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Metering {
    /// The wall clock: the fastest one, used for serving. The instruction at which a call is
    /// interrupted depends on the machine and its load.
    #[default]
    Wall,
    /// Fuel: each instruction consumes some, [`FUEL_PER_MS`] in a millisecond. The same call takes
    /// the same time and is interrupted at the same instruction on every machine, and NaN bit
    /// patterns are canonicalised.
    Fuel,
}

impl Metering {
    /// Converts a duration to fuel, saturating.
    pub(crate) fn fuel(time: Duration) -> u64 {
        let fuel = time.as_micros().saturating_mul(FUEL_PER_MS.into()) / 1000;
        u64::try_from(fuel).unwrap_or(u64::MAX)
    }

    /// Converts fuel to the duration that it stands for.
    pub(crate) fn time(fuel: u64) -> Duration {
        let nanos = u128::from(fuel) * 1_000_000 / u128::from(FUEL_PER_MS);
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}
