//! What the operator says about saved conversations.

use std::time::Duration;

/// Whether and how conversations outlive the unloading of their lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConversationSettings {
    /// Maximum size of all files.
    pub max_bytes: u64,
    /// Maximum time since a file was saved or restored.
    pub max_age: Duration,
    /// Conversations with fewer tokens are not saved: reading them again takes no longer.
    pub min_tokens: u32,
    /// Maximum time that a lane takes to save its conversations before its engine is stopped.
    pub save_timeout: Duration,
    /// A tenant's request may begin with what was saved for another tenant.
    pub share_tenants: bool,
}

impl Default for ConversationSettings {
    fn default() -> Self {
        Self {
            max_bytes: 8 << 30,
            max_age: Duration::from_secs(24 * 3600),
            min_tokens: 256,
            save_timeout: Duration::from_secs(10),
            share_tenants: false,
        }
    }
}
