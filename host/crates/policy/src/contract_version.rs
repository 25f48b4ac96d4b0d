//! The contract of policies that this host implements.

/// The package whose interfaces a policy may import and must export.
pub(crate) const PACKAGE: &str = "pointsman:policy/";
/// The version of the contract that this host implements. Policies for an older 0.1.x are supported
/// too.
pub(crate) const VERSION: &str = "0.1.3";
