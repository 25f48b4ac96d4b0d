//! The lanes of Cortex and their ids in the fleet.

use std::cell::Cell;

use pointsman_sdk::{Call, Context, LaneId};

/// A lane of Cortex.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lane {
    Orchestrator,
    Coder,
    FastRag,
    SuperReader,
    Governance,
}

impl Lane {
    pub(crate) const ALL: [Self; 5] =
        [Self::Orchestrator, Self::Coder, Self::FastRag, Self::SuperReader, Self::Governance];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Orchestrator => "orchestrator",
            Self::Coder => "coder",
            Self::FastRag => "fast_rag",
            Self::SuperReader => "super_reader",
            Self::Governance => "governance",
        }
    }

    pub(crate) fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|lane| lane.name() == name)
    }
}

/// The ids and context lengths of the lanes. Read once per topology, because reading them costs
/// more than the rest of a decision.
#[derive(Debug, Default)]
pub(crate) struct Lanes {
    topology: Cell<Option<u64>>,
    ids: Cell<[Option<LaneId>; 5]>,
    contexts: Cell<[u32; 5]>,
}

impl Lanes {
    pub(crate) fn refresh(&self, call: &Call<'_>) {
        if self.topology.replace(Some(call.context.topology)) != Some(call.context.topology) {
            self.ids.set(Lane::ALL.map(|lane| call.fleet.find(lane.name())));
            let context = |id: Option<LaneId>| {
                id.and_then(|id| call.fleet.info(id)).map_or(0, |info| info.max_context)
            };
            self.contexts.set(self.ids.get().map(context));
        }
    }

    pub(crate) fn id(&self, lane: Lane) -> Option<LaneId> {
        self.ids.get()[lane as usize]
    }

    /// Returns true if the request fits into the lane's context, or if its length is unknown.
    pub(crate) fn fits(&self, lane: Lane, context: &Context) -> bool {
        let max = u64::from(self.contexts.get()[lane as usize]);
        max == 0 || u64::from(context.prompt_tokens) + u64::from(context.max_output_tokens) <= max
    }

    /// Returns the fallback lane, if the request fits into its context.
    pub(crate) fn fallback(&self, context: &Context) -> Option<LaneId> {
        self.id(Lane::SuperReader).filter(|_| self.fits(Lane::SuperReader, context))
    }
}
