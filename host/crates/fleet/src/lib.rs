//! Lanes and their engines: engine processes, the queue in front of each lane, and the connection
//! to its engine.
//!
//! ```text
//!   Fleet::acquire ──> actor ──────────> Lease ──send──> engine
//!                        ▲ │  one task owns all lane state
//!                 events │ │ commands
//!                        │ ▼
//!                      supervisor (one per engine): admit memory, start, probe, watch, sleep, stop
//! ```

mod activity;
mod actor;
mod adoption;
mod content_encoding;
mod conversations;
mod diagnosis;
mod driver;
pub mod drivers;
mod engine_log;
mod engine_spec;
mod external;
mod external_address;
mod failures;
mod fetch;
mod fleet;
mod footprint;
mod handover;
pub mod hardware;
mod health;
mod history;
mod hub_cache;
mod lane_config;
mod launch;
mod launch_memory;
mod learning;
mod lease;
mod loading;
mod mailbox;
mod manual;
mod measurements;
mod memory;
mod memory_admission;
mod memory_estimate;
mod message;
mod metrics;
mod model_card;
mod model_need;
mod page_cache;
mod peer_lane;
mod peers;
mod post;
mod predecessor;
mod probing;
mod proc_stat;
mod process;
mod progress;
mod proof;
mod proxied;
mod proxied_body;
mod reconfigure;
mod request_body;
mod scrape;
mod sleeping;
mod spec;
mod status;
mod supervisor;
mod switches;
mod tls;
mod upstream;
mod upstream_api;

pub use self::content_encoding::{ContentEncoding, DecodedBody, UnsupportedEncoding, decode};
pub use self::conversations::{
    ConversationPrompt, ConversationSettings, ConversationStatus, Conversations,
    ErasedConversations, Owner,
};
pub use self::diagnosis::{Diagnosis, diagnose};
pub use self::driver::{
    ANY_NAME, Description, DriverInfo, EngineConfig, EngineSpec, LaneBasics, LaneContext,
    LaneDefaults,
};
pub use self::drivers::external::{ExternalSpec, UrlError};
pub use self::drivers::pointsman::{read_host, read_queue_there};
pub use self::drivers::{DRIVERS, vllm};
pub use self::engine_log::{EngineLog, EngineLogLine};
pub use self::engine_spec::{Backoff, CommandLine, ProcessSpec, Secret, UnloadMode};
pub use self::external_address::ExternalAddress;
pub use self::failures::{FAILURES, FailureKind};
pub use self::fetch::{FetchError, FetchUrl, FetchUrlError, Fetcher};
pub use self::fleet::{Fleet, FleetTasks};
pub use self::footprint::{
    CacheType, Extra, Footprint, FootprintError, Serving, estimate_footprint, format_size,
};
pub use self::handover::{
    ForeignRequest, PausedFleet, PausedRequests, Refusal, SlotMessage, SlotReply, Successor,
};
pub use self::history::LaneTransition;
pub use self::hub_cache::hub_snapshot;
pub use self::launch_memory::DeviceMemory;
pub use self::lease::Lease;
pub use self::measurements::{GroupMemory, LaneMemory, MemoryReport};
pub use self::memory::{Gpu, Holder, Machine, Pool};
pub use self::memory_estimate::{MemoryComparison, MemoryEstimate};
pub use self::metrics::FleetMetrics;
pub use self::model_card::{Adapter, ModelCard};
pub use self::model_need::{ExtraSpec, Model, Remedies};
pub use self::peers::{
    Peer, PeerCallError, PeerEndpoint, PeerLaneStatus, PeerMetrics, PeerProbe, PeerProbeError,
    Peers, probe_peer,
};
pub use self::post::{PostError, Posted, Poster, ServiceUrl, ServiceUrlError};
pub use self::predecessor::Predecessor;
pub use self::process::{
    AdoptableEngine, AfterCrash, Frame, FrameReceiver, KeeperSpec, OutgoingFrame, StateDir,
    StateDirError, keeper_main,
};
pub use self::proxied::{
    ProxiedRequest, ProxiedResponse, ProxyAttempt, ProxyExchange, ProxySide, Proxying,
};
pub use self::proxied_body::{ProxiedBody, ProxiedSender, ProxyGone, proxied_body};
pub use self::reconfigure::LaneChange;
pub use self::request_body::{RequestBody, Segment};
pub use self::spec::{
    FleetSpec, GroupSpec, LaneSpec, Liveness, Peering, Residency, Rules, Timeouts,
};
pub use self::status::{LaneStatus, ManualStatus};
pub use self::switches::{FinishedSwitch, LoadCause};
pub use self::tls::https_connector;
pub use self::upstream::{EngineBody, EngineError};
pub use pointsman_peers::StaleLimits;

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod reconfigure_tests;
#[cfg(test)]
mod span_tests;
#[cfg(test)]
mod tests;
