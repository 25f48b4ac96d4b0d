//! Several hosts on one machine, with real Envoy, Redis and a registry.
//! `cargo xtask test --scale`.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod fleet_streams;
mod envoy;
mod pick;
mod registry;
mod redis;
mod shared;

const FAKE_ENGINE: &str = env!("CARGO_BIN_EXE_fake-engine");
