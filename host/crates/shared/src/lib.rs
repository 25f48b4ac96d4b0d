//! State that hosts share in Redis or Valkey: counters and values that are used without waiting.
//!
//! ```text
//!   add, put, get ──> memory of this host ──thread, every 50 ms──> one round trip: a script for
//!                          ▲                                       each bucket of keys
//!                          └───────── totals and newer values ─────────┘
//! ```
//!
//! A caller never waits for the store, and an unavailable store refuses nothing: changes are kept,
//! and merged once it is back.
//!
//! **Counters.** Each replica has a field of its own in a counter, which is its whole contribution
//! and not a difference. So a round that is sent again counts once, and a store that has lost its
//! data gets it back from the replicas that are running. If a counter has ended or was removed
//! meanwhile, only what was not confirmed before is added to the one that follows.
//!
//! **Values.** The last writer wins, by a timestamp that never goes back at a replica. A removal
//! is a write, which is remembered for an hour.
//!
//! **Direct values** are those of which one host is the owner: single commands, for which a caller
//! waits, half a second at most.
//!
//! **Contributions** are what hosts have counted by day and of budgets: absolute values that
//! outlive the hosts, and that a host writes again if the store has lost them.
//!
//! **Rounds.** The store remembers the number of the last round of each replica. A round that was
//! given up and is executed late, after a later one, changes nothing.

mod backoff;
mod batch;
mod bucket;
mod connection;
mod contribution;
mod counter;
mod direct;
mod entry;
mod namespace;
mod overshoot;
mod presence;
mod probe;
mod replica;
mod replicator;
mod script;
mod settings;
mod stamp;
mod status;
mod usage;
mod value;
mod worker;

pub use self::contribution::{
    BudgetPart, Contribution, ContributionWriter, Contributor, ContributorIndex, CopyRole, DayPart,
    SharedContributions, Written,
};
pub use self::direct::{Direct, DirectError};
pub use self::entry::{Entry, EntryValue};
pub use self::namespace::Namespace;
pub use self::overshoot::overshoot;
pub use self::probe::{ProbeError, StoreProbe, probe};
pub use self::replicator::{Replicator, StartError};
pub use self::settings::{Settings, SettingsError};
pub use self::status::Status;
pub use pointsman_spec::SharedAddress;

#[cfg(test)]
mod tests;
