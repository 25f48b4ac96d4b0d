//! The validated configuration of lanes and their engines.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use pointsman_domain::dispatch::LaneSetup;
pub use pointsman_domain::dispatch::{Residency, Rules};
use pointsman_domain::{
    EndpointSet, FleetKey, LaneId, LaneInfo, LaneNames, PrefixIndex, PromptHasher, Trigger,
};
use pointsman_peers::StaleLimits;

use crate::conversations::ConversationSettings;
use crate::driver::EngineSpec;
use crate::engine_spec::NO_BACK_OFF;
use crate::memory::Pool;
use crate::process::KeeperSpec;

/// The configuration of a fleet.
#[derive(Debug, Clone)]
pub struct FleetSpec {
    /// The lanes, in the order of their ids.
    pub lanes: Vec<LaneSpec>,
    /// The groups of lanes that share memory.
    pub groups: Vec<GroupSpec>,
    /// The rules of the queue and of switching.
    pub rules: Rules,
    /// The state directory, where running engines are recorded for the next host; `None` keeps no
    /// records.
    pub state_dir: Option<PathBuf>,
    /// Whether conversations outlive the unloading of their lane, in the state directory; `None` if
    /// they do not.
    pub conversations: Option<ConversationSettings>,
    /// How engines outlive a host that is killed.
    pub keeper: KeeperSpec,
    /// Names of environment variables that hold secrets of the host. Engines do not inherit them.
    pub secret_variables: Vec<String>,
    /// The parent of `/sys` and `/proc`: `/`, except in tests.
    pub machine: PathBuf,
    /// What the hosts of a fleet have in common.
    pub peering: Peering,
}

/// What the hosts of a fleet have in common.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Peering {
    /// The name of this host for others; may be empty.
    pub name: String,
    /// The key of the hashes of prompts, which the hosts share; `None` if this host tells others
    /// nothing about the prompts that its engines have cached, and does not understand them.
    pub prompt_key: Option<FleetKey>,
    /// After which silence of another host its lanes are not used any more.
    pub stale: StaleLimits,
}

impl Peering {
    /// Creates the index of the prompts of this number of lanes.
    pub(crate) fn prefix_index(&self, lanes: usize) -> PrefixIndex {
        let hasher = self.prompt_key.as_ref().map(PromptHasher::for_fleet);
        PrefixIndex::with_hasher(lanes, hasher.unwrap_or_default())
    }
}

/// A group of lanes that share memory.
#[derive(Debug, Clone)]
pub struct GroupSpec {
    /// The name.
    pub name: String,
    /// Bytes that the lanes may hold together.
    pub budget: u64,
    /// The memory that has to be free before a load; `None` to skip that check.
    pub pool: Option<Pool>,
    /// Maximum time to wait for free memory.
    pub free_timeout: Duration,
}

/// A lane and the engine behind it.
#[derive(Debug, Clone)]
pub struct LaneSpec {
    /// The name, unique among the lanes.
    pub name: String,
    /// Model names that the lane serves.
    pub models: Vec<String>,
    /// Further names that the lane answers to.
    pub names: LaneNames,
    /// Labels for policies.
    pub labels: Vec<(String, String)>,
    /// Maximum sequence length in tokens; 0 if unknown.
    pub max_context: u32,
    /// Endpoints that the engine has; `None` if they follow from its settings, and from what it
    /// says when it is ready.
    pub endpoints: Option<EndpointSet>,
    /// Maximum number of concurrent requests.
    pub slots: u32,
    /// Index of the group; `None` for a lane that shares no memory.
    pub group: Option<usize>,
    /// Bytes of the group's memory that the loaded engine holds.
    pub need: u64,
    /// Bytes of `need` that the engine holds while asleep.
    pub asleep: u64,
    /// When the lane is loaded.
    pub residency: Residency,
    /// Expected duration of a load, until one has been measured.
    pub expected_load: Duration,
    /// Relative price of a thousand tokens.
    pub cost_milli: u32,
    /// Model name to send to the engine; `None` keeps the client's.
    pub engine_model: Option<String>,
    /// Ask the engine for the usage of streams whose clients have not, and hide it from them.
    pub stream_usage: bool,
    /// The engine.
    pub engine: EngineSpec,
    /// Statuses of the engine for which a request continues on another lane, each with the trigger
    /// that the plan has to contain.
    pub fallback_statuses: BTreeMap<u16, Trigger>,
    /// Timeouts of requests to the engine.
    pub timeouts: Timeouts,
    /// Liveness checks of the engine.
    pub liveness: Liveness,
}

/// Liveness checks, which detect an engine that hangs although `/health` passes. A zero duration
/// disables a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Liveness {
    /// The engine is restarted if it makes no progress, neither a byte nor a token, for this long
    /// while requests are in flight.
    pub stall: Duration,
    /// Interval between probes of an idle engine, each of which asks for one token.
    pub probe_interval: Duration,
    /// Maximum time for the response to a probe; the engine is restarted after two failures in a
    /// row.
    pub probe_timeout: Duration,
}

/// Timeouts of requests to an engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// Maximum time to connect.
    pub connect: Duration,
    /// Maximum time from sending a request to the first byte of the response body.
    pub first_byte: Duration,
    /// Maximum time between two chunks of a response.
    pub idle: Duration,
}

impl LaneSpec {
    /// Returns the facts about the lane that policies see.
    pub fn info(&self) -> LaneInfo {
        LaneInfo {
            id: LaneId(0),
            name: self.name.clone(),
            engine: self.engine.info().kind,
            models: self.models.clone(),
            names: self.names.clone(),
            labels: self.labels.clone(),
            max_context: self.max_context,
            endpoints: self.endpoints.unwrap_or_else(|| self.engine.endpoints()),
            slots: self.slots,
            // Policies number groups from 1; 0 means no group.
            group: self.group.and_then(|group| u32::try_from(group + 1).ok()).unwrap_or(0),
            cost_milli: self.cost_milli,
            is_peer: self.engine.is_peer(),
        }
    }

    /// Returns the dispatcher's configuration of the lane.
    pub fn setup(&self) -> LaneSetup {
        LaneSetup {
            slots: self.slots,
            group: self.group.unwrap_or(usize::MAX),
            need: self.need,
            asleep: self.asleep,
            residency: self.residency,
            expected_load: self.expected_load,
            backoff: self.engine.run().map_or(NO_BACK_OFF, |run| run.backoff),
        }
    }
}
