//! Packages: each is built, installed and started here as far as one machine allows.
//! `cargo xtask test --packages`.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod artifacts;
mod compose;
mod debian;
mod debian_root;
mod helm;
mod image;
mod nix;
mod release;
mod support;
mod systemd;

const FAKE_ENGINE: &str = env!("CARGO_BIN_EXE_fake-engine");
