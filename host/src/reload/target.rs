//! The parts of the host that a changed configuration is applied to.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use pointsman_access::{UsageBook, UsageSettings};
use pointsman_config::{Config, KeyChange};
use pointsman_fleet::{Fleet, FleetSpec, LaneChange};
use pointsman_gateway::{Gateway, GatewayConfig, ProxyLanes, Settings};
use pointsman_record::{Recorder, StartError};
use tokio::runtime::Handle;

use super::plan::is_now;
use crate::records::Records;
use crate::stop_limits::StopLimits;
use crate::telemetry::LogControl;
use crate::{gateway_settings, guards, inherited, usage};

/// The parts of the host that a changed configuration is applied to.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) fleet: Fleet,
    /// The lanes, groups and rules in force.
    pub(crate) spec: FleetSpec,
    pub(crate) gateway: Gateway,
    /// The settings of the gateway with which the host was started.
    pub(crate) first: Settings,
    pub(crate) records: Records,
    /// What accepts records now.
    pub(crate) recorder: Option<Recorder>,
    pub(crate) usage: Arc<UsageBook>,
    pub(crate) log: LogControl,
    pub(crate) stop: Arc<Mutex<StopLimits>>,
    pub(crate) runtime: Handle,
}

impl Target {
    /// Returns the lanes, groups and rules of a configuration, as this process would have them:
    /// the state directory and the machine are those of the start.
    fn fleet_spec(&self, config: &Config) -> FleetSpec {
        FleetSpec {
            state_dir: self.spec.state_dir.clone(),
            keeper: self.spec.keeper.clone(),
            conversations: self.spec.conversations,
            machine: self.spec.machine.clone(),
            peering: self.spec.peering.clone(),
            ..config.fleet.clone()
        }
    }

    /// Returns what a configuration would change of the lanes.
    pub(super) fn changes_to(&self, config: &Config) -> BTreeMap<String, LaneChange> {
        self.spec.changes_to(&self.fleet_spec(config))
    }

    /// Erases what was saved of the conversations of a key that was removed. Blocks on the disk.
    pub(super) fn forget_key(&self, tenant: &str, key: &str) {
        let erased = self.fleet.conversations().erase(Some(tenant), Some(key));
        if erased.files > 0 {
            tracing::info!(
                event = "conversations_erased",
                tenant,
                key,
                files = erased.files,
                bytes = erased.bytes,
                "saved conversations of a removed key erased"
            );
        }
    }

    /// Applies a valid configuration: first what may fail, then the lanes, the settings of requests
    /// and listeners, the log and the usage.
    ///
    /// # Errors
    /// If the folder of decision records cannot be used. Nothing has changed then.
    pub(super) fn apply(
        &mut self,
        config: &mut Config,
        changes: &[KeyChange],
    ) -> Result<(), StartError> {
        // A random key for hashes is drawn for each reading of the section: an unchanged one keeps
        // its key.
        if changes.iter().filter(|change| is_now(change)).any(concerns_records) {
            let settings = config.records.take();
            self.recorder = self.records.apply(settings)?;
        }
        let spec = self.fleet_spec(config);
        for warning in inherited::warnings(&spec).into_iter().chain(guards::warnings(config)) {
            tracing::warn!("{warning}");
        }
        self.gateway.add_guards(&config.guards);
        self.gateway.add_proxy_lanes(&ProxyLanes::from_spec(&spec));
        self.runtime.block_on(self.fleet.reconfigure(spec.clone()));
        self.spec = spec;
        let state_dir = self.spec.state_dir.as_deref();
        self.gateway.reconfigure(GatewayConfig {
            settings: gateway_settings::changed(config, state_dir, &self.first),
            recorder: self.recorder.clone(),
            listeners: config.server.listeners.iter().map(gateway_settings::of_listener).collect(),
        });
        *self.stop.lock() = StopLimits::new(config.server.drain_timeout, &self.spec);
        self.log.apply(&config.log);
        self.usage.reconfigure(UsageSettings {
            keep: config.usage.keep,
            max_rows: usage::max_rows(config.usage.max_rows, self.usage.is_in_memory()),
        });
        Ok(())
    }
}

/// Returns true for a key that decision records follow: they have the limits of plans, too.
fn concerns_records(change: &KeyChange) -> bool {
    change.path.starts_with("records.")
        || ["queue.max-wait", "server.max-attempts"].contains(&change.path.as_str())
}
