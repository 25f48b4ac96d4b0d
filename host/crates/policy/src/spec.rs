//! What the operator says about policies.

use std::path::PathBuf;
use std::time::Duration;

use pointsman_domain::{OnConflict, PolicyRef, Rejection};
use serde::{Deserialize, Serialize};

use crate::signature::PublicKey;

/// What happens to a request when the policy gives no advice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnError {
    /// Go on without this policy.
    #[default]
    Skip,
    /// The built-in rule decides, as if no policy had been asked.
    Default,
    /// Refuse the request with 503.
    Refuse,
}

impl OnError {
    /// Its name in configurations.
    pub fn name(self) -> &'static str {
        match self {
            Self::Skip => "skip",
            Self::Default => "default",
            Self::Refuse => "refuse",
        }
    }

    /// What clients are told under [`OnError::Refuse`] when this policy gives no advice.
    pub fn refusal(policy: &PolicyRef) -> Rejection {
        Rejection {
            status: 503,
            code: "policy_failed".into(),
            message: format!(
                "The policy `{}` failed, and the operator wants no request served without it.",
                policy.name
            ),
            retry_after_s: Some(1),
        }
    }
}

/// How a new version of a policy that is in service begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rollout {
    /// It replaces the old one at once, on probation.
    #[default]
    Replace,
    /// It is asked beside the old one, off the way of the requests, and decides nothing.
    Shadow,
    /// It decides for a share of the requests.
    Canary {
        /// In thousandths.
        share: u16,
        /// What is hashed: all requests of a tenant get the same version, or each request by itself.
        by: CanaryBy,
    },
}

impl Rollout {
    /// Its name in configurations.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Replace => "replace",
            Self::Shadow => "shadow",
            Self::Canary { .. } => "canary",
        }
    }
}

/// What decides whether a request is one of the canary's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CanaryBy {
    /// Its tenant; its id, where there is none.
    #[default]
    Tenant,
    /// Its id.
    Request,
}

/// When a version that has just replaced another one is taken back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probation {
    /// How long it is watched; zero: not at all.
    pub lasts: Duration,
    /// Calls that may end in a fault, in thousandths. Fewer than three faults never count.
    pub faults: u16,
    /// Calls that may take longer than the policy's budget, in thousandths, of at least fifty.
    pub slow: u16,
}

impl Default for Probation {
    fn default() -> Self {
        Self { lasts: Duration::from_secs(60), faults: 10, slow: 500 }
    }
}

/// What makes one version with the same component another one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// Its configuration, for `configure`.
    pub config: serde_json::Value,
    /// Deadline of a call.
    pub deadline: Option<Duration>,
    /// What a call should take at most; more is counted, and ends a probation.
    pub budget: Option<Duration>,
    /// Bytes of memory of an instance.
    pub memory: Option<u64>,
}

impl Default for Settings {
    fn default() -> Self {
        Self { config: serde_json::json!({}), deadline: None, budget: None, memory: None }
    }
}

/// What the operator says about one policy.
#[derive(Debug, Clone)]
pub struct PolicySpec {
    /// Its folder.
    pub dir: PathBuf,
    /// Its name, which the manifest has to confirm.
    pub name: String,
    /// Weight of its scores, in thousandths.
    pub weight: u32,
    /// What happens when it gives no advice.
    pub on_error: OnError,
    /// How new versions begin.
    pub rollout: Rollout,
    /// When new versions are taken back.
    pub probation: Probation,
    /// What its versions are made with.
    pub settings: Settings,
}

impl PolicySpec {
    /// The policy in `dir` with all defaults.
    pub fn new(name: &str, dir: PathBuf) -> Self {
        Self {
            dir,
            name: name.to_owned(),
            weight: 1000,
            on_error: OnError::default(),
            rollout: Rollout::default(),
            probation: Probation::default(),
            settings: Settings::default(),
        }
    }
}

/// The chain as the operator wants it.
#[derive(Debug, Clone, Default)]
pub struct ChainSpec {
    /// The policies, in the order in which they are asked.
    pub policies: Vec<PolicySpec>,
    /// When their filters leave no lane.
    pub on_conflict: OnConflict,
    /// Earlier versions that are kept of each policy.
    pub keep: usize,
    /// Names and keys of those whose signatures count. A signature that is none of theirs is a mistake.
    pub signers: Vec<(String, PublicKey)>,
    /// A policy without a signature is one, too.
    pub require_signature: bool,
    /// Where versions are kept, so that a restart finds what was in service; `None`: nowhere.
    pub store: Option<PathBuf>,
}
