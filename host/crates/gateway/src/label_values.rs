//! Values of labels. Of those that come from outside: a bounded number of them, and `other`.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use parking_lot::RwLock;
use pointsman_domain::RequestResult;

/// The value of a label for everything beyond the bound.
const OTHER: &str = "other";

/// The first values of a label, and what is kept for each of them.
#[derive(Debug)]
pub(crate) struct LabelValues<T> {
    max: usize,
    values: RwLock<HashMap<Box<str>, Arc<T>>>,
    other: OnceLock<Arc<T>>,
}

impl<T: From<String>> LabelValues<T> {
    /// Creates an empty set that accepts at most `max` values.
    pub(crate) fn new(max: usize) -> Self {
        Self { max, values: RwLock::default(), other: OnceLock::new() }
    }

    /// Returns what is kept for `value` if it is one of the first values, and for `other`
    /// otherwise. It is made of the value of the label when it is first needed.
    pub(crate) fn get(&self, value: &str) -> Arc<T> {
        {
            let values = self.values.read();
            if let Some(kept) = values.get(value) {
                return Arc::clone(kept);
            }
            if values.len() >= self.max {
                return self.other();
            }
        }
        let mut values = self.values.write();
        // Another thread may have added the last one.
        if values.len() >= self.max && !values.contains_key(value) {
            return self.other();
        }
        let kept = values.entry(value.into()).or_insert_with(|| Arc::new(value.to_owned().into()));
        Arc::clone(kept)
    }

    fn other(&self) -> Arc<T> {
        Arc::clone(self.other.get_or_init(|| Arc::new(OTHER.to_owned().into())))
    }
}

/// Returns the value of the label `outcome`. For a client, a rejection is an error.
pub(crate) fn outcome_label(result: RequestResult) -> &'static str {
    match result {
        RequestResult::Answered => "answered",
        RequestResult::FellBack => "fell-back",
        RequestResult::Rejected | RequestResult::Error => "error",
        RequestResult::ClientGone => "client-gone",
    }
}
