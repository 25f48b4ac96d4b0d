//! Fields of a request's body that are the operator's: they order an engine's queue, choose its
//! slots, caches and adapters, or name what the host names. A client could get ahead of others with
//! them, evict what they have cached, or read it.

/// The fields, with the engine that reads them. Policies may set any of them.
pub(crate) const FIELDS: [&str; 13] = [
    // vLLM: orders the queue; lower is earlier.
    "priority",
    // vLLM: separates prefix caches.
    "cache_salt",
    // vLLM: moves key-value caches and encoder caches between servers.
    "kv_transfer_params",
    "ec_transfer_params",
    // vLLM: the id of the request, which the host chooses.
    "request_id",
    // vLLM: the engine of a data-parallel deployment.
    "data_parallel_rank",
    "session_id",
    // llama.cpp: the slot, and with it the cache of another conversation.
    "id_slot",
    "slot_id",
    // llama.cpp: adapters, and the reuse of cached tokens.
    "lora",
    "n_cache_reuse",
    // vLLM's older name of an adapter.
    "lora_request",
    // Ollama: how long the model stays loaded.
    "keep_alive",
];

/// Returns true if a field of a body is the operator's.
pub(crate) fn is_operators(field: &str) -> bool {
    FIELDS.contains(&field)
}
