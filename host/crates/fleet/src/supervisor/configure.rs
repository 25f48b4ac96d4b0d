//! Settings that change while an engine runs, and loads that are abandoned.

use std::sync::Arc;

use tokio::sync::mpsc::UnboundedReceiver;

use super::Supervisor;
use crate::lane_config::LaneConfig;
use crate::message::SupervisorCommand;

impl Supervisor {
    /// Applies settings with which the running engine can go on. Returns true if it has to be
    /// monitored in another way.
    pub(super) fn configure(&mut self, config: LaneConfig) -> bool {
        let is_monitored_alike = self.slots == config.slots
            && self.liveness == config.liveness
            && Arc::ptr_eq(&self.links.upstream, &config.upstream)
            && self.driver.equals(&*config.driver);
        self.slots = config.slots;
        self.models = config.models;
        self.driver = config.driver;
        self.links.upstream = config.upstream;
        self.reservation = config.reservation;
        self.liveness = config.liveness;
        self.probe_interval = config.probe_interval;
        self.shared.secret_variables = config.secret_variables;
        !is_monitored_alike
    }

    /// Applies the settings that arrived while an engine was being loaded.
    pub(super) fn configure_all(&mut self, configs: Vec<LaneConfig>) {
        for config in configs {
            self.configure(config);
        }
    }
}

/// Waits until a load is to be abandoned: the lane was removed, or has to be loaded in another way.
/// Collects the settings that arrive meanwhile. Cancel-safe.
pub(super) async fn abandoned(
    commands: &mut UnboundedReceiver<SupervisorCommand>,
    configs: &mut Vec<LaneConfig>,
) {
    loop {
        match commands.recv().await {
            Some(SupervisorCommand::Unload { .. }) => return,
            Some(SupervisorCommand::Configure(config)) => configs.push(*config),
            // It is being loaded already.
            Some(SupervisorCommand::Load) => {}
            // The host stops, which is noticed otherwise.
            None => std::future::pending().await,
        }
    }
}
