//! Attacks that take too long for every run, and the soak: `cargo xtask test --attacks`.
//!
//! The tests run one at a time, because they measure time and memory.
#![expect(clippy::unwrap_used, reason = "tests")]

mod limits;
mod policies;
mod soak;
mod traffic;

const FAKE_ENGINE: &str = env!("CARGO_BIN_EXE_fake-engine");
const CHAT: &str = "/v1/chat/completions";

/// The memory that no default configuration exceeds, whatever clients send.
const MAX_MEMORY: u64 = 512 << 20;
