//! Packages: each is built, installed and started here as far as one machine allows.
//! `cargo xtask test --packages`.
