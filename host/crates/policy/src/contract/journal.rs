//! Journals of host calls: what is done with the live result of a host call.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// A host call: the function, as named in the contract, and its arguments.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct HostCall {
    pub(crate) function: &'static str,
    pub(crate) args: Vec<Value>,
}

/// A journal decides which result the guest gets, and keeps it.
pub(crate) trait Journal {
    /// Returns the result of a host call whose live result is `live`.
    fn resolve<T: Serialize + DeserializeOwned>(&mut self, host_call: HostCall, live: T) -> T;
}
