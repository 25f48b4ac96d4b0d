//! The states of all policies of a process.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::contract::state::State;

/// The states by the names of the policies, so that a new version inherits the state of the
/// previous one.
#[derive(Debug, Default)]
pub(crate) struct StateStore(Mutex<HashMap<String, Arc<State>>>);

impl StateStore {
    /// Returns the state of a policy, which all its versions share.
    pub(crate) fn state_of(&self, policy: &str) -> Arc<State> {
        let mut states = self.0.lock();
        Arc::clone(states.entry(policy.to_owned()).or_default())
    }
}
