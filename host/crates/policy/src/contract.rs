//! The contracts between the host and its guests: linking, the host calls that a guest can make,
//! and the hooks that the host calls. Versions of policies are not known here.

pub(crate) mod captured_log;
pub(crate) mod encoded_bytes;
pub(crate) mod guarded_api;
pub(crate) mod guest;
pub(crate) mod host_api;
pub(crate) mod host_call_log;
pub(crate) mod host_call_mode;
pub(crate) mod host_state;
pub(crate) mod journal;
pub(crate) mod journal_api;
pub(crate) mod live_api;
pub(crate) mod replay_log;
pub(crate) mod rules;
pub(crate) mod shared;
pub(crate) mod shared_state;
pub(crate) mod state;
pub(crate) mod state_backing;
pub(crate) mod state_store;
pub(crate) mod text_search;
pub(crate) mod track;
pub(crate) mod types;
mod v0_1;
mod vllm_middleware;
mod wasi;
pub(crate) mod wasi_state;
