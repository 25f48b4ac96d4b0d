//! Makes the handles and supervisors of lanes: at the start, and when the configuration changes.

use std::future::{Future, poll_fn};
use std::sync::Arc;

use parking_lot::Mutex;
use pointsman_domain::LaneId;
use tokio::sync::mpsc::unbounded_channel;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::Instrument as _;

use super::LaneHandle;
use crate::lane_config::LaneConfig;
use crate::memory::Machine;
use crate::memory_admission::MemoryReservation;
use crate::message::{EngineReporter, EngineSource, Mailbox};
use crate::metrics::FleetMetrics;
use crate::spec::{FleetSpec, LaneSpec};
use crate::status::LaneStatus;
use crate::supervisor::{Links, Shared, Supervisor};
use crate::upstream::Upstream;

/// The tasks of the supervisors, to which the actor adds. Clones share the tasks.
#[derive(Debug, Clone, Default)]
pub(crate) struct SupervisorTasks(Arc<Mutex<JoinSet<()>>>);

impl SupervisorTasks {
    /// Adds a task, and forgets those that have ended.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.0.lock();
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task);
    }

    /// Waits until all tasks have ended.
    pub(crate) async fn join_all(&self) {
        while poll_fn(|context| self.0.lock().poll_join_next(context)).await.is_some() {}
    }

    /// Aborts all tasks.
    pub(crate) fn abort_all(&self) {
        self.0.lock().abort_all();
    }

    /// Returns the number of tasks that have not ended.
    #[cfg(test)]
    pub(crate) fn running(&self) -> usize {
        let mut tasks = self.0.lock();
        while tasks.try_join_next().is_some() {}
        tasks.len()
    }
}

/// Makes the handles and supervisors of lanes.
#[derive(Debug)]
pub(crate) struct LaneFactory {
    pub(crate) mailbox: Mailbox,
    pub(crate) shared: Shared,
    pub(crate) machine: Arc<Machine>,
    pub(crate) supervisors: SupervisorTasks,
    /// The number of supervisors so far.
    pub(crate) epochs: u64,
}

impl LaneFactory {
    /// Makes the handle of a lane, and starts its supervisor.
    pub(crate) fn start(&mut self, id: LaneId, lane: &LaneSpec, spec: &FleetSpec) -> LaneHandle {
        let mut handle = self.handle(id, lane, spec);
        self.supervise(id, &mut handle, lane, spec);
        handle
    }

    /// Makes the handle of a lane that has no supervisor.
    pub(crate) fn handle(&self, id: LaneId, lane: &LaneSpec, spec: &FleetSpec) -> LaneHandle {
        let (status, _) = watch::channel(LaneStatus {
            lane: id,
            name: lane.name.clone(),
            card: lane.engine.card(),
            ..LaneStatus::default()
        });
        // Not connected to a supervisor yet.
        let (commands, _) = unbounded_channel();
        LaneHandle::new(lane, commands, status, spec.rules.drain_timeout)
    }

    /// Starts a supervisor for a lane. An earlier one, which has no engine, ends.
    pub(crate) fn supervise(
        &mut self,
        id: LaneId,
        handle: &mut LaneHandle,
        lane: &LaneSpec,
        spec: &FleetSpec,
    ) {
        handle.stop.cancel();
        handle.stop = self.shared.stop.child_token();
        self.epochs += 1;
        handle.epoch = self.epochs;
        let (sender, commands) = unbounded_channel();
        handle.commands = sender;
        let source = EngineSource { lane: id, epoch: handle.epoch };
        let reporter = EngineReporter::new(source, self.mailbox.clone());
        let status = handle.status.clone();
        let links = Links { upstream: Arc::clone(&handle.upstream), reporter, commands, status };
        let shared = Shared { stop: handle.stop.clone(), ..self.shared.clone() };
        // At the error level, because a log filter that drops the span would also drop the lane
        // from the warnings and errors inside.
        let key = lane.engine.info().key;
        let span = tracing::error_span!("lane", lane = lane.name, driver = key);
        let config = self.config(lane, spec, &handle.upstream);
        let supervisor = Supervisor::new(id, &lane.name, config, links, shared);
        self.supervisors.spawn(supervisor.run().instrument(span));
    }

    /// Returns the metrics of the lanes.
    pub(super) fn metrics(&self) -> &FleetMetrics {
        &self.shared.metrics
    }

    /// Returns what the supervisor of a lane has to know.
    pub(crate) fn config(
        &self,
        lane: &LaneSpec,
        spec: &FleetSpec,
        upstream: &Arc<Upstream>,
    ) -> LaneConfig {
        let reservation = spec.group_of(lane).and_then(|group| {
            Some(MemoryReservation {
                machine: Arc::clone(&self.machine),
                pool: group.pool?,
                need: lane.need,
                asleep: lane.asleep,
                timeout: group.free_timeout,
            })
        });
        LaneConfig::new(lane, upstream, reservation, &self.shared.secret_variables)
    }
}
