//! The states of all policies of a process.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use pointsman_spec::StateScope;

use crate::contract::shared_state::StateSharing;
use crate::contract::state::State;
use crate::contract::state_backing::{StateBacking, StateBackingError, StateChanges, StateEntry};

/// The states by the names of the policies, so that a new version inherits the state of the
/// previous one. Once they have a backing, they are durable.
#[derive(Debug, Default)]
pub(crate) struct StateStore {
    states: Mutex<HashMap<String, Arc<State>>>,
    backing: OnceLock<Arc<dyn StateBacking>>,
    sharing: OnceLock<Arc<dyn StateSharing>>,
    /// The policies whose states are shared.
    shared: Mutex<HashSet<String>>,
    /// Held while changes are saved: an earlier value must not be written after a later one.
    saving: Mutex<()>,
}

/// The state of a policy, for operators.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateSummary {
    /// The policy.
    pub policy: String,
    /// False if the host has the state of an earlier process only, and no policy of this name.
    pub is_loaded: bool,
    /// Changes are saved.
    pub is_durable: bool,
    /// Number of entries.
    pub entries: usize,
    /// Bytes of keys and values.
    pub bytes: usize,
}

impl StateStore {
    /// Returns the state of a policy, which all its versions share. May read it from where it is
    /// kept. Its scope then counts until the process ends.
    pub(crate) fn state_of(&self, policy: &str) -> Arc<State> {
        let mut states = self.states.lock();
        if let Some(state) = states.get(policy) {
            return Arc::clone(state);
        }
        let is_shared = self.shared.lock().contains(policy);
        let sharing = self.sharing.get().filter(|_| is_shared);
        let state = match sharing {
            Some(sharing) => Arc::new(State::shared(sharing.open(policy))),
            None => Arc::default(),
        };
        if let (Some(backing), None) = (self.backing.get(), sharing) {
            restore(&**backing, policy, &state);
        }
        states.insert(policy.to_owned(), Arc::clone(&state));
        state
    }

    /// Notes the scope of a policy whose state is created later.
    pub(crate) fn set_scope(&self, policy: &str, scope: StateScope) {
        let mut shared = self.shared.lock();
        match scope {
            StateScope::Shared => shared.insert(policy.to_owned()),
            StateScope::Local => shared.remove(policy),
        };
    }

    /// Makes the states durable, and restores those of an earlier process. Blocks.
    pub(crate) fn attach(&self, backing: Arc<dyn StateBacking>) {
        // Locked, so that no state is created without what the backing has of it.
        let states = self.states.lock();
        let backing = self.backing.get_or_init(|| backing);
        let own = states.iter().filter(|(_, state)| !state.is_shared());
        own.for_each(|(policy, state)| restore(&**backing, policy, state));
    }

    /// Lets policies that are loaded from now on, and have that scope, share their states with
    /// other hosts.
    pub(crate) fn share(&self, sharing: Arc<dyn StateSharing>) {
        // Only the first one counts: a host has one store.
        self.sharing.get_or_init(|| sharing);
    }

    /// Saves what has changed since the last call, and returns the number of changed entries.
    /// Blocks.
    ///
    /// # Errors
    /// If it cannot be saved; it is saved by a later call then.
    pub(crate) fn save(&self) -> Result<usize, StateBackingError> {
        let Some(backing) = self.backing.get() else { return Ok(0) };
        let _saving = self.saving.lock();
        let states: Vec<(String, Arc<State>)> = {
            let states = self.states.lock();
            states.iter().map(|(policy, state)| (policy.clone(), Arc::clone(state))).collect()
        };
        let (mut sources, mut changes) = (Vec::new(), Vec::new());
        for (policy, state) in states {
            if let Some(changed) = state.take_changes() {
                changes.push(StateChanges { policy, ..changed });
                sources.push(state);
            }
        }
        if changes.is_empty() {
            return Ok(0);
        }
        let saved = backing.save(&changes);
        if saved.is_err() {
            sources.iter().zip(&changes).for_each(|(state, changes)| state.mark_again(changes));
        }
        saved.map(|()| changes.iter().map(|of| of.entries.len() + of.removed.len()).sum())
    }

    /// Returns the states of all policies, also of those that only the backing has.
    pub(crate) fn summaries(&self) -> Result<Vec<StateSummary>, StateBackingError> {
        let stored = self.backing.get().map_or(Ok(Vec::new()), |backing| backing.policies())?;
        let loaded: Vec<String> = self.states.lock().keys().cloned().collect();
        let names: BTreeSet<String> = stored.into_iter().chain(loaded).collect();
        let summary = |policy: String| {
            let state = self.states.lock().get(&policy).cloned();
            let entries = match (&state, self.backing.get()) {
                (Some(state), _) => state.entries(),
                (None, Some(backing)) => backing.load(&policy)?,
                (None, None) => Vec::new(),
            };
            Ok(StateSummary {
                policy,
                is_loaded: state.is_some(),
                is_durable: state.is_none_or(|state| state.is_durable()),
                entries: entries.len(),
                bytes: entries.iter().map(StateEntry::size).sum(),
            })
        };
        names.into_iter().map(summary).collect()
    }

    /// Returns the state of a policy that has one, for operators.
    pub(crate) fn find(&self, policy: &str) -> Result<Option<Arc<State>>, StateBackingError> {
        if let Some(state) = self.states.lock().get(policy) {
            return Ok(Some(Arc::clone(state)));
        }
        let stored = self.backing.get().map_or(Ok(Vec::new()), |backing| backing.policies())?;
        Ok(stored.iter().any(|name| name == policy).then(|| self.state_of(policy)))
    }
}

/// The state of a policy without the policy, for benchmarks.
#[derive(Debug)]
#[doc(hidden)]
pub struct StateBench(StateStore, Arc<State>);

impl StateBench {
    /// Creates a state, which is durable with a backing.
    pub fn new(backing: Option<Arc<dyn StateBacking>>) -> Self {
        let states = StateStore::default();
        backing.into_iter().for_each(|backing| states.attach(backing));
        let state = states.state_of("bench");
        Self(states, state)
    }

    /// Adds 1 to a counter.
    pub fn increment(&self, key: &str) -> i64 {
        self.1.increment(key.to_owned(), 1, 3_600_000).unwrap_or_default()
    }

    /// Stores a value.
    pub fn put(&self, key: &str, value: &[u8]) {
        // Fails for what is too long only.
        self.1.put(key.to_owned(), value, 0).ok();
    }

    /// Saves what has changed.
    ///
    /// # Errors
    /// That of the backing.
    pub fn save(&self) -> Result<usize, StateBackingError> {
        self.0.save()
    }
}

/// Restores a state. One that cannot be read begins empty and stays in memory, so that what the
/// backing has of it is not mixed with what is new.
fn restore(backing: &dyn StateBacking, policy: &str, state: &State) {
    match backing.load(policy) {
        Ok(entries) => state.restore(entries),
        Err(error) => tracing::error!(
            event = "policy_state_not_restored",
            policy,
            error = %error,
            "the state of the policy begins empty, and is not kept over a restart"
        ),
    }
}

#[cfg(test)]
mod shared_tests;
#[cfg(test)]
mod tests;
