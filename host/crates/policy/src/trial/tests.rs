use std::sync::Arc;

use pointsman_domain::{LaneId, NoLaneReason, PolicyRef, Rejection};

use super::*;

/// Requests of one simulated rollout.
const REQUESTS: usize = 3000;
/// Simulated rollouts of each kind.
const RUNS: u64 = 500;
/// The default share of the requests that stay with the version before, in thousandths.
const CONTROL: u16 = 100;

/// SplitMix64: a small generator, so that the runs are the same on every machine.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Returns a number from 0 to 1.
    fn unit(&mut self) -> f64 {
        f64::from(u32::try_from(self.next() >> 32).unwrap()) / f64::from(u32::MAX)
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[usize::try_from(self.next() % of.len() as u64).unwrap()]
    }
}

/// Traffic that changes by itself: every 20 to 400 requests, everything is different.
struct Traffic {
    random: Random,
    left: u64,
    refused: f64,
    no_lane: f64,
    error: f64,
    fallback: f64,
    first_byte_ms: f64,
}

impl Traffic {
    fn new(seed: u64) -> Self {
        let (refused, no_lane, error, fallback, first_byte_ms) = (0.0, 0.0, 0.0, 0.0, 50.0);
        Self { random: Random(seed), left: 0, refused, no_lane, error, fallback, first_byte_ms }
    }

    fn advance(&mut self) {
        if self.left > 0 {
            self.left -= 1;
            return;
        }
        let random = &mut self.random;
        self.left = 20 + random.next() % 380;
        self.refused = random.pick(&[0.0, 0.0, 0.05, 0.5, 1.0]);
        self.no_lane = random.pick(&[0.0, 0.0, 0.02, 0.3]);
        self.error = random.pick(&[0.0, 0.005, 0.05, 0.4, 0.95]);
        self.fallback = random.pick(&[0.0, 0.02, 0.2, 0.9]);
        self.first_byte_ms = random.pick(&[5.0, 40.0, 300.0, 4000.0]);
    }
}

/// What a new version does to its requests.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Effect {
    None,
    RefusesAll,
    FiltersAllLanes,
    /// Rejects everything from the thousandth request on.
    RefusesAllLater,
    /// Another part of the requests ends in an error.
    MoreErrors(f64),
    /// The first byte takes so many times as long.
    Slower(f64),
}

fn rejection() -> Decision {
    let message = String::new();
    let (status, code) = (403, "blocked".to_owned());
    let rejection = Rejection { status, code, message, retry_after_s: None };
    Decision::Reject(PolicyRef::new("p", "1"), rejection)
}

fn route() -> Decision {
    use pointsman_domain::{OnTimeout, Plan, Switching, Triggers};
    Decision::Route(Plan {
        steps: Vec::new(),
        on: Triggers::ALL,
        priority: 0,
        flow: None,
        max_wait: Duration::ZERO,
        on_timeout: OnTimeout::FallBack,
        first_token: None,
        switching: Switching::Allow,
    })
}

fn outcome(ended: AttemptResult, tries: u32, ttft: Duration) -> Outcome {
    Outcome {
        request_id: Arc::from("r"),
        tenant: None,
        model: Arc::from("m"),
        lane: LaneId(0),
        topology: 1,
        ended,
        tries,
        queue: Duration::ZERO,
        ttft,
        total: ttft * 2,
        prompt_tokens: 0,
        cached_tokens: 0,
        output_tokens: 0,
        attempts: Vec::new(),
        notes: Vec::new(),
    }
}

/// Serves one request, with what the version adds.
fn serve(judge: &Judge, traffic: &mut Traffic, effect: Effect, index: usize) {
    traffic.advance();
    let arm = judge.arm(traffic.random.next());
    let effect = if arm == Arm::New { effect } else { Effect::None };
    let mut happens = |rate: f64| traffic.random.unit() < rate;
    let own_refusal =
        effect == Effect::RefusesAll || effect == Effect::RefusesAllLater && index >= REQUESTS / 3;
    let is_refused = happens(traffic.refused) || own_refusal;
    let is_without_lane = happens(traffic.no_lane) || effect == Effect::FiltersAllLanes;
    if is_refused || is_without_lane {
        let no_lane = Decision::NoLane(NoLaneReason::FilteredOut);
        return judge.decided(arm, &if is_refused { rejection() } else { no_lane });
    }
    judge.decided(arm, &route());
    let own = if let Effect::MoreErrors(rate) = effect { rate } else { 0.0 };
    let is_error = happens(traffic.error) | happens(own);
    let tries = if happens(traffic.fallback) { 2 } else { 1 };
    // Skewed, with outliers: the tail of a Pareto distribution.
    let spread = (1.0 - traffic.random.unit()).max(1e-4).powf(-0.5);
    let factor = if let Effect::Slower(factor) = effect { factor } else { 1.0 };
    let first_byte = Duration::from_secs_f64(traffic.first_byte_ms * spread * factor / 1000.0);
    let ended = if is_error { AttemptResult::ServerError } else { AttemptResult::Ok };
    judge.ended(arm, &outcome(ended, tries, first_byte));
}

/// Returns after how many requests a rollout is judged to be worse, and by which outcome.
fn alarm(seed: u64, effect: Effect) -> Option<(usize, JudgedOutcome)> {
    let judge = Judge::new(CONTROL);
    let mut traffic = Traffic::new(seed);
    (0..REQUESTS).find_map(|index| {
        serve(&judge, &mut traffic, effect, index);
        Some((index + 1, judge.verdict(JudgedOutcomes::ALL)?.outcome))
    })
}

/// Prints the alarms of simulated rollouts; returns their number, and the median of their delays.
fn alarms(effect: Effect) -> (usize, usize) {
    let mut delays: Vec<usize> =
        (1..=RUNS).filter_map(|seed| Some(alarm(seed, effect)?.0)).collect();
    delays.sort_unstable();
    let at = |part: usize| delays.get(delays.len() * part / 100).copied().unwrap_or_default();
    println!(
        "{:24} seeds 1..={RUNS}: {:3} alarms; after {:4} requests (median), {:4} (p90)",
        format!("{effect:?}"),
        delays.len(),
        at(50),
        at(90)
    );
    (delays.len(), at(50))
}

/// The bound of false alarms is one in a thousand rollouts, whatever the traffic does.
#[test]
fn traffic_that_changes_by_itself_raises_no_alarm() {
    assert!(alarms(Effect::None).0 <= 3);
}

/// A version that is better is not worse.
#[test]
fn faster_version_raises_no_alarm() {
    assert!(alarms(Effect::Slower(0.2)).0 <= 3);
}

#[test]
fn worse_versions_are_found_within_a_bounded_number_of_requests() {
    for (effect, min_percent, max_median) in [
        (Effect::RefusesAll, 100, 150),
        (Effect::FiltersAllLanes, 100, 150),
        (Effect::RefusesAllLater, 98, REQUESTS / 3 + 200),
        (Effect::MoreErrors(0.3), 60, 1500),
        (Effect::Slower(2.0), 70, 1500),
        (Effect::Slower(3.0), 90, 800),
    ] {
        let (found, median) = alarms(effect);
        assert!(found as u64 * 100 >= min_percent * RUNS, "{effect:?}: {found} of {RUNS}");
        assert!(median <= max_median, "{effect:?}: {median} requests");
    }
}

/// With steady traffic, a version that rejects everything is found with some tens of requests.
#[test]
fn few_requests_suffice_if_all_of_them_are_refused() {
    let judge = Judge::new(CONTROL);
    let mut random = Random(7);
    let count = (1..1000).find(|_| {
        let arm = judge.arm(random.next());
        judge.decided(arm, &if arm == Arm::New { rejection() } else { route() });
        judge.verdict(JudgedOutcomes::ALL).is_some()
    });
    let count = count.unwrap();
    assert!((10..=120).contains(&count), "{count} requests");
    let verdict = judge.verdict(JudgedOutcomes::ALL).unwrap();
    assert_eq!(verdict.outcome, JudgedOutcome::Refused);
    assert_eq!((verdict.new.0, verdict.control.0), (verdict.new.1, 0));
    let status = judge.status(JudgedOutcomes::ALL).unwrap();
    assert_eq!((status.suspect, status.evidence_percent), (JudgedOutcome::Refused, 100));
    // An operator who expects rejections does not judge by them.
    let others = JudgedOutcome::ALL.into_iter().filter(|other| *other != JudgedOutcome::Refused);
    assert_eq!(judge.verdict(others.collect()), None);
}

#[test]
fn share_of_the_version_before_is_random_and_exact() {
    let judge = Judge::new(CONTROL);
    let mut random = Random(1);
    let control = (0..100_000).filter(|_| judge.arm(random.next()) == Arm::Control).count();
    assert!((9_600..=10_400).contains(&control), "{control}");
    let all = Judge::new(0);
    assert!((0..1000).all(|_| all.arm(random.next()) == Arm::New));
    assert_eq!(all.status(JudgedOutcomes::ALL), None);
}
