//! State that several hosts share in Redis: `[shared-state]` of the configuration.
//!
//! Without the cargo feature `shared-state`, the section is read and checked as with it, and
//! `serve` and `check` say which feature is missing.

#[cfg(feature = "shared-state")]
mod hosts;
#[cfg(feature = "shared-state")]
mod metrics;
#[cfg(feature = "shared-state")]
mod policies;
#[cfg(feature = "shared-state")]
mod status;
#[cfg(feature = "shared-state")]
mod usage;

use anyhow::Result;
use pointsman_access::{Limit, MinuteLimit};
use pointsman_config::SharedState as Config;
use pointsman_gateway::StatusPart;
use pointsman_report::table::clean;
use prometheus_client::registry::Registry;

#[cfg(not(feature = "shared-state"))]
pub(crate) use self::disabled::SharedStates;
#[cfg(feature = "shared-state")]
pub(crate) use self::enabled::SharedStates;

/// The program lacks what the configuration needs.
#[cfg(not(feature = "shared-state"))]
#[derive(Debug, thiserror::Error)]
#[error(
    "[shared-state] needs a host that was built with the cargo feature `shared-state` \
     [feature_missing]"
)]
pub(crate) struct FeatureMissing;

/// Connects to the store in the background, if the configuration has one.
///
/// # Errors
/// If the URLs are invalid, the thread cannot be created, or the feature is missing.
pub(crate) fn start(
    config: Option<&Config>,
    registry: &mut Registry,
) -> Result<Option<SharedStates>> {
    config.map(|config| SharedStates::start(config, registry)).transpose()
}

/// What `doctor` finds of a store.
#[cfg_attr(
    not(any(feature = "shared-state", test)),
    expect(dead_code, reason = "without the feature, there is no store")
)]
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum StoreState {
    /// It cannot be connected to.
    Unreachable(String),
    /// It does not accept the user.
    Refused(String),
    /// It can be used.
    Usable {
        /// What its servers do when their memory is full; empty if that is not known.
        eviction: Vec<String>,
        /// Number of processes that use it.
        replicas: u64,
        /// Names that several running hosts have.
        shared_names: Vec<String>,
    },
}

/// Asks the store once whether it can be used; `None` if that cannot be said, for which `check` has
/// the reason.
pub(crate) async fn probe(config: &Config) -> Option<StoreState> {
    SharedStates::probe(config).await
}

/// Returns what operators see of the store; null if hosts share none.
pub(crate) fn status_part(shared: Option<&SharedStates>) -> StatusPart {
    match shared {
        Some(shared) => shared.status_part(),
        None => Box::new(|| serde_json::Value::Null),
    }
}

/// Returns what `check` says about the store, and by how much each of these limits can be exceeded.
///
/// # Errors
/// As [`start`].
pub(crate) fn describe(config: Option<&Config>, limits: &[MinuteLimit]) -> Result<Vec<String>> {
    let Some(config) = config else { return Ok(Vec::new()) };
    let rate = SharedStates::overshoot(config)?;
    let Config { replicas, interval, prefix, .. } = config;
    let estimate = match *replicas {
        1 => "one host, so that no limit is exceeded; set `replicas` if there are more".to_owned(),
        _ => format!(
            "{replicas} hosts and interval {}: a limit is exceeded by at most {rate:.3} times the \
             rate per second at each host, for example by {:.0} requests at {EXAMPLE_RATE} \
             requests/s each",
            pointsman_config::format_duration(*interval),
            (rate * EXAMPLE_RATE).ceil(),
        ),
    };
    let mut lines = vec![format!("shared state: prefix \"{prefix}\", {estimate}")];
    if *replicas > 1 {
        let shown = limits.iter().take(MAX_LIMITS);
        lines.extend(shown.map(|limit| describe_bound(*replicas, rate, limit)));
        let rest = limits.len().saturating_sub(MAX_LIMITS);
        lines.extend((rest > 0).then(|| format!("shared limits: {rest} more")));
    }
    Ok(lines)
}

/// Describes by how much a limit can be exceeded.
fn describe_bound(replicas: u32, rate: f64, limit: &MinuteLimit) -> String {
    let MinuteLimit { owner, limit, max } = limit;
    let (steady, always) = bounds(replicas, rate, *max);
    let last = match limit {
        Limit::TokensPerMinute => ", and by what the last request of each host uses",
        Limit::RequestsPerMinute
        | Limit::Concurrent
        | Limit::Queued
        | Limit::TokenBudget(_)
        | Limit::RequestBudget(_)
        | Limit::EngineBudget(_) => "",
    };
    format!(
        "shared limit: {} = {max} of {}: exceeded by at most {steady:.0} if each host gets that \
         many per minute, evenly, and by {always:.0} at any rate{last}",
        limit.label(),
        clean(&owner.to_string()),
    )
}

/// Returns by how much a limit of `max` per minute can be exceeded if each host gets that many,
/// evenly, and by how much in any case. `rate` is the bound for one per second at each host.
fn bounds(replicas: u32, rate: f64, max: u64) -> (f64, f64) {
    let (replicas, max) = (f64::from(replicas), max as f64); // Far below 2^53.
    // Rounded up at each host, as requests do not come in parts. The result of the division may be
    // a little more than a whole number.
    let each = (rate / replicas * max / 60.0 - 1e-9).ceil();
    // Each host keeps the limit on its own.
    let always = (replicas - 1.0) * max;
    ((each * replicas).min(always), always)
}

/// Maximum number of limits that `check` shows.
const MAX_LIMITS: usize = 20;

/// The rate of the example in the output of `check`.
const EXAMPLE_RATE: f64 = 100.0;

#[cfg(not(feature = "shared-state"))]
mod disabled {
    use super::{Config, FeatureMissing, StoreState};
    use std::sync::Arc;

    use anyhow::Result;
    use pointsman_access::{Accounts, UsageBook};
    use pointsman_gateway::{SharedHosts, StatusPart};
    use pointsman_policy::Policies;
    use prometheus_client::registry::Registry;

    /// Has no values: without the feature, nothing is shared.
    #[derive(Debug, Clone)]
    pub(crate) enum SharedStates {}

    impl SharedStates {
        pub(super) fn start(_: &Config, _: &mut Registry) -> Result<Self> {
            Err(FeatureMissing.into())
        }

        pub(super) fn overshoot(_: &Config) -> Result<f64> {
            Err(FeatureMissing.into())
        }

        #[expect(clippy::unused_async, reason = "with the feature, it waits for the store")]
        pub(super) async fn probe(_: &Config) -> Option<StoreState> {
            None
        }

        pub(super) fn status_part(&self) -> StatusPart {
            match *self {}
        }

        pub(crate) fn attach(&self, _: &Policies) {
            match *self {}
        }

        pub(crate) fn share_limits(&self, _: &Accounts) {
            match *self {}
        }

        pub(crate) fn share_usage(
            &self,
            _: &SharedHosts,
            _: &Arc<UsageBook>,
            _: &Arc<Accounts>,
        ) -> Result<()> {
            match *self {}
        }

        pub(crate) fn requests(&self, _: &str, _: &str) -> SharedHosts {
            match *self {}
        }

        pub(crate) fn finish(&self) {
            match *self {}
        }
    }
}

#[cfg(feature = "shared-state")]
mod enabled {
    use std::sync::Arc;

    use anyhow::{Context as _, Result};
    use parking_lot::Mutex;
    use pointsman_access::{Accounts, UsageBook};
    use pointsman_gateway::{SharedHosts, StatusPart};
    use pointsman_policy::Policies;
    use pointsman_shared::{Direct, ProbeError, Replicator, Settings, StoreProbe};
    use prometheus_client::registry::Registry;

    use super::hosts::{self, RequestStore};
    use super::policies::SharedPolicies;
    use super::usage::UsageSharing;
    use super::{Config, StoreState, metrics, status};

    /// What this host shares with others.
    #[derive(Debug, Clone)]
    pub(crate) struct SharedStates {
        replicator: Replicator,
        requests: Arc<RequestStore>,
        settings: Settings,
        usage: Arc<Mutex<Option<UsageSharing>>>,
        /// How many hosts share the store, as it is configured.
        replicas: u32,
    }

    impl SharedStates {
        pub(super) fn start(config: &Config, registry: &mut Registry) -> Result<Self> {
            let settings = settings(config);
            let direct = Direct::new(settings.clone()).context("[shared-state]")?;
            let replicator = Replicator::start(settings.clone()).context("[shared-state]")?;
            metrics::register(registry, &replicator);
            let (requests, usage) = (Arc::new(RequestStore(direct)), Arc::default());
            let replicas = config.replicas;
            Ok(Self { replicator, requests, settings, usage, replicas })
        }

        pub(super) async fn probe(config: &Config) -> Option<StoreState> {
            let settings = settings(config);
            settings.validate().ok()?;
            Some(match pointsman_shared::probe(&settings).await {
                Ok(StoreProbe { eviction, replicas, shared_names }) => {
                    StoreState::Usable { eviction, replicas, shared_names }
                }
                Err(ProbeError::Unreachable(error)) => StoreState::Unreachable(error),
                Err(ProbeError::Refused(error)) => StoreState::Refused(error),
            })
        }

        /// Checks the settings, and returns by how much a limit is exceeded at most, for one
        /// request per second at each host.
        pub(super) fn overshoot(config: &Config) -> Result<f64> {
            settings(config).validate().context("[shared-state]")?;
            Ok(pointsman_shared::overshoot(config.replicas, 1.0, config.interval))
        }

        pub(super) fn status_part(&self) -> StatusPart {
            let (replicator, replicas) = (self.replicator.clone(), self.replicas);
            let usage = Arc::clone(&self.usage);
            Box::new(move || {
                let copied = usage.lock().as_ref().and_then(|usage| usage.copied.lock().clone());
                status::to_json(&replicator.status(), replicas, copied.as_ref())
            })
        }

        /// Lets policies share their states. Call it before the first policy is loaded.
        pub(crate) fn attach(&self, policies: &Policies) {
            policies.share_state(Arc::new(SharedPolicies::new(self.replicator.clone())));
        }

        /// Counts limits of keys together with other hosts. Call it before the first request.
        pub(crate) fn share_limits(&self, accounts: &Accounts) {
            accounts.share(hosts::counters(&self.replicator));
        }

        /// Returns what hosts know together of requests. `name` is that of this host in `[fleet]`,
        /// or empty, and `address` is where it listens.
        pub(crate) fn requests(&self, name: &str, address: &str) -> SharedHosts {
            let store = Arc::clone(&self.requests);
            SharedHosts { store, host: hosts::name_of_host(name, address).into() }
        }

        /// Contributes what is used at this host to the usage of all hosts, and to their budgets.
        /// Call it in a runtime, before the first request.
        ///
        /// # Errors
        /// If the thread cannot be created.
        pub(crate) fn share_usage(
            &self,
            hosts: &SharedHosts,
            book: &Arc<UsageBook>,
            accounts: &Arc<Accounts>,
        ) -> Result<()> {
            let (book, accounts) = (Arc::clone(book), Arc::clone(accounts));
            let sharing = UsageSharing::start(self.settings.clone(), &hosts.host, book, accounts)?;
            *self.usage.lock() = Some(sharing);
            Ok(())
        }

        /// Sends what is left. Blocks for some seconds at most.
        pub(crate) fn finish(&self) {
            let usage = self.usage.lock().take();
            if let Some(usage) = usage {
                usage.finish();
            }
            self.replicator.finish();
        }
    }

    fn settings(config: &Config) -> Settings {
        Settings {
            address: config.address.clone(),
            ca: config.ca.clone(),
            prefix: config.prefix.clone(),
            interval: config.interval,
            max_keys: config.max_pending,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::bounds;

    #[test]
    fn bounds_follow_from_the_limit_and_the_number_of_hosts() {
        // What one host gets of one request per second until all know it: 0.4.
        let rate = |replicas| f64::from(replicas) * 0.4;
        assert_eq!(bounds(5, rate(5), 6), (5.0, 24.0));
        assert_eq!(bounds(3, rate(3), 1000), (21.0, 2000.0));
        assert_eq!(bounds(3, rate(3), 60_000), (1200.0, 120_000.0));
        assert_eq!(bounds(3, rate(3), 1), (2.0, 2.0));
    }
}
