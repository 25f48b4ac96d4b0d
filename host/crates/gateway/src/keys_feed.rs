//! What all who watch the keys get: made once for all of them, and only when it may be another
//! text.

use std::sync::Arc;
use std::time::Duration;

use pointsman_access::KeysVersion;
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::pipeline::Pipeline;

/// Minimum time between two texts.
const INTERVAL: Duration = Duration::from_secs(1);
/// Time after the last change in which limits per minute still count less and less.
const WINDOW: Duration = Duration::from_secs(62);
/// Time after which the text is made anew in any case: periods of budgets end, and tokens expire.
const MAX_AGE: Duration = Duration::from_secs(60);

/// The last text about the keys.
#[derive(Debug, Default)]
pub(crate) struct KeysFeed(Mutex<Option<Made>>);

/// A text, and what it was made of.
#[derive(Debug)]
struct Made {
    text: Arc<str>,
    basis: Basis,
    /// When it was made.
    at: Instant,
    /// When it was looked at last whether it is still right.
    checked: Instant,
    /// When something has changed last.
    changed: Instant,
}

/// What a text depends on, beside the time.
#[derive(Debug, PartialEq)]
struct Basis {
    keys: KeysVersion,
    /// `None` if other hosts count, too: there may be a change at any time.
    counted: Option<(u64, u64)>,
}

impl Basis {
    fn new(pipeline: &Pipeline) -> Self {
        Self { keys: pipeline.keys.version(), counted: pipeline.meter.changes() }
    }

    fn is_same(&self, now: &Self) -> bool {
        self == now && now.counted.is_some()
    }
}

impl Made {
    /// Returns true if the text may be another one at `now`, and notes that this was checked.
    fn check(&mut self, basis: &Basis, now: Instant) -> bool {
        if now.duration_since(self.checked) < INTERVAL {
            return false;
        }
        self.checked = now;
        if !self.basis.is_same(basis) {
            self.changed = now;
        }
        now.duration_since(self.changed) < WINDOW || now.duration_since(self.at) >= MAX_AGE
    }
}

impl KeysFeed {
    /// Returns the text, which `make` makes on a blocking thread if need be. Texts that are the
    /// same are the same `Arc`.
    pub(crate) async fn text(
        &self,
        pipeline: &Arc<Pipeline>,
        make: impl FnOnce(&Pipeline) -> String + Send + 'static,
    ) -> Arc<str> {
        let mut last = self.0.lock().await;
        // Before the text is made, so that a change meanwhile is seen the next time.
        let (basis, now) = (Basis::new(pipeline), Instant::now());
        if let Some(made) = &mut *last
            && !made.check(&basis, now)
        {
            return Arc::clone(&made.text);
        }
        let shared = Arc::clone(pipeline);
        let made = tokio::task::spawn_blocking(move || make(&shared)).await;
        // Fails only when the host ends.
        let mut text: Arc<str> = made.unwrap_or_default().into();
        let mut changed = now;
        if let Some(before) = &*last {
            changed = before.changed;
            if before.text == text {
                text = Arc::clone(&before.text);
            }
        }
        let made = Made { text: Arc::clone(&text), basis, at: now, checked: now, changed };
        *last = Some(made);
        text
    }
}

#[cfg(test)]
mod tests {
    use pointsman_access::Keys;

    use super::*;

    fn basis(keys: &Keys, counted: Option<u64>) -> Basis {
        Basis { keys: keys.version(), counted: counted.map(|counted| (counted, 0)) }
    }

    #[tokio::test(start_paused = true)]
    async fn text_is_made_again_if_something_has_changed_or_expires() {
        let keys = Keys::default();
        let begun = Instant::now();
        let mut made = Made {
            text: "".into(),
            basis: basis(&keys, Some(1)),
            at: begun,
            checked: begun,
            changed: begun,
        };
        let at = |ms| begun + Duration::from_millis(ms);
        let same = basis(&keys, Some(1));
        assert!(!made.check(&same, at(999)), "not twice in an interval");
        assert!(made.check(&same, at(1_000)), "windows of a minute pass");
        assert!(!made.check(&basis(&keys, Some(2)), at(1_500)), "not twice in an interval");
        made.at = at(61_500);
        assert!(!made.check(&same, at(63_000)), "nothing has changed for a minute");
        assert!(made.check(&basis(&keys, Some(2)), at(64_000)));
        made.basis = basis(&keys, Some(2));
        made.at = at(190_000);
        assert!(!made.check(&basis(&keys, Some(2)), at(191_000)));
        assert!(made.check(&basis(&keys, Some(2)), at(250_000)), "periods end");
        made.at = at(400_000);
        assert!(made.check(&basis(&keys, None), at(401_000)), "other hosts count");
        keys.replace(pointsman_access::KeySet::default());
        made.at = at(600_000);
        assert!(made.check(&basis(&keys, Some(2)), at(601_000)), "other keys");
    }
}
