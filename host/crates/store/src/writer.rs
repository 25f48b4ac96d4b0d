//! The thread that writes: it commits what is queued, one transaction for all that waits.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use crate::disk::{self, Change};
use crate::error::StoreError;
use crate::foreign::{ForeignChange, to_text};
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
    // While another process is taking the file, it is not known yet who writes.
    let waits = |state: &State| {
        let is_released = shared.is_released.load(Ordering::Acquire);
        state.queue.is_empty() || (is_released && state.successor.is_none())
    };
    while waits(&state) {
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
    if forward(shared, changes) {
        return Ok(());
    }
    let opened = shared.usable()?;
    let result = disk::apply(&opened, &shared.namespaces, changes);
    if result.is_err() {
        shared.failed(&opened);
    }
    result
}

/// Passes on changes. Returns false if they are not to be passed on.
fn forward(shared: &Shared, changes: &[Change]) -> bool {
    let Some(successor) = shared.lock().successor.clone() else { return false };
    for Change { space, key, new, .. } in changes {
        let namespace = shared.namespaces[*space].name.to_owned();
        let new = new.as_ref().map(|(entry, value)| (entry.owner, to_text(value)));
        successor.write(ForeignChange { namespace, key: to_text(key), new });
    }
    true
}
