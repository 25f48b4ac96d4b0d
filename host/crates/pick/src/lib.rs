//! The endpoint picker: policies for Envoy, by its external processing (`ext_proc`), as the
//! endpoint picker protocol of the Gateway API Inference Extension defines it.
//!
//! ```text
//!   Envoy ──request──> stream ──begin──> Backend (the gateway)
//!         <─endpoints─        <─ProxySide:  what is sent, and where
//!         ──response─>        ──ProxySide─> what the engine responded
//!         <─response──        <──────────── the client's response
//! ```
//!
//! This crate speaks the protocol. What is decided about a request, and what follows from its
//! response, is the [`Backend`]'s, which serves it as if the host had sent it to the engine.

mod backend;
mod headers;
mod lingering;
mod message;
mod metrics;
mod mode;
mod service;
mod stream;

pub use self::backend::{Backend, BodyError, Exchange, ResponseBody, ServedResponse};
pub use self::metrics::PickMetrics;
pub use self::service::{Limits, Shutdown, serve};

#[cfg(test)]
mod tests;
