//! Background work of policies: evaluation of shadows, the hooks `on-complete` and `on-tick`, and
//! probation.
//!
//! ```text
//!   request ──shadow job──> bounded queue ──> thread `policy-shadow`   evaluates and compares
//!           ──outcome─────> bounded queue ──> thread `policy-hooks`    on-complete in batches,
//!                                                                      on-tick, probation
//! ```
//!
//! Requests are never delayed: jobs that do not fit into a queue are dropped, and for shadows
//! counted.

use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use pointsman_domain::dispatch::LaneHint;
use pointsman_domain::{Advice, Facts, FleetView, LaneId, Outcome, Trace};

use crate::chain::evaluate;
use crate::policies::Policies;
use crate::schedule::{Schedule, TickContext};
use crate::version::{Hook, Version};

/// Maximum queued shadow jobs. Each holds a request in memory.
const MAX_SHADOW_QUEUE: usize = 256;
/// Maximum queued outcomes.
const MAX_OUTCOME_QUEUE: usize = 4096;
/// Maximum outcomes of one call of `on-complete`.
pub(crate) const MAX_BATCH: usize = 256;
/// The interval at which outcomes are delivered, ticks are checked and probations are evaluated.
const HEARTBEAT: Duration = Duration::from_millis(100);
/// Maximum differences between a shadow and the active version that the status shows.
const MAX_DIFFERENCES: usize = 16;
/// The niceness of the thread that evaluates shadows.
const SHADOW_NICENESS: i32 = 10;

/// A decision that a shadow evaluates as well.
#[derive(Debug)]
pub(crate) struct ShadowJob {
    /// The span of the request, so that log lines of the shadow carry the request id.
    pub(crate) request_span: tracing::Span,
    pub(crate) shadow: Arc<Version>,
    pub(crate) facts: Facts,
    pub(crate) fleet: Arc<FleetView>,
    /// The advice of the deciding version; `None` if it gave none.
    pub(crate) advice: Option<Advice>,
}

/// The connection to the fleet: the state of the lanes, and hints about them.
pub struct FleetLink {
    /// Returns the current state of the lanes.
    pub view: Box<dyn Fn() -> Arc<FleetView> + Send + Sync>,
    /// Gives a hint about a lane that is valid for a time; `None` revokes the previous one.
    pub hint: Box<dyn Fn(LaneId, Option<LaneHint>, Duration) + Send + Sync>,
}

impl std::fmt::Debug for FleetLink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FleetLink").finish_non_exhaustive()
    }
}

/// The comparison of a shadow with the active version.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Comparison {
    pub(crate) agreed: u64,
    pub(crate) differed: u64,
    pub(crate) failed: u64,
    pub(crate) dropped: u64,
    /// The latest differences, oldest first.
    pub(crate) differences: Vec<ShadowDifference>,
}

/// A decision in which a shadow differs.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub(crate) struct ShadowDifference {
    pub(crate) request: String,
    /// The parts of the advice that differ.
    pub(crate) fields: Vec<&'static str>,
    pub(crate) active: Option<Advice>,
    pub(crate) shadow: Option<Advice>,
}

impl Comparison {
    fn record_difference(&mut self, difference: ShadowDifference) {
        self.differed += 1;
        if self.differences.len() == MAX_DIFFERENCES {
            self.differences.remove(0);
        }
        self.differences.push(difference);
    }
}

/// The queues of the background threads.
#[derive(Debug)]
pub(crate) struct Background {
    shadows: SyncSender<ShadowJob>,
    outcomes: SyncSender<Outcome>,
}

impl Background {
    /// Starts the threads. They exit when `policies` is dropped.
    pub(crate) fn start(policies: Weak<Policies>) -> std::io::Result<Arc<Self>> {
        let (shadows, jobs) = sync_channel(MAX_SHADOW_QUEUE);
        let (outcomes, done) = sync_channel(MAX_OUTCOME_QUEUE);
        let thread = |name: &str| std::thread::Builder::new().name(name.to_owned());
        thread("policy-shadow").spawn(move || evaluate_shadows(&jobs))?;
        thread("policy-hooks").spawn(move || run_hooks(&policies, &done))?;
        Ok(Arc::new(Self { shadows, outcomes }))
    }

    /// Queues a shadow job, or drops it if the queue is full.
    pub(crate) fn evaluate_shadow(&self, job: ShadowJob) {
        if let Err(TrySendError::Full(job) | TrySendError::Disconnected(job)) =
            self.shadows.try_send(job)
        {
            job.shadow.metrics().record_shadow("dropped");
            job.shadow.update_comparison(|comparison| comparison.dropped += 1);
        }
    }

    /// Queues the outcome of a request.
    pub(crate) fn report_outcome(&self, outcome: &Outcome) {
        // Dropped if the queue is full: the contract allows that, and a request must not wait.
        self.outcomes.try_send(outcome.clone()).ok();
    }
}

fn evaluate_shadows(jobs: &Receiver<ShadowJob>) {
    // Threads that serve requests have priority. On Linux, `nice` only affects the calling thread.
    if let Err(error) = rustix::process::nice(SHADOW_NICENESS) {
        tracing::debug!(%error, "failed to lower the priority of the shadow thread");
    }
    for job in jobs {
        evaluate_shadow(job);
    }
}

fn evaluate_shadow(job: ShadowJob) {
    let ShadowJob { request_span, shadow, mut facts, fleet, advice } = job;
    let _request_span = request_span.entered();
    let _span = shadow.span(Hook::Request.name()).entered();
    let request = facts.request.id().to_owned();
    let evaluated = evaluate(&shadow, &mut facts, &fleet, &mut Trace::off());
    let result = match (&advice, &evaluated) {
        (_, Err(_)) => "failed",
        (Some(active), Ok(shadow)) if differences(active, shadow).is_empty() => "agreed",
        (_, Ok(_)) => "differed",
    };
    shadow.metrics().record_shadow(result);
    shadow.update_comparison(|comparison| match result {
        "agreed" => comparison.agreed += 1,
        "failed" => comparison.failed += 1,
        _ => {
            let shadow_advice = evaluated.ok();
            let fields = match (&advice, &shadow_advice) {
                (Some(active), Some(shadow)) => differences(active, shadow),
                _ => vec!["advice"],
            };
            comparison.record_difference(ShadowDifference {
                request,
                fields,
                active: advice,
                shadow: shadow_advice,
            });
        }
    });
}

/// Returns the parts in which two pieces of advice differ. Notes and hints have no effect, so they
/// are not compared.
fn differences(a: &Advice, b: &Advice) -> Vec<&'static str> {
    let parts = [
        ("reject", a.reject == b.reject),
        ("lanes", a.lanes == b.lanes),
        ("switching", a.switching == b.switching),
        ("queue", a.queue == b.queue),
        ("fallback", a.fallback == b.fallback),
        ("edits", a.edits == b.edits),
    ];
    parts.into_iter().filter(|(_, is_same)| !is_same).map(|(field, _)| field).collect()
}

fn run_hooks(policies: &Weak<Policies>, done: &Receiver<Outcome>) {
    let mut schedule = Schedule::default();
    let start = Instant::now();
    loop {
        let batch = next_batch(done);
        let (Some(policies), Some(batch)) = (policies.upgrade(), batch) else { return };
        policies.evaluate_probations();
        let Some(fleet) = policies.fleet() else { continue };
        let chain = policies.chain();
        if !batch.is_empty() {
            chain.observe(&(fleet.view)(), now_ms(), &batch);
        }
        let now_ms = now_ms();
        let at = TickContext { now: start.elapsed(), now_ms, seed: now_ms };
        let mut hint = |lane, hint, ttl| (fleet.hint)(lane, hint, ttl);
        schedule.tick(&chain, at, &fleet.view, &mut hint);
    }
}

/// Collects the outcomes of one heartbeat; `None` after the queue is closed.
fn next_batch(done: &Receiver<Outcome>) -> Option<Vec<Outcome>> {
    let until = Instant::now() + HEARTBEAT;
    let mut batch = Vec::new();
    while batch.len() < MAX_BATCH {
        match done.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(outcome) => batch.push(outcome),
            Err(RecvTimeoutError::Timeout) => break,
            Err(RecvTimeoutError::Disconnected) => return None,
        }
    }
    Some(batch)
}

fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}
