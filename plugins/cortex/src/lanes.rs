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
    reserve_context: Cell<u32>,
}

impl Lanes {
    pub(crate) fn refresh(&self, call: &Call<'_>) {
        if self.topology.replace(Some(call.context.topology)) != Some(call.context.topology) {
            self.ids.set(Lane::ALL.map(|lane| call.fleet.find(lane.name())));
            let reserve = self.id(Lane::SuperReader).and_then(|id| call.fleet.info(id));
            self.reserve_context.set(reserve.map_or(0, |info| info.max_context));
        }
    }

    pub(crate) fn id(&self, lane: Lane) -> Option<LaneId> {
        self.ids.get()[lane as usize]
    }

    /// The lane to fall back to, if the request fits into it.
    pub(crate) fn reserve(&self, context: &Context) -> Option<LaneId> {
        let most = u64::from(self.reserve_context.get());
        let needs = u64::from(context.prompt_tokens) + u64::from(context.max_output_tokens);
        self.id(Lane::SuperReader).filter(|_| most == 0 || needs <= most)
    }
}
