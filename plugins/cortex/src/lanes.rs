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

/// The ids, context lengths and labels of the lanes. Read once per topology, because reading them
/// costs more than the rest of a decision.
#[derive(Debug, Default)]
pub(crate) struct Lanes {
    topology: Cell<Option<u64>>,
    ids: Cell<[Option<LaneId>; 5]>,
    contexts: Cell<[u32; 5]>,
    /// Lanes with the label `vision = "true"`: their models read images.
    vision: Cell<[bool; 5]>,
    /// Lanes with the label `tools = "true"`: their engines parse calls of tools.
    tools: Cell<[bool; 5]>,
}

impl Lanes {
    pub(crate) fn refresh(&self, call: &Call<'_>) {
        if self.topology.replace(Some(call.context.topology)) != Some(call.context.topology) {
            self.ids.set(Lane::ALL.map(|lane| call.fleet.find(lane.name())));
            let infos = self.ids.get().map(|id| id.and_then(|id| call.fleet.info(id)));
            let has = |key| {
                infos
                    .each_ref()
                    .map(|info| info.as_ref().is_some_and(|info| info.label(key) == Some("true")))
            };
            self.vision.set(has("vision"));
            self.tools.set(has("tools"));
            self.contexts.set(infos.map(|info| info.map_or(0, |info| info.max_context)));
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

    /// Returns true if the model of the lane reads images.
    pub(crate) fn sees(&self, lane: Lane) -> bool {
        self.vision.get()[lane as usize]
    }

    /// Returns true if the engine of the lane parses calls of tools.
    pub(crate) fn calls_tools(&self, lane: Lane) -> bool {
        self.tools.get()[lane as usize]
    }

    /// Returns the fallback lane of `lane`, if the request fits into its context, and if it can
    /// read what `lane` reads.
    pub(crate) fn fallback(&self, lane: Lane, context: &Context) -> Option<LaneId> {
        let other = Lane::SuperReader;
        let is_blind = context.has_media && self.sees(lane) && !self.sees(other);
        self.id(other).filter(|_| self.fits(other, context) && !is_blind)
    }
}
