//! The thread that writes: it commits what is queued, one transaction for all that waits.

use std::sync::{Arc, PoisonError};

use crate::disk::{self, Change};
use crate::error::StoreError;
use crate::namespace::Loss;
use crate::shared::{Shared, State};

/// Maximum number of changes in a transaction, which bounds its memory.
const MAX_CHANGES: usize = 1024;

/// Removals that are kept to be repeated after a failure: what was deleted must not come back.
const MAX_REPEATED: usize = 10_000;

/// Writes until the store is closed and nothing is queued.
pub(crate) fn run(shared: &Arc<Shared>) {
    let mut repeated: Vec<Change> = Vec::new();
    while let Some((mut changes, last)) = next(shared) {
        let fresh = changes.len();
        // Before the others: one of them may be a new entry with the same key.
        changes.splice(0..0, std::mem::take(&mut repeated));
        let result = write(shared, &changes);
        let mut state = shared.lock();
        for change in changes.iter().skip(changes.len() - fresh) {
            settle(&mut state, change, result.is_err());
        }
        state.written = last;
        let puts = changes.iter().filter(|change| change.new.is_some()).count() as u64;
        if result.is_err() {
            state.lost += puts;
            let removals = changes.into_iter().filter(|change| change.new.is_none());
            repeated = removals.take(MAX_REPEATED).collect();
        }
        drop(state);
        shared.written.notify_all();
        if let Err(error) = &result {
            (shared.on_loss)(Loss { writes: puts, error });
        }
    }
}

/// Waits for changes, and takes some of them. `None` if the store is closed.
fn next(shared: &Shared) -> Option<(Vec<Change>, u64)> {
    let mut state = shared.lock();
    while state.queue.is_empty() {
        if state.is_closing {
            return None;
        }
        state = shared.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
    }
    let count = state.queue.len().min(MAX_CHANGES);
    let changes: Vec<Change> = state.queue.drain(..count).collect();
    let last = changes.last().map_or(state.written, |change| change.number);
    Some((changes, last))
}

/// Notes that a change was written, or lost.
fn settle(state: &mut State, change: &Change, is_lost: bool) {
    let Change { space, number, key, new } = change;
    let key = (*space, key.clone());
    if state.pending.get(&key).is_some_and(|pending| pending.number == *number)
        && let Some(pending) = state.pending.remove(&key)
    {
        state.pending_bytes =
            state.pending_bytes.saturating_sub(pending.value.map_or(0, |value| value.len()));
    }
    if is_lost && new.is_some() {
        state.spaces[*space].forget(&key.1, *number);
    }
}

/// Applies the changes.
fn write(shared: &Shared, changes: &[Change]) -> Result<(), StoreError> {
    let opened = shared.usable()?;
    let result = disk::apply(&opened, &shared.namespaces, changes);
    if result.is_err() {
        shared.failed(&opened);
    }
    result
}
