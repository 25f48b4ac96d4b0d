//! What is done beside the requests: shadows are asked, policies learn from outcomes and are asked for wishes, versions on
//! probation are judged.
//!
//! ```text
//!   request ──shadow job──> bounded queue ──> thread `policy-shadow`   asks, compares, counts
//!           ──outcome─────> bounded queue ──> thread `policy-hooks`    on-complete in batches; on-tick; probation
//! ```
//!
//! Nothing here holds up a request: what does not fit into a queue is dropped, and for shadows counted.

use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use pointsman_domain::dispatch::LaneHint;
use pointsman_domain::{Advice, Facts, FleetView, LaneId, Outcome, Trace};

use crate::chain::ask;
use crate::policies::Policies;
use crate::schedule::{Schedule, TickContext};
use crate::version::Version;

/// Shadow jobs that wait; each holds a request.
const SHADOW_QUEUE: usize = 256;
/// Outcomes that wait.
const OUTCOME_QUEUE: usize = 4096;
/// Outcomes that are shown at once.
pub(crate) const BATCH: usize = 256;
/// How often outcomes are shown, ticks looked for and probations judged.
const BEAT: Duration = Duration::from_millis(100);
/// Differences between a shadow and the version in service that are kept to be looked at.
const KEPT_DIFFERENCES: usize = 16;
/// Niceness of the thread that asks shadows.
const SHADOW_NICENESS: i32 = 10;

/// A decision that a shadow is asked about too.
#[derive(Debug)]
pub(crate) struct ShadowJob {
    pub(crate) shadow: Arc<Version>,
    pub(crate) facts: Facts,
    pub(crate) fleet: Arc<FleetView>,
    /// What the version in service advised; `None` where it had no advice.
    pub(crate) advice: Option<Advice>,
}

/// Where the lanes are, and where wishes about them go.
pub struct FleetLink {
    /// The lanes as they are now.
    pub view: Box<dyn Fn() -> Arc<FleetView> + Send + Sync>,
    /// A wish about a lane that stands for a time; `None` takes the one before back.
    pub hint: Box<dyn Fn(LaneId, Option<LaneHint>, Duration) + Send + Sync>,
}

impl std::fmt::Debug for FleetLink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FleetLink").finish_non_exhaustive()
    }
}

/// How the opinions of a shadow compare.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Comparison {
    pub(crate) agreed: u64,
    pub(crate) differed: u64,
    pub(crate) failed: u64,
    pub(crate) dropped: u64,
    /// The latest that differed, oldest first.
    pub(crate) differences: Vec<ShadowDifference>,
}

/// One decision about which a shadow thinks otherwise.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub(crate) struct ShadowDifference {
    pub(crate) request: String,
    pub(crate) what: Vec<&'static str>,
    pub(crate) active: Option<Advice>,
    pub(crate) shadow: Option<Advice>,
}

impl Comparison {
    fn differs(&mut self, difference: ShadowDifference) {
        self.differed += 1;
        if self.differences.len() == KEPT_DIFFERENCES {
            self.differences.remove(0);
        }
        self.differences.push(difference);
    }
}

/// The ways to the threads.
#[derive(Debug)]
pub(crate) struct Background {
    shadows: SyncSender<ShadowJob>,
    outcomes: SyncSender<Outcome>,
}

impl Background {
    /// Start the threads. They end when `policies` is gone.
    pub(crate) fn start(policies: Weak<Policies>) -> std::io::Result<Arc<Self>> {
        let (shadows, jobs) = sync_channel(SHADOW_QUEUE);
        let (outcomes, done) = sync_channel(OUTCOME_QUEUE);
        let thread = |name: &str| std::thread::Builder::new().name(name.to_owned());
        thread("policy-shadow").spawn(move || ask_shadows(&jobs))?;
        thread("policy-hooks").spawn(move || run_hooks(&policies, &done))?;
        Ok(Arc::new(Self { shadows, outcomes }))
    }

    /// Have a shadow asked, if there is room for that.
    pub(crate) fn shadow(&self, job: ShadowJob) {
        if let Err(TrySendError::Full(job) | TrySendError::Disconnected(job)) =
            self.shadows.try_send(job)
        {
            job.shadow.figures().shadow("dropped");
            job.shadow.compared(|comparison| comparison.dropped += 1);
        }
    }

    /// A request has ended. Lost where the policies are slower than the requests, as the contract says.
    pub(crate) fn ended(&self, outcome: &Outcome) {
        drop(self.outcomes.try_send(outcome.clone()));
    }
}

fn ask_shadows(jobs: &Receiver<ShadowJob>) {
    // Whoever serves goes before whoever only compares. On Linux this is about the calling thread, and no other one.
    if let Err(error) = rustix::process::nice(SHADOW_NICENESS) {
        tracing::debug!("shadows are as urgent as requests: {error}");
    }
    for job in jobs {
        ask_shadow(job);
    }
}

fn ask_shadow(job: ShadowJob) {
    let ShadowJob { shadow, mut facts, fleet, advice } = job;
    let request = facts.request.id().to_owned();
    let answered = ask(&shadow, &mut facts, &fleet, &mut Trace::off());
    let result = match (&advice, &answered) {
        (_, Err(_)) => "failed",
        (Some(active), Ok(shadow)) if differences(active, shadow).is_empty() => "agreed",
        (_, Ok(_)) => "differed",
    };
    shadow.figures().shadow(result);
    shadow.compared(|comparison| match result {
        "agreed" => comparison.agreed += 1,
        "failed" => comparison.failed += 1,
        _ => {
            let answered = answered.ok();
            let what = match (&advice, &answered) {
                (Some(active), Some(shadow)) => differences(active, shadow),
                _ => vec!["advice"],
            };
            comparison.differs(ShadowDifference {
                request,
                what,
                active: advice,
                shadow: answered,
            });
        }
    });
}

/// In what two pieces of advice differ. Notes and hints are not acted on, and so do not count.
fn differences(a: &Advice, b: &Advice) -> Vec<&'static str> {
    let parts = [
        ("reject", a.reject == b.reject),
        ("lanes", a.lanes == b.lanes),
        ("switching", a.switching == b.switching),
        ("queue", a.queue == b.queue),
        ("fallback", a.fallback == b.fallback),
        ("edits", a.edits == b.edits),
    ];
    parts.into_iter().filter(|(_, same)| !same).map(|(what, _)| what).collect()
}

fn run_hooks(policies: &Weak<Policies>, done: &Receiver<Outcome>) {
    let mut schedule = Schedule::default();
    let begun = Instant::now();
    loop {
        let batch = next_batch(done);
        let (Some(policies), Some(batch)) = (policies.upgrade(), batch) else { return };
        policies.judge();
        let Some(fleet) = policies.fleet() else { continue };
        let chain = policies.chain();
        if !batch.is_empty() {
            chain.observe(&(fleet.view)(), now_ms(), &batch);
        }
        let now_ms = now_ms();
        let at = TickContext { now: begun.elapsed(), now_ms, seed: now_ms };
        let mut hint = |lane, hint, lasts| (fleet.hint)(lane, hint, lasts);
        schedule.tick(&chain, at, &fleet.view, &mut hint);
    }
}

/// What ended within a beat; `None` when nothing will any more.
fn next_batch(done: &Receiver<Outcome>) -> Option<Vec<Outcome>> {
    let until = Instant::now() + BEAT;
    let mut batch = Vec::new();
    while batch.len() < BATCH {
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
