//! Several hosts on one machine, with real Envoy, Redis and a registry.
//! `cargo xtask test --scale`.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod envoy;
mod example;
mod fleet_streams;
mod limits;
mod network;
mod operators;
mod partition;
mod peer_tls;
mod pick;
mod pick_upgrade;
mod redis;
mod registry;
mod responses;
mod shared;
mod usage;

const FAKE_ENGINE: &str = env!("CARGO_BIN_EXE_fake-engine");
