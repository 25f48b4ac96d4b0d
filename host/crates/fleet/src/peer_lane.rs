//! Watches a lane of another host: whether it accepts requests, and what the other host says of it.
//!
//! ```text
//!   GET /fleet ──PeerView──> assess ──> the lane accepts requests, with metrics
//!                                   └─> it does not, for this reason
//! ```
//!
//! A lane that the other host has not loaded accepts requests: they wait there, where it is decided
//! which lane is loaded. The lane is down if its host is silent, does not have it, or says so.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pointsman_domain::dispatch::{EngineEvent, Problem, RemoteLane};
use pointsman_domain::{CachedPrompts, LaneId, LaneState, PromptHashes};
use pointsman_peers::{Digest, LaneDescription, Liveness, PeerLane, PeerView, StaleLimits};
use tokio::sync::watch;

use crate::driver::{Driver, Target};
use crate::engine_spec::PeerLaneSpec;
use crate::failures::FailureKind;
use crate::message::{EngineReporter, PeerReport};
use crate::model_card::{Adapter, ModelCard, PeerCard};

/// How often it is looked whether the host has become silent.
const SILENCE_INTERVAL: Duration = Duration::from_millis(250);
/// Maximum number of lanes that a message names.
const MAX_NAMED: usize = 16;

/// A lane of another host, and who is told of it.
pub(crate) struct WatchedLane<'a> {
    pub(crate) driver: &'a dyn Driver,
    pub(crate) spec: &'a PeerLaneSpec,
    pub(crate) limits: StaleLimits,
    pub(crate) reporter: &'a EngineReporter,
}

/// What the engine of a lane has probably cached, as its host says.
#[derive(Debug, Default)]
struct PeerDigest(Digest);

impl CachedPrompts for PeerDigest {
    fn cached_tokens(&self, prompt: &PromptHashes) -> u32 {
        self.0.cached_tokens(prompt)
    }
}

/// The name of a host, and one of its lanes.
type Described = (String, LaneDescription);

/// The state that was reported last.
#[derive(Default)]
enum Reported {
    #[default]
    Nothing,
    Ready(Arc<Target>, Box<PeerReport>),
    Lost(Problem),
}

/// Watches a lane of another host, and reports what changes. Returns when the views end.
pub(crate) async fn watch_peer(lane: WatchedLane<'_>, mut views: watch::Receiver<PeerView>) {
    let (mut reported, mut described, mut digest) =
        (Reported::default(), None, Arc::new(PeerDigest::default()));
    let begun = Instant::now();
    loop {
        {
            // Borrowed for some microseconds: the reader of the host waits meanwhile.
            let view = views.borrow_and_update();
            if let Some(there) = view.lane(&lane.spec.lane) {
                let host = view.host().map(|host| host.name.as_str()).unwrap_or_default();
                let known = described.as_ref().map(|(host, lane): &Described| (&**host, lane));
                if known != Some((host, &there.description)) {
                    lane.reporter.learned(card(host, &there.description, lane.spec));
                    described = Some((host.to_owned(), there.description.clone()));
                }
                if !digest.0.is_unchanged(&there.digest) {
                    digest = Arc::new(PeerDigest(there.digest.clone()));
                }
            }
            // A host that is connected to at this moment is not down.
            let is_connecting = view.host().is_none() && view.error.is_none();
            if !is_connecting || begun.elapsed() >= lane.limits.down {
                reported = lane.report(reported, &view, &digest);
            }
        }
        let changed = tokio::time::timeout(SILENCE_INTERVAL, views.changed());
        if matches!(changed.await, Ok(Err(_))) {
            return;
        }
    }
}

impl WatchedLane<'_> {
    /// Reports what a view says. Returns what is reported now.
    fn report(&self, before: Reported, view: &PeerView, digest: &Arc<PeerDigest>) -> Reported {
        let now = Instant::now();
        match (assess(view, self.spec, &self.limits, now), before) {
            (Ok(report), before) => {
                let report = PeerReport { digest: Arc::clone(digest) as Arc<_>, ..report };
                if let Reported::Ready(target, last) = before {
                    if report.is_repeated(&last) {
                        return Reported::Ready(target, last);
                    }
                    self.reporter.peer_report(report.clone());
                    return Reported::Ready(target, Box::new(report));
                }
                self.reporter.peer_report(report.clone());
                let target = Arc::new(self.driver.target(0));
                tracing::info!(
                    event = "peer_lane_ready",
                    engine = target.authority,
                    "the lane of the other host is ready"
                );
                self.reporter.ready(&target);
                Reported::Ready(target, Box::new(report))
            }
            (Err(problem), Reported::Lost(before)) if before == problem => Reported::Lost(before),
            (Err(problem), before) => {
                tracing::warn!(
                    event = "peer_lane_down",
                    problem = %problem,
                    "the lane of the other host is down"
                );
                self.reporter.event(EngineEvent::Lost(problem.clone()));
                if let Reported::Ready(target, _) = before
                    && problem.code() == Some(UNREACHABLE)
                {
                    // Requests without a first byte go to other lanes; streams end.
                    target.activity.hung().cancel();
                }
                Reported::Lost(problem)
            }
        }
    }
}

const UNREACHABLE: &str = "peer_unreachable";

/// Returns what is known of a lane that accepts requests, without the digest.
///
/// # Errors
/// If the lane is down.
fn assess(
    view: &PeerView,
    spec: &PeerLaneSpec,
    limits: &StaleLimits,
    now: Instant,
) -> Result<PeerReport, Problem> {
    let silence = view.age(now);
    let liveness = view.liveness_at(now, limits);
    let (Some(silence), Liveness::Live | Liveness::Degraded) = (silence, liveness) else {
        let error = view.error.map(|error| format!("last error: {error}"));
        let problem = problem(UNREACHABLE, "");
        return Err(error.map_or(problem.clone(), |error| problem.with_details(error)));
    };
    let Some(PeerLane { description, report, .. }) = view.lane(&spec.lane) else {
        let lanes = view.lanes().iter().map(|lane| lane.description.name.as_str());
        let named: Vec<_> = lanes.take(MAX_NAMED).map(|name| format!("`{name}`")).collect();
        let details = format!("no lane `{}` there; its lanes: {}", spec.lane, named.join(", "));
        return Err(problem("peer_lane_missing", "").with_details(details));
    };
    if report.state == LaneState::Down {
        let why = report.problem.as_deref().unwrap_or_default();
        return Err(problem("peer_lane_down", why));
    }
    let stat = report.stat(LaneId(0), 0);
    let remote = RemoteLane {
        state: report.state,
        slots: spec.slots(description.slots),
        est_wait: Duration::from_millis(report.est_wait_ms.into()),
        ready_in: Duration::from_millis(report.ready_in_ms.into()),
        displaces: report.displaces,
        // Not zero: the host may still count as down later than that.
        silent: (liveness == Liveness::Degraded)
            .then(|| limits.down.saturating_sub(silence).max(SILENCE_INTERVAL)),
    };
    let heard = view.received().unwrap_or(now);
    let (slots_there, digest) = (description.slots, Arc::new(PeerDigest::default()));
    Ok(PeerReport { remote, stat, slots_there, heard, digest })
}

/// Returns a problem with what the other host calls it.
fn problem(code: &'static str, there: &str) -> Problem {
    let kind = FailureKind::with_code(code);
    match there {
        "" => kind.problem_because(kind.cause),
        there => kind.problem_because(&format!("{} [{there}]", kind.cause)),
    }
}

/// Returns what the other host says of a lane that does not change all the time.
fn card(host: &str, there: &LaneDescription, spec: &PeerLaneSpec) -> ModelCard {
    let is_own = |model: &&String| !there.virtual_names.contains(model);
    let adapter = |name: &String| Adapter { name: name.clone(), root: None };
    ModelCard {
        context: Some(there.max_context).filter(|context| *context > 0),
        endpoints: Some(there.endpoint_set()),
        adapters: there.adapters.iter().map(adapter).collect(),
        peer: Some(PeerCard {
            host: host.to_owned(),
            engine: there.info(LaneId(0)).engine,
            models: there.models.iter().filter(is_own).cloned().collect(),
            names: there.aliases.clone(),
            derived: there.derived.clone(),
            slots: spec.slots(there.slots),
        }),
        ..ModelCard::default()
    }
}

impl PeerReport {
    /// Returns true if nothing has changed since the report `last`, which is so young that the age
    /// of the metrics need not be reported either.
    fn is_repeated(&self, last: &Self) -> bool {
        let is_same = self.remote == last.remote
            && self.stat == last.stat
            && self.slots_there == last.slots_there
            && Arc::ptr_eq(&self.digest, &last.digest);
        // A silent host is reported with the time that is left.
        is_same
            && self.remote.silent.is_none()
            && self.heard.saturating_duration_since(last.heard) < SILENCE_INTERVAL
    }

    /// Makes the metrics of a lane those of the other host. What is counted here of requests that
    /// the other host has not reported yet counts as well.
    pub(crate) fn merge_into(&self, stat: &mut pointsman_domain::LaneStat) {
        let Self { stat: there, slots_there, heard, .. } = self;
        let unused = slots_there.saturating_sub(stat.running);
        stat.slots_free = stat.slots_free.min(there.slots_free).min(unused);
        stat.running = there.running.max(stat.running.min(*slots_there));
        stat.waiting = there.waiting.saturating_add(there.queued);
        stat.kv_used = there.kv_used;
        stat.errors = stat.errors.max(there.errors);
        stat.decode_tps = there.decode_tps;
        if stat.ttft_p50_ms == 0 {
            (stat.ttft_p50_ms, stat.ttft_p99_ms) = (there.ttft_p50_ms, there.ttft_p99_ms);
        }
        let age = u32::try_from(heard.elapsed().as_millis()).unwrap_or(u32::MAX);
        stat.stale_ms = there.stale_ms.saturating_add(age);
    }
}

#[cfg(test)]
mod tests;
