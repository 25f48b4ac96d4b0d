//! The last changes of the states of lanes, for operators: which lane was loaded when, and which
//! ones took turns.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::Mutex;
use pointsman_domain::LaneState;

/// Number of changes that are kept, of all lanes together.
const MAX_CHANGES: usize = 512;

/// A change of the state of a lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaneTransition {
    /// When the state changed.
    pub time: SystemTime,
    /// The name of the lane.
    pub lane: Arc<str>,
    /// The state from then on.
    pub state: LaneState,
}

/// The last changes of all lanes. Clones share the list.
#[derive(Debug, Clone, Default)]
pub(crate) struct LaneHistory(Arc<Mutex<VecDeque<LaneTransition>>>);

impl LaneHistory {
    /// Notes that a lane has another state now.
    pub(crate) fn push(&self, lane: &Arc<str>, state: LaneState) {
        let change = LaneTransition { time: SystemTime::now(), lane: Arc::clone(lane), state };
        let mut changes = self.0.lock();
        if changes.len() == MAX_CHANGES {
            changes.pop_front();
        }
        changes.push_back(change);
    }

    /// Returns the changes, oldest first.
    pub(crate) fn list(&self) -> Vec<LaneTransition> {
        self.0.lock().iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn oldest_changes_make_room_for_new_ones() {
        let (history, lane) = (LaneHistory::default(), Arc::from("a"));
        history.push(&lane, LaneState::Starting);
        (0..MAX_CHANGES).for_each(|_| history.push(&lane, LaneState::Ready));
        let changes = history.list();
        assert_eq!(changes.len(), MAX_CHANGES);
        assert!(changes.iter().all(|change| change.state == LaneState::Ready));
    }
}
