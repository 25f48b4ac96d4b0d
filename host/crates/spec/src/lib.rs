//! Configuration as data: what `settings` and `config` read, and `policy`, `registry` and `shared`
//! carry out.
//!
//! It is a crate of its own so that reading a configuration links neither a WebAssembly engine nor
//! the client of a shared store.

mod chain;
pub mod encoding;
mod hook;
mod judged;
mod limits;
mod oci_reference;
mod public_key;
mod registry;
mod shared_address;
mod version_number;

pub use self::chain::{
    CanaryBy, ChainSpec, OnError, PolicySpec, Probation, Rollout, Settings, StateScope,
};
pub use self::hook::Hook;
pub use self::judged::{JudgedOutcome, JudgedOutcomes};
pub use self::limits::{LimitError, MAX_DEADLINE, MAX_MEMORY_BYTES, check_deadline, check_memory};
pub use self::oci_reference::{
    OciDigest, OciReference, OciVersion, ReferenceError, is_registry_host,
};
pub use self::public_key::{KeyError, PublicKey, PublicKeyError};
pub use self::registry::{PolicySource, RegistryCredentials, RegistrySettings, SourceProblem};
pub use self::shared_address::SharedAddress;
pub use self::version_number::{VersionNumber, VersionNumberError};
