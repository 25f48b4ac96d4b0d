//! Cortex's lanes, and their places in the fleet.

use std::cell::Cell;

use pointsman_sdk::{Call, Context, LaneId};

/// One of Cortex's lanes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lane {
    Orchestrator,
    Coder,
    FastRag,
    SuperReader,
    Governance,
}

impl Lane {
    const ALL: [Self; 5] =
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

    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|lane| lane.name() == name)
    }
}

/// Where the lanes are in the fleet. Asked for once per topology, because asking costs more than all the rest.
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

    /// Does the request fit into the lane's context, as far as that is known?
    pub(crate) fn fits(&self, lane: Lane, context: &Context) -> bool {
        let most = u64::from(self.contexts.get()[lane as usize]);
        most == 0 || u64::from(context.prompt_tokens) + u64::from(context.max_output_tokens) <= most
    }

    /// The lane to fall back to, if the request fits into it.
    pub(crate) fn reserve(&self, context: &Context) -> Option<LaneId> {
        self.id(Lane::SuperReader).filter(|_| self.fits(Lane::SuperReader, context))
    }
}
