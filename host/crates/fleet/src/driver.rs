//! What differs between kinds of engines. Each kind is one folder in `drivers`.
//!
//! ```text
//!   DRIVERS ──key──> DriverInfo ──read [lanes.engine]──> EngineConfig ──> EngineSpec of a lane
//! ```

use std::any::Any;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use pointsman_domain::{Endpoint, EndpointSet, EngineKind};
use pointsman_settings::Section;

use crate::activity::Activity;
use crate::conversations::Session;
use crate::engine_spec::{CommandLine, PeerLaneSpec, ProcessSpec, Secret, UnloadMode};
use crate::external_address::ExternalAddress;
use crate::launch::{HOST, Launch};
use crate::launch_memory::LaunchMemory;
use crate::memory::Pool;
use crate::memory_estimate::MemoryEstimate;
use crate::model_card::ModelCard;
use crate::model_need::Model;
use crate::progress::Evidence;
use crate::proof::Reuse;
use crate::scrape::EngineMetrics;
use crate::tls::TrustedRoots;

/// The path of the API, unless an external engine has another one.
pub(crate) const API_PATH: &str = "/v1";

/// The address of an engine.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    /// Connect with TLS.
    pub(crate) https: bool,
    /// Host and port.
    pub(crate) authority: String,
    /// Prefix of every path outside the API.
    pub(crate) base_path: String,
    /// The path of the API, which takes the place of `/v1`.
    pub(crate) api_path: String,
    /// Bearer token.
    pub(crate) key: Option<Secret>,
    /// The engine orders its own queue by `X-Vllm-Priority`, lower first (engines.md section 1.3).
    pub(crate) priorities: bool,
    /// The host does not run the engine.
    pub(crate) external: bool,
    /// The engine is another host, which is told what it has to know of requests.
    pub(crate) peer: bool,
    /// The requests in flight at this start of the engine.
    pub(crate) activity: Arc<Activity>,
    /// The conversations in its slots, if they are saved and restored.
    pub(crate) conversations: Option<Arc<Session>>,
}

impl Target {
    /// Returns where a path is at the engine, in two parts.
    pub(crate) fn path<'a>(&'a self, path: &'a str) -> (&'a str, &'a str) {
        let in_api = path.strip_prefix(API_PATH).filter(|rest| rest.starts_with('/'));
        match in_api {
            Some(rest) => (&self.api_path, rest),
            None => (&self.base_path, path),
        }
    }

    /// Returns the port of an engine that the host runs.
    pub(crate) fn port(&self) -> Option<u16> {
        let port = self.authority.rsplit_once(':').map(|(_, port)| port.parse());
        port.filter(|_| !self.external)?.ok()
    }

    /// Returns the address of an engine that the host started on `port`.
    pub(crate) fn local(port: u16) -> Self {
        Self {
            https: false,
            authority: format!("{HOST}:{port}"),
            base_path: String::new(),
            api_path: API_PATH.to_owned(),
            key: None,
            priorities: false,
            external: false,
            peer: false,
            activity: Arc::default(),
            conversations: None,
        }
    }
}

/// The endpoints of an engine of which nothing is known but that it has OpenAI's API: chat and
/// completions, and all that the host only passes on. What such an engine lacks of these, it says
/// itself; the endpoints of other APIs are translated.
pub(crate) const OPENAI_API: [Endpoint; 16] = [
    Endpoint::ChatCompletions,
    Endpoint::Completions,
    Endpoint::Embeddings,
    Endpoint::Rerank,
    Endpoint::Score,
    Endpoint::Classify,
    Endpoint::Pooling,
    Endpoint::Tokenize,
    Endpoint::Detokenize,
    Endpoint::Moderations,
    Endpoint::ImageGenerations,
    Endpoint::ImageEdits,
    Endpoint::ImageVariations,
    Endpoint::Transcriptions,
    Endpoint::Translations,
    Endpoint::Speech,
];

/// A prepared start of an engine.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) launch: Launch,
    /// Messages for the log.
    pub(crate) warnings: Vec<String>,
}

/// An endpoint with metrics: a path, and the parser of its responses.
pub(crate) type MetricsSource = (&'static str, fn(&[u8]) -> EngineMetrics);

/// The engine of one lane: its settings, and what differs between kinds of engines.
pub(crate) trait Driver: Any + fmt::Debug + Send + Sync {
    /// Returns what the driver declares.
    fn info(&self) -> &'static DriverInfo;
    /// Returns how the host runs the engine, or `None` for an external one.
    fn run(&self) -> Option<&ProcessSpec>;
    /// Returns true if the other driver is of the same kind and has the same settings: see
    /// [`is_equal`].
    fn equals(&self, other: &dyn Driver) -> bool;
    /// Prepares to start the engine of a lane on `port`.
    fn prepare(&self, lane: &str, port: u16) -> Prepared;
    /// Returns the address of an engine that was started on `port`.
    fn target(&self, port: u16) -> Target {
        Target::local(port)
    }
    /// Returns the lane of another host; `None` for an engine.
    fn peer(&self) -> Option<&PeerLaneSpec> {
        None
    }
    /// Returns the readiness paths. The first one that exists decides: a 2xx status means ready.
    fn ready_paths(&self) -> Vec<&str>;
    /// Returns true if an engine that has none of these paths may be ready all the same: it
    /// responds, but is known to lack paths that others have.
    fn ready_paths_are_optional(&self) -> bool {
        false
    }
    /// Returns the endpoints with metrics.
    fn metrics_sources(&self) -> &'static [MetricsSource] {
        &[]
    }
    /// Returns what silence and computing mean for the engine.
    fn progress_evidence(&self) -> Evidence {
        Evidence { prompts: false, counters: false, computing: true }
    }
    /// Returns the interval between readiness probes of an external engine; zero for one that the
    /// host starts, whose end its supervisor notices.
    fn probe_interval(&self) -> Duration {
        Duration::ZERO
    }
    /// Returns whether a connection to the engine is used for several requests.
    fn reuse(&self) -> Reuse {
        Reuse::Never
    }
    /// Returns the roots that the engine's certificate is verified against, or `None` without TLS.
    fn trusted_roots(&self) -> Option<TrustedRoots<'_>> {
        None
    }
    /// Returns true if the slots of the engine can be saved and restored: its command line has the
    /// placeholder of the folder for that.
    fn keeps_conversations(&self) -> bool {
        false
    }
    /// Returns how the engine frees its memory for other lanes.
    fn strategy(&self) -> UnloadMode {
        UnloadMode::Restart
    }
    /// Returns the model name for the host's own requests.
    fn model<'a>(&'a self, lane: &'a str) -> &'a str {
        lane
    }
    /// Returns what the settings say about the model.
    fn card(&self) -> ModelCard {
        ModelCard::default()
    }
    /// Returns the endpoints that the engine has by its settings and its model's files, or is
    /// assumed to have. What the engine says itself once it is ready replaces them.
    fn endpoints(&self) -> EndpointSet {
        EndpointSet::new(OPENAI_API)
    }
    /// Limits the engine's KV cache, if it takes all free memory without a limit.
    fn limit_kv_cache(&mut self, _bytes: u64) {}
    /// Adds to a prepared launch how much memory the engine may take, and returns the reason for
    /// the log. `None` if there is nothing to add.
    fn fit(&self, _launch: &mut Launch, _memory: &LaunchMemory) -> Option<String> {
        None
    }
    /// Returns the memory that was computed from the model's files, if it was.
    fn estimate(&self) -> Option<MemoryEstimate> {
        None
    }
    /// Keeps the memory that was computed from the model's files.
    fn set_estimate(&mut self, _estimate: MemoryEstimate) {}
    /// Returns the files that the engine reads its weights from, as far as they are on this
    /// machine.
    fn weights(&self) -> Vec<PathBuf> {
        Vec::new()
    }
    /// Describes how the engine is started, and warns of settings that do not fit the lane.
    fn describe(&self, lane: &LaneContext<'_>) -> Description;
}

/// Returns true if two drivers are of the same type, and are equal.
pub(crate) fn is_equal<D: Driver + PartialEq>(one: &D, other: &dyn Driver) -> bool {
    let other: &dyn Any = other;
    other.downcast_ref::<D>() == Some(one)
}

/// A driver as the configuration knows it: what an entry of the list of drivers declares.
#[derive(Debug)]
pub struct DriverInfo {
    /// The value of `driver` in `[lanes.engine]`.
    pub key: &'static str,
    /// What it is for, if the key does not say it.
    pub purpose: Option<&'static str>,
    /// The kind of engine that policies see. The contract is frozen: a kind that it does not have
    /// is `Other`.
    pub kind: EngineKind,
    /// The defaults of the lane's keys.
    pub defaults: LaneDefaults,
    /// Reads `[lanes.engine]`. Returns `None` only if an error was reported.
    pub(crate) read: fn(&Section<'_>, &LaneBasics<'_>) -> Option<EngineConfig>,
}

impl DriverInfo {
    /// Reads `[lanes.engine]`, whose `driver` has been read already, and reports unknown keys.
    /// Returns `None` only if an error was reported.
    pub fn read(&self, section: &Section<'_>, lane: &LaneBasics<'_>) -> Option<EngineConfig> {
        let engine = (self.read)(section, lane);
        section.report_unknown();
        engine
    }
}

/// Defaults of keys of a lane that depend on its driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LaneDefaults {
    /// The host starts and stops the engine.
    pub is_managed: bool,
    /// The engine is a lane of another host.
    pub is_peer: bool,
    /// Expected duration of a load, until one has been measured.
    pub expected_load: Duration,
    /// Maximum time without progress while requests are in flight; zero disables the check.
    pub stall: Duration,
    /// Interval between probes of an idle engine; zero disables them.
    pub probe_interval: Duration,
}

impl LaneDefaults {
    /// The defaults of an engine that the host starts.
    pub const MANAGED: Self = Self {
        is_managed: true,
        is_peer: false,
        expected_load: Duration::from_secs(10),
        stall: Duration::from_secs(120),
        probe_interval: Duration::ZERO,
    };
}

/// The properties of a lane that its engine depends on.
#[derive(Debug)]
pub struct LaneBasics<'a> {
    /// The folder of the configuration, which paths are relative to.
    pub folder: &'a Path,
    /// The name of the lane.
    pub name: String,
    /// The model names that the lane serves.
    pub models: Vec<String>,
    /// Maximum sequence length in tokens; 0 if unknown.
    pub max_context: u32,
    /// Maximum number of concurrent requests.
    pub slots: u32,
    /// Conversations outlive the unloading of the lane, if its engine can save them.
    pub conversations: bool,
}

/// An entry in an engine's names that stands for further, unknown names.
pub const ANY_NAME: &str = "*";

/// An engine as it was read from the configuration, with the properties that its lane takes over.
#[derive(Debug)]
pub struct EngineConfig {
    pub(crate) driver: Box<dyn Driver>,
    /// Maximum sequence length in tokens; 0 if unknown.
    pub max_context: u32,
    /// The model names that the engine serves, its own first; empty if the engine ignores the name.
    pub names: Vec<String>,
    /// Names by which clients may know the engine's model.
    pub derived_names: Vec<String>,
    /// The model files that the memory need is computed from.
    pub model: Option<Model>,
}

impl EngineConfig {
    /// Creates an engine about whose model nothing is known.
    pub(crate) fn new(driver: impl Driver) -> Self {
        Self {
            driver: Box::new(driver),
            max_context: 0,
            names: Vec::new(),
            derived_names: Vec::new(),
            model: None,
        }
    }

    /// Returns how the engine frees its memory for other lanes.
    pub fn strategy(&self) -> UnloadMode {
        self.driver.strategy()
    }

    /// Returns what the settings say about the model.
    pub fn card(&self) -> ModelCard {
        self.driver.card()
    }

    /// Returns true if the host starts and stops the engine.
    pub fn is_managed(&self) -> bool {
        self.driver.info().defaults.is_managed
    }

    /// Limits the engine's KV cache, if it takes all free memory without a limit.
    pub fn limit_kv_cache(&mut self, bytes: u64) {
        self.driver.limit_kv_cache(bytes);
    }

    /// Keeps the memory that was computed from the model's files, to compare it with what the
    /// engine reports.
    pub fn set_estimate(&mut self, estimate: MemoryEstimate) {
        self.driver.set_estimate(estimate);
    }

    /// Returns the engine of the lane.
    pub fn into_spec(self) -> EngineSpec {
        EngineSpec(self.driver.into())
    }
}

/// The lane around an engine, for its description.
#[derive(Debug)]
pub struct LaneContext<'a> {
    /// Bytes of the group's memory that the loaded engine holds.
    pub need: u64,
    /// The memory pool of the lane's group.
    pub pool: Option<Pool>,
    /// The size of that pool on this machine in bytes, if known.
    pub pool_total: Option<u64>,
    /// The environment that engines inherit.
    pub environment: &'a [(String, String)],
}

/// How an engine is started.
#[derive(Debug, Default)]
pub struct Description {
    /// The command line and the variables that are set; `None` for an external engine.
    pub command: Option<CommandLine>,
    /// Settings that work but are not advisable.
    pub warnings: Vec<String>,
}

/// The engine of a lane. Clones share the settings.
#[derive(Debug, Clone)]
pub struct EngineSpec(pub(crate) Arc<dyn Driver>);

impl EngineSpec {
    /// Returns what the engine's driver declares.
    pub fn info(&self) -> &'static DriverInfo {
        self.0.info()
    }

    /// Returns how the host runs the engine, or `None` for an external one.
    pub fn run(&self) -> Option<&ProcessSpec> {
        self.0.run()
    }

    /// Returns what the settings say about the model.
    pub fn card(&self) -> ModelCard {
        self.0.card()
    }

    /// Returns the endpoints that the engine has by its settings and its model's files, or is
    /// assumed to have.
    pub fn endpoints(&self) -> EndpointSet {
        self.0.endpoints()
    }

    /// Returns where an engine is that the host does not run; `None` for one that it runs.
    pub fn external_address(&self) -> Option<ExternalAddress> {
        if self.run().is_some() {
            return None;
        }
        let Target { https, authority, base_path, api_path, key, priorities, .. } =
            self.0.target(0);
        Some(ExternalAddress { authority, https, base_path, api_path, key, priorities })
    }

    /// Returns true if the lane is one of another host.
    pub fn is_peer(&self) -> bool {
        self.0.peer().is_some()
    }

    /// Returns the interval between readiness probes of an external engine.
    pub(crate) fn probe_interval(&self) -> Duration {
        self.0.probe_interval()
    }

    /// Describes how the engine is started, and warns of settings that do not fit the lane.
    pub fn describe(&self, lane: &LaneContext<'_>) -> Description {
        self.0.describe(lane)
    }

    /// Returns the settings of an engine whose driver is `D`, for example
    /// [`Vllm`](crate::vllm::Vllm).
    pub fn downcast_ref<D: Any>(&self) -> Option<&D> {
        let driver: &dyn Any = &*self.0;
        driver.downcast_ref()
    }
}
