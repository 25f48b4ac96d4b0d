//! The configuration of the policy.

use pointsman_sdk::{PolicyError, config};

#[derive(Debug, Clone)]
pub(crate) struct Config {
    /// Whether prompts with the same prefix are kept on one lane; otherwise only load counts.
    pub(crate) affinity: bool,
    /// Bytes per block of a prompt's prefix.
    pub(crate) block_bytes: u32,
    /// Maximum number of blocks of a prefix.
    pub(crate) max_blocks: u32,
    /// Number of blocks that are hashed to choose the lane of an unknown prefix.
    pub(crate) hash_blocks: u32,
    /// How much more load than the least loaded lane the preferred lane may have, in thousandths of
    /// its slots.
    pub(crate) slack: u32,
    /// How long the lane of a prefix is remembered.
    pub(crate) prefix_ttl_ms: u32,
    /// Minimum number of cached tokens, as estimated by the host, for a lane to be preferred.
    pub(crate) min_cached_tokens: u32,
}

impl Config {
    pub(crate) fn parse(json: &str) -> Result<Self, PolicyError> {
        let mut config = Self {
            affinity: true,
            block_bytes: 256,
            max_blocks: 128,
            hash_blocks: 4,
            slack: 500,
            prefix_ttl_ms: 600_000,
            min_cached_tokens: 64,
        };
        config::read(json, |key, value| {
            match key {
                "affinity" => config.affinity = value.bool()?,
                "block-bytes" => config.block_bytes = value.integer(16..=65_536)?,
                "max-blocks" => config.max_blocks = value.integer(1..=1024)?,
                "hash-blocks" => config.hash_blocks = value.integer(1..=1024)?,
                "slack-permille" => config.slack = value.integer(0..=10_000)?,
                "prefix-ttl-s" => config.prefix_ttl_ms = value.integer(1..=24 * 60 * 60u32)? * 1000,
                "min-cached-tokens" => config.min_cached_tokens = value.integer(1..=1_000_000)?,
                _ => return Err(value.unknown_key()),
            }
            Ok(())
        })?;
        if config.hash_blocks > config.max_blocks {
            return Err(PolicyError::InvalidConfig(format!(
                "hash-blocks: {} exceeds `max-blocks` ({})",
                config.hash_blocks, config.max_blocks
            )));
        }
        Ok(config)
    }
}
