//! State that several hosts share in Redis: `[shared-state]` of the configuration.
//!
//! Without the cargo feature `shared-state`, the section is read and checked as with it, and `serve`
//! and `check` say which feature is missing.

#[cfg(feature = "shared-state")]
mod hosts;
#[cfg(feature = "shared-state")]
mod metrics;
#[cfg(feature = "shared-state")]
mod policies;

use anyhow::Result;
use pointsman_config::SharedState as Config;
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

/// Returns what `check` says about the store.
///
/// # Errors
/// As [`start`].
pub(crate) fn describe(config: Option<&Config>) -> Result<Vec<String>> {
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
    Ok(vec![format!("shared state: prefix \"{prefix}\", {estimate}")])
}

/// The rate of the example in the output of `check`.
const EXAMPLE_RATE: f64 = 100.0;

#[cfg(not(feature = "shared-state"))]
mod disabled {
    use super::{Config, FeatureMissing};
    use anyhow::Result;
    use pointsman_access::Accounts;
    use pointsman_gateway::SharedHosts;
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

        pub(crate) fn attach(&self, _: &Policies) {
            match *self {}
        }

        pub(crate) fn share_limits(&self, _: &Accounts) {
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
    use pointsman_access::Accounts;
    use pointsman_config::SharedAddress;
    use pointsman_gateway::SharedHosts;
    use pointsman_policy::Policies;
    use pointsman_shared::{Address, Direct, Replicator, Settings};
    use prometheus_client::registry::Registry;

    use super::hosts::{self, RequestStore};
    use super::policies::SharedPolicies;
    use super::{Config, metrics};

    /// What this host shares with others.
    #[derive(Debug, Clone)]
    pub(crate) struct SharedStates {
        replicator: Replicator,
        requests: Arc<RequestStore>,
    }

    impl SharedStates {
        pub(super) fn start(config: &Config, registry: &mut Registry) -> Result<Self> {
            let direct = Direct::new(settings(config)).context("[shared-state]")?;
            let replicator = Replicator::start(settings(config)).context("[shared-state]")?;
            metrics::register(registry, &replicator);
            Ok(Self { replicator, requests: Arc::new(RequestStore(direct)) })
        }

        /// Checks the settings, and returns by how much a limit is exceeded at most, for one request
        /// per second at each host.
        pub(super) fn overshoot(config: &Config) -> Result<f64> {
            settings(config).validate().context("[shared-state]")?;
            Ok(pointsman_shared::overshoot(config.replicas, 1.0, config.interval))
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

        /// Sends what is left. Blocks for some seconds at most.
        pub(crate) fn finish(&self) {
            self.replicator.finish();
        }
    }

    fn settings(config: &Config) -> Settings {
        let address = match config.address.clone() {
            SharedAddress::Single(url) => Address::Single(url),
            SharedAddress::Sentinel { sentinels, master, node } => {
                Address::Sentinel { sentinels, master, node }
            }
            SharedAddress::Cluster(urls) => Address::Cluster(urls),
        };
        Settings {
            address,
            ca: config.ca.clone(),
            prefix: config.prefix.clone(),
            interval: config.interval,
            max_keys: config.max_pending,
        }
    }
}
