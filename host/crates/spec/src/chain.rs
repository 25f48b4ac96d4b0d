//! The chain of policies: its order, its weights, and how new versions are rolled out.

use std::path::PathBuf;
use std::time::Duration;

use pointsman_domain::{OnConflict, PolicyRef, Rejection};
use serde::{Deserialize, Serialize};

use crate::judged::JudgedOutcomes;
use crate::public_key::PublicKey;
use crate::registry::{PolicySource, RegistrySettings};
use crate::version_number::VersionNumber;

/// The effect of a failed policy call on the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnError {
    /// Continue without this policy.
    #[default]
    Skip,
    /// Use the built-in routing, as if there were no policies.
    Default,
    /// Reject the request with status 503.
    Refuse,
}

impl OnError {
    /// Returns the name in configurations.
    pub fn name(self) -> &'static str {
        match self {
            Self::Skip => "skip",
            Self::Default => "default",
            Self::Refuse => "refuse",
        }
    }

    /// Returns the rejection for [`OnError::Refuse`].
    pub fn refusal(policy: &PolicyRef) -> Rejection {
        Rejection {
            status: 503,
            code: "policy_failed".into(),
            message: format!(
                "policy `{}` failed, and its configuration does not allow requests without it",
                policy.name
            ),
            retry_after_s: Some(1),
        }
    }
}

/// The rollout of a new version while another one is active.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rollout {
    /// The new version replaces the active one immediately, on probation.
    #[default]
    Replace,
    /// The new version is evaluated in the background, and decides nothing.
    Shadow,
    /// The new version decides a share of the requests.
    Canary {
        /// The share in thousandths.
        share: u16,
        /// The key that selects the requests.
        by: CanaryBy,
    },
}

impl Rollout {
    /// Returns the name in configurations.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Replace => "replace",
            Self::Shadow => "shadow",
            Self::Canary { .. } => "canary",
        }
    }
}

/// The key that selects the requests of a canary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CanaryBy {
    /// The tenant, so that all its requests get the same version; the request id without one.
    #[default]
    Tenant,
    /// The request id.
    Request,
}

/// When a version that replaced another one, or a canary, is rolled back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probation {
    /// The duration of the probation; zero disables it.
    pub lasts: Duration,
    /// Maximum calls that may end in a fault, in thousandths. Fewer than three faults are ignored.
    pub faults: u16,
    /// Maximum calls that may exceed the budget, in thousandths, after at least fifty calls.
    pub slow: u16,
    /// The requests of the new version that stay with the version before, in thousandths. With 0,
    /// the version is not judged by outcomes.
    pub control: u16,
    /// The outcomes that may not be more frequent than with the version before.
    pub outcomes: JudgedOutcomes,
}

impl Default for Probation {
    fn default() -> Self {
        Self {
            lasts: Duration::from_secs(60),
            faults: 10,
            slow: 500,
            control: 100,
            outcomes: JudgedOutcomes::ALL,
        }
    }
}

/// The settings that distinguish versions with the same component.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// The configuration that is passed to `configure`.
    pub config: serde_json::Value,
    /// The deadline of a call.
    pub deadline: Option<Duration>,
    /// The time that a call should not exceed. Slower calls are counted, and can end a probation.
    pub budget: Option<Duration>,
    /// The maximum memory of an instance in bytes.
    pub memory: Option<u64>,
}

impl Default for Settings {
    fn default() -> Self {
        Self { config: serde_json::json!({}), deadline: None, budget: None, memory: None }
    }
}

/// The configuration of one policy.
#[derive(Debug, Clone)]
pub struct PolicySpec {
    /// The folder.
    pub dir: PathBuf,
    /// Where the version in the folder comes from; `None` if the operator fills the folder.
    pub source: Option<PolicySource>,
    /// The name, which has to be the one in the manifest.
    pub name: String,
    /// The weight of its scores, in thousandths.
    pub weight: u32,
    /// The effect of a failed call on the request.
    pub on_error: OnError,
    /// The effect of a circuit breaker that is open for all tenants; `None`: that of `on_error`.
    pub on_open: Option<OnError>,
    /// The rollout of new versions.
    pub rollout: Rollout,
    /// The limits under which new versions are rolled back.
    pub probation: Probation,
    /// The earliest version that is loaded.
    pub min_version: Option<VersionNumber>,
    /// The hosts that share its state.
    pub state: StateScope,
    /// The settings of its versions.
    pub settings: Settings,
}

impl PolicySpec {
    /// Creates the configuration of the policy in `dir` with defaults.
    pub fn new(name: &str, dir: PathBuf) -> Self {
        Self {
            dir,
            source: None,
            name: name.to_owned(),
            weight: 1000,
            on_error: OnError::default(),
            on_open: None,
            rollout: Rollout::default(),
            probation: Probation::default(),
            min_version: None,
            state: StateScope::default(),
            settings: Settings::default(),
        }
    }
}

/// The hosts that share the state of a policy.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum StateScope {
    /// Each host has a state of its own.
    #[default]
    Local,
    /// All hosts with the same store share it.
    Shared,
}

/// The configuration of a chain.
#[derive(Debug, Clone, Default)]
pub struct ChainSpec {
    /// The policies, in the order in which they are called.
    pub policies: Vec<PolicySpec>,
    /// The rule for filters that leave no lane.
    pub on_conflict: OnConflict,
    /// Maximum earlier versions that are kept of each policy.
    pub keep: usize,
    /// Names and keys of trusted signers. A signature by another key is an error.
    pub signers: Vec<(String, PublicKey)>,
    /// Whether a missing signature is an error as well.
    pub require_signature: bool,
    /// The folder of the version store, which preserves the active versions across restarts; `None`
    /// disables it.
    pub store: Option<PathBuf>,
    /// The registries with settings of their own.
    pub registries: Vec<RegistrySettings>,
}
