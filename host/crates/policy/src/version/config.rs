//! The configuration of a version: its identity, and the limits that follow from the operator's
//! settings and the manifest.

use std::time::Duration;

use pointsman_domain::{Allow, PolicyRef};

use crate::limits::{MAX_MEMORY_BYTES, MAX_OUTPUT_BYTES};
use crate::version::bundle::Bundle;
use crate::version::call::CallLimits;
use crate::version::runtime::Runtime;
use pointsman_spec::{MAX_DEADLINE, Settings};

/// Deadline of a call if neither the operator nor the manifest sets one.
const DEFAULT_DEADLINE: Duration = Duration::from_millis(5);
/// Default budget of a call, as a fraction of its deadline: one tenth, but at least [`MIN_BUDGET`].
const BUDGET_DIVISOR: u32 = 10;
/// Minimum default budget, several times what a compiled policy needs.
const MIN_BUDGET: Duration = Duration::from_micros(250);
/// Deadline for creating an instance, including start code and `configure`, and for hooks that do
/// not delay a request.
const BACKGROUND_DEADLINE: Duration = Duration::from_millis(50);
/// Memory of an instance, in bytes, if neither the operator nor the manifest sets a limit.
const DEFAULT_MEMORY: u64 = 64 << 20;
/// Calls after which an instance is replaced, which bounds what a leak in a guest can accumulate.
const DEFAULT_MAX_CALLS: u32 = 100_000;

/// The configuration of a version.
#[derive(Debug, Clone)]
pub(crate) struct VersionConfig {
    /// The name, and the version with the beginning of the fingerprint.
    pub(crate) reference: PolicyRef,
    /// Digest of component, manifest and settings.
    pub(crate) fingerprint: String,
    pub(crate) settings: Settings,
    pub(crate) allow: Allow,
    /// The limits of calls about a request.
    pub(crate) limits: CallLimits,
    /// The time above which a call about a request counts as slow.
    pub(crate) budget: Duration,
    /// Calls after which an instance is replaced.
    pub(crate) max_calls: u32,
    /// Instances that are created before the first call.
    pub(crate) warm_instances: usize,
    /// The argument of `configure`.
    pub(crate) config: String,
}

impl VersionConfig {
    /// Returns the configuration of the policy in `bundle` with these settings.
    pub(crate) fn new(runtime: &Runtime, bundle: &Bundle, settings: &Settings) -> Self {
        let manifest = &bundle.manifest;
        let fingerprint = bundle.fingerprint(settings);
        let version = format!("{}+{}", manifest.version, fingerprint.get(..8).unwrap_or_default());
        let requested = &manifest.limits;
        // Manifests and settings above the maximums are rejected when they are read. This also
        // bounds settings that were stored by an earlier host.
        let deadline =
            settings.deadline.or(requested.deadline).unwrap_or(DEFAULT_DEADLINE).min(MAX_DEADLINE);
        let memory =
            settings.memory.or(requested.memory).unwrap_or(DEFAULT_MEMORY).min(MAX_MEMORY_BYTES);
        Self {
            reference: PolicyRef::new(&manifest.name, &version),
            fingerprint,
            allow: manifest.allow(),
            limits: CallLimits {
                metering: runtime.engine.metering(),
                deadline,
                memory,
                output_bytes: MAX_OUTPUT_BYTES,
            },
            budget: settings
                .budget
                .or(requested.budget)
                .unwrap_or_else(|| (deadline / BUDGET_DIVISOR).max(MIN_BUDGET)),
            max_calls: requested.calls.unwrap_or(DEFAULT_MAX_CALLS).max(1),
            warm_instances: runtime.warm_instances.max(1),
            config: settings.config.to_string(),
            settings: settings.clone(),
        }
    }

    /// Returns the limits of creating an instance.
    pub(crate) fn background_limits(&self) -> CallLimits {
        CallLimits { deadline: BACKGROUND_DEADLINE, ..self.limits }
    }

    /// Returns the deadline of hooks that do not delay a request.
    pub(crate) fn background_deadline(&self) -> Duration {
        self.limits.deadline.max(BACKGROUND_DEADLINE)
    }
}
