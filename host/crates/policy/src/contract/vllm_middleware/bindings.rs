//! Generated from the WIT, which documents it.
#![allow(
    missing_docs,
    unreachable_pub,
    missing_debug_implementations,
    clippy::all,
    reason = "generated from the WIT"
)]

wasmtime::component::bindgen!({
    path: "../../../wit/vllm-router-middleware-0.1",
    world: "middleware",
    // The body is copied to the guest directly from the request.
    ownership: Borrowing { duplicate_if_necessary: true },
});
