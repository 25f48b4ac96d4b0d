//! The states of policies, for the host and its operators.

use std::sync::Arc;

use crate::contract::shared_state::StateSharing;
use crate::contract::state_backing::{StateBacking, StateBackingError, StateEntry};
use crate::contract::state_store::StateSummary;
use crate::registry::policies::Policies;

impl Policies {
    /// Makes the states of policies durable, and restores those of an earlier process. Call it
    /// before the first request is decided. Blocks.
    pub fn attach_state(&self, backing: Arc<dyn StateBacking>) {
        self.runtime.states.attach(backing);
    }

    /// Lets policies share their states with other hosts, as far as they are configured so. Call it
    /// before the first policy is loaded.
    pub fn share_state(&self, sharing: Arc<dyn StateSharing>) {
        self.runtime.states.share(sharing);
    }

    /// Saves what has changed in the states since the last call, and returns the number of changed
    /// entries. Blocks; calls of policies do not wait for it.
    ///
    /// # Errors
    /// If it cannot be saved; it is saved by a later call then.
    pub fn save_state(&self) -> Result<usize, StateBackingError> {
        self.runtime.states.save()
    }

    /// Returns the states of all policies, by name; also those that an earlier process has left for
    /// policies that are not configured now. Blocks.
    ///
    /// # Errors
    /// If what the earlier process has left cannot be read.
    pub fn states(&self) -> Result<Vec<StateSummary>, StateBackingError> {
        self.runtime.states.summaries()
    }

    /// Returns the entries in the state of a policy, by key; `None` if it has no state. Blocks.
    ///
    /// # Errors
    /// If what an earlier process has left cannot be read.
    pub fn state_entries(
        &self,
        policy: &str,
    ) -> Result<Option<Vec<StateEntry>>, StateBackingError> {
        let Some(state) = self.runtime.states.find(policy)? else { return Ok(None) };
        let mut entries = state.entries();
        entries.sort_unstable_by(|one, other| one.key.cmp(&other.key));
        Ok(Some(entries))
    }

    /// Removes an entry in the state of a policy, or all of them, and returns their number; `None`
    /// if it has no state. Blocks.
    ///
    /// # Errors
    /// If what an earlier process has left cannot be read.
    pub fn clear_state(
        &self,
        policy: &str,
        key: Option<&str>,
    ) -> Result<Option<usize>, StateBackingError> {
        let Some(state) = self.runtime.states.find(policy)? else { return Ok(None) };
        Ok(Some(match key {
            None => {
                let count = state.entries().len();
                state.clear();
                count
            }
            Some(key) => {
                let count = usize::from(state.get(key).is_some());
                state.delete(key);
                count
            }
        }))
    }
}
