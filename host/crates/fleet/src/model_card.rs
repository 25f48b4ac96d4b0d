//! What is known of the model of a lane besides its names: from the configuration, and from the
//! engine itself once it has been ready.

use pointsman_domain::{EndpointSet, EngineKind, LaneInfo, LaneNames};

/// What is known of the model of a lane, for lists of models.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ModelCard {
    /// The name of the model on a hub, or the last part of its path.
    pub root: Option<String>,
    /// The kind of engine, as engines of that kind name themselves.
    pub owner: Option<String>,
    /// Maximum sequence length in tokens.
    pub context: Option<u32>,
    /// Sequence length in tokens that the model was trained with.
    pub trained_context: Option<u32>,
    /// The model calls tools, and the engine finds the calls in its output.
    pub tools: bool,
    /// The engine returns the reasoning of the model apart from its answer.
    pub reasoning: bool,
    /// The model reads images.
    pub vision: bool,
    /// The endpoints that the engine says it has.
    pub endpoints: Option<EndpointSet>,
    /// The LoRA adapters that the engine has loaded.
    pub adapters: Vec<Adapter>,
    /// What another host says of the lane, if it is one of that host.
    pub peer: Option<PeerCard>,
}

/// The names and the slots that a lane has on its host.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PeerCard {
    /// What the host calls itself; may be empty.
    pub host: String,
    /// The kind of the engine there.
    pub engine: EngineKind,
    /// The models that it lists, without virtual names.
    pub models: Vec<String>,
    /// Further names that it answers to.
    pub names: Vec<String>,
    /// Names of the engine's model.
    pub derived: Vec<String>,
    /// Maximum number of requests that may be there at a time.
    pub slots: u32,
}

impl PeerCard {
    /// Adds the names to those of the configuration, and the slots. Models that the operator wrote
    /// replace those of the other host.
    pub(crate) fn complete(&self, info: &mut LaneInfo, configured: &(Vec<String>, LaneNames)) {
        let (models, names) = configured;
        info.slots = self.slots;
        // Guards that keep requests from engines of others hold for those of another host.
        info.engine = self.engine;
        let is_default = *models == [info.name.as_str()];
        if is_default {
            info.models = united(models, &self.models);
            info.names.own = united(&names.own, &self.names);
            info.names.derived = united(&names.derived, &self.derived);
        }
    }
}

fn united(own: &[String], others: &[String]) -> Vec<String> {
    let new = others.iter().filter(|name| !own.contains(name));
    own.iter().chain(new).cloned().collect()
}

/// A LoRA adapter of an engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Adapter {
    /// Its name as a model of the engine.
    pub name: String,
    /// The adapter, like [`ModelCard::root`].
    pub root: Option<String>,
}

impl ModelCard {
    /// Returns the card with what `learned` knows in addition.
    #[must_use]
    pub fn completed(mut self, learned: &Self) -> Self {
        let Self {
            root,
            owner,
            context,
            trained_context,
            tools,
            reasoning,
            vision,
            endpoints,
            adapters,
            peer,
        } = learned;
        self.root = self.root.or_else(|| root.clone());
        self.owner = self.owner.or_else(|| owner.clone());
        self.context = self.context.or(*context);
        self.trained_context = self.trained_context.or(*trained_context);
        self.tools |= tools;
        self.reasoning |= reasoning;
        self.vision |= vision;
        self.endpoints = self.endpoints.or(*endpoints);
        self.peer = self.peer.or_else(|| peer.clone());
        for adapter in adapters {
            if self.adapters.iter().all(|known| known.name != adapter.name) {
                self.adapters.push(adapter.clone());
            }
        }
        self
    }

    /// Returns the names of the adapters.
    pub fn adapter_names(&self) -> Vec<String> {
        self.adapters.iter().map(|adapter| adapter.name.clone()).collect()
    }
}
