//! Policies that come from registries, which needs the feature `registry`. Without it, commands and
//! configurations are read as with it, and say what is missing.

#[cfg(not(feature = "registry"))]
mod missing;
#[cfg(feature = "registry")]
mod pulled;
#[cfg(feature = "registry")]
mod sources;

#[cfg(not(feature = "registry"))]
pub(crate) use self::missing::{PolicySources, fetch, pull_for_check, push};
#[cfg(feature = "registry")]
pub(crate) use self::pulled::{fetch, pull_for_check, push};
#[cfg(feature = "registry")]
pub(crate) use self::sources::PolicySources;
