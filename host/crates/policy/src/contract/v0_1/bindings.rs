//! Generated from the WIT, which documents it.
#![allow(
    missing_docs,
    unreachable_pub,
    missing_debug_implementations,
    clippy::all,
    reason = "generated from the WIT, which documents it"
)]

wasmtime::component::bindgen!({
    path: "../../../wit/0.1",
    world: "policy",
    // A host call ends the call of a guest that has exceeded its limits.
    imports: { default: trappable },
});
