//! The operator's configuration.

use pointsman_sdk::{PolicyError, config};

#[derive(Debug, Clone)]
pub(crate) struct Config {
    /// Keep prompts with one beginning on one lane; else only load counts.
    pub(crate) affinity: bool,
    /// Bytes of one block of a prompt's beginning.
    pub(crate) block_bytes: u32,
    /// Blocks that are looked at.
    pub(crate) blocks: u32,
    /// Blocks that decide where a beginning goes that nobody has seen.
    pub(crate) home_blocks: u32,
    /// How much busier than the idlest lane the one with the cache may be, in thousandths of its slots.
    pub(crate) slack: u32,
    /// How long it is remembered where a prompt went.
    pub(crate) remember_ms: u32,
    /// Tokens in a lane's cache, by the host's own estimate, from which on that counts.
    pub(crate) cached_tokens: u32,
}

impl Config {
    pub(crate) fn parse(json: &str) -> Result<Self, PolicyError> {
        let mut config = Self {
            affinity: true,
            block_bytes: 256,
            blocks: 128,
            home_blocks: 4,
            slack: 500,
            remember_ms: 600_000,
            cached_tokens: 64,
        };
        config::read(json, |key, value| {
            match key {
                "affinity" => config.affinity = value.flag()?,
                "block-bytes" => config.block_bytes = value.number(16..=65_536)?,
                "blocks" => config.blocks = value.number(1..=1024)?,
                "home-blocks" => config.home_blocks = value.number(1..=1024)?,
                "slack-permille" => config.slack = value.number(0..=10_000)?,
                "remember-s" => config.remember_ms = value.number(1..=24 * 60 * 60u32)? * 1000,
                "cached-tokens" => config.cached_tokens = value.number(1..=1_000_000)?,
                _ => return Err(value.unknown()),
            }
            Ok(())
        })?;
        if config.home_blocks > config.blocks {
            return Err(PolicyError::InvalidConfig(format!(
                "home-blocks: {} are more than the {} blocks that are looked at",
                config.home_blocks, config.blocks
            )));
        }
        Ok(config)
    }
}
