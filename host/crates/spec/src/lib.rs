//! The configuration of policies as data: what `settings` reads and `policy` carries out.
//!
//! It is a crate of its own so that reading a configuration does not link a WebAssembly engine.

mod chain;
pub mod encoding;
mod hook;
mod judged;
mod limits;
mod public_key;
mod version_number;

pub use self::chain::{CanaryBy, ChainSpec, OnError, PolicySpec, Probation, Rollout, Settings};
pub use self::hook::Hook;
pub use self::judged::{JudgedOutcome, JudgedOutcomes};
pub use self::limits::{LimitError, MAX_DEADLINE, MAX_MEMORY_BYTES, check_deadline, check_memory};
pub use self::public_key::{KeyError, PublicKey, PublicKeyError};
pub use self::version_number::{VersionNumber, VersionNumberError};
