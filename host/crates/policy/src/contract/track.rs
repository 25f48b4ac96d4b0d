//! The contracts by the names that manifests give them.

use crate::contract::rules;
use crate::wasm::import_rules::ImportRules;

/// A contract that manifests may name as their `api`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Track {
    V0_1,
    VllmMiddleware,
}

impl Track {
    /// All names, for messages.
    pub(crate) const NAMES: &str = "`0.1` and `vllm-router-middleware-0.1`";

    /// Returns the imports and exports of components for this track.
    pub(crate) fn rules(self) -> &'static ImportRules {
        match self {
            Self::V0_1 => &rules::POLICY,
            Self::VllmMiddleware => &rules::MIDDLEWARE,
        }
    }

    /// Returns the track with the name that manifests give as `api`.
    pub(crate) fn from_name(api: &str) -> Option<Self> {
        match api {
            "0.1" => Some(Self::V0_1),
            "vllm-router-middleware-0.1" => Some(Self::VllmMiddleware),
            _ => None,
        }
    }
}
