//! A chain that decides like the one in service and has no effects, for previews of decisions.

use std::sync::Arc;

use pointsman_domain::Facts;

use crate::chain::Chain;
use crate::chain::link::Link;

impl Chain {
    /// Returns a chain of the versions that decide about a request, each with a copy of its state.
    /// It has no shadows and counts in no trials.
    pub(super) fn preview(&self, facts: &Facts) -> Self {
        let links = self.links.iter().map(|link| link.preview(facts)).collect();
        Self::new(links, self.on_conflict, None)
    }
}

impl Link {
    fn preview(&self, facts: &Facts) -> Self {
        let deciding = self.deciding(facts).map(|version| Arc::new(version.preview()));
        Self {
            name: self.name.clone(),
            weight: self.weight,
            on_error: self.on_error,
            on_open: self.on_open,
            active: deciding.map_err(Clone::clone),
            candidate: None,
            baselines: Vec::new(),
        }
    }
}
