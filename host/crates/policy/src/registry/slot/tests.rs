use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone, PartialEq, Eq)]
struct TestVersion {
    name: String,
    counts: Counts,
    open: bool,
    verdict: Option<Verdict>,
}

impl Versioned for TestVersion {
    fn fingerprint(&self) -> &str {
        &self.name
    }

    fn counts(&self) -> Counts {
        self.counts
    }

    fn is_breaker_open(&self) -> bool {
        self.open
    }

    fn begin_trial(&self, _: u16) {}

    fn verdict(&self, outcomes: JudgedOutcomes) -> Option<Verdict> {
        self.verdict.clone().filter(|verdict| outcomes.contains(verdict.outcome))
    }
}

fn version(name: &str) -> TestVersion {
    TestVersion { name: name.to_owned(), counts: Counts::default(), open: false, verdict: None }
}

const NOW: Duration = Duration::ZERO;
const LIMITS: Probation = Probation {
    lasts: Duration::from_secs(60),
    faults: 10,
    slow: 500,
    control: 100,
    outcomes: JudgedOutcomes::ALL,
};
const CANARY: Rollout = Rollout::Canary { share: 100, by: pointsman_spec::CanaryBy::Tenant };

fn slot_with(names: &[&str]) -> PolicySlot<TestVersion> {
    let mut slot = PolicySlot::default();
    for name in names {
        slot.stage(version(name), Rollout::Replace, LIMITS, NOW, 2);
    }
    slot
}

fn format(slot: &PolicySlot<TestVersion>) -> String {
    let name = |version: &TestVersion| version.name.clone();
    let history: Vec<String> = slot.history.iter().map(name).collect();
    let active = slot.active.as_ref().map(name).unwrap_or_default();
    let candidate = slot.candidate.as_ref().map(|(version, _)| name(version)).unwrap_or_default();
    format!("{active}/{candidate}/{}", history.join(""))
}

#[test]
fn new_version_becomes_active_and_history_is_bounded() {
    assert_eq!(format(&slot_with(&["a"])), "a//");
    assert_eq!(slot_with(&["a"]).watch, None, "there is no version to roll back to");
    assert_eq!(format(&slot_with(&["a", "b"])), "b//a");
    assert!(slot_with(&["a", "b"]).watch.is_some());
    assert_eq!(format(&slot_with(&["a", "b", "c", "d"])), "d//cb");
    assert_eq!(format(&slot_with(&["a", "b", "a"])), "a//b");
}

fn operator() -> RejectReason {
    RejectReason::operator()
}

#[test]
fn first_version_becomes_active_with_any_rollout() {
    let mut slot = PolicySlot::default();
    assert_eq!(slot.stage(version("a"), Rollout::Shadow, LIMITS, NOW, 2), Staged::Active);
    assert_eq!(slot.stage(version("b"), Rollout::Shadow, LIMITS, NOW, 2), Staged::Candidate);
    assert_eq!(format(&slot), "a/b/");
    assert_eq!(slot.promote(None, LIMITS, NOW, 2).unwrap().name, "b");
    assert_eq!(format(&slot), "b//a");
    assert_eq!(slot.promote(None, LIMITS, NOW, 2), Err(SlotError::NoCandidate));
}

#[test]
fn roll_back_rejects_the_version_that_it_leaves() {
    let mut slot = slot_with(&["a", "b", "c"]);
    assert_eq!(slot.roll_back(None, &operator()).unwrap().name, "c");
    assert_eq!(format(&slot), "b//ac");
    assert_eq!(slot.rejection_reason("c"), Some(&operator()));
    assert_eq!(slot.roll_back(Some("a"), &operator()).unwrap().name, "b");
    assert_eq!(format(&slot), "a//cb");
    // A promotion overrides the rejection.
    slot.promote(Some("c"), LIMITS, NOW, 2).unwrap();
    assert_eq!((format(&slot).as_str(), slot.rejection_reason("c")), ("c//ab", None));
    assert_eq!(slot.promote(Some("c"), LIMITS, NOW, 2), Err(SlotError::AlreadyActive("c".into())));
    assert!(matches!(
        slot.roll_back(Some("x"), &operator()),
        Err(SlotError::VersionNotFound { .. })
    ));
    assert_eq!(slot_with(&["a"]).roll_back(None, &operator()), Err(SlotError::NoEarlierVersion));
}

#[test]
fn roll_back_drops_the_candidate_first() {
    let mut slot = slot_with(&["a"]);
    slot.stage(version("b"), CANARY, LIMITS, NOW, 2);
    assert_eq!(slot.roll_back(None, &operator()).unwrap().name, "b");
    assert_eq!((format(&slot).as_str(), slot.rejection_reason("b")), ("a//", Some(&operator())));
}

#[test]
fn probation_ends_by_faults_slow_calls_breaker_or_timeout() {
    let counts = |calls, own_faults, own_slow| Counts {
        calls,
        faults: calls,
        slow: calls,
        own_faults,
        own_slow,
        ..Counts::default()
    };
    for (counts, open, code) in [
        (counts(1000, 2, 0), false, None),
        (counts(1000, 11, 0), false, Some(RejectionCode::FaultRate)),
        (counts(1000, 10, 0), false, None),
        (counts(3, 3, 0), false, Some(RejectionCode::FaultRate)),
        (counts(49, 0, 49), false, None),
        (counts(60, 0, 31), false, Some(RejectionCode::SlowCalls)),
        (counts(60, 0, 30), false, None),
        (counts(1000, 3, 0), true, Some(RejectionCode::BreakerOpen)),
        // The version before has the faults that opened the breaker as well.
        (counts(1000, 2, 0), true, None),
    ] {
        let rolled_back = code.is_some();
        let mut slot = slot_with(&["a", "b"]);
        let active = slot.active.as_mut().unwrap();
        (active.counts, active.open) = (counts, open);
        let replaced = slot.evaluate(LIMITS, NOW).map(|(replaced, _)| replaced.name);
        assert_eq!(replaced.as_deref(), rolled_back.then_some("b"), "{counts:?}");
        assert_eq!(format(&slot), if rolled_back { "a//b" } else { "b//a" });
        assert_eq!(slot.rejection_reason("b").map(|reason| reason.code), code);
    }
    let mut slot = slot_with(&["a", "b"]);
    assert_eq!(slot.evaluate(LIMITS, LIMITS.lasts), None);
    assert_eq!(slot.watch, None);
    slot.active.as_mut().unwrap().open = true;
    assert_eq!(slot.evaluate(LIMITS, LIMITS.lasts), None, "the probation is over");
}

#[test]
fn failing_canary_is_dropped_and_shadow_is_not() {
    for (rollout, is_dropped) in [(CANARY, true), (Rollout::Shadow, false)] {
        let mut slot = slot_with(&["a"]);
        let counts = Counts { calls: 3, faults: 3, own_faults: 3, ..Counts::default() };
        slot.stage(TestVersion { counts, open: true, ..version("b") }, rollout, LIMITS, NOW, 2);
        assert_eq!(slot.evaluate(LIMITS, NOW).is_some(), is_dropped);
        assert_eq!(format(&slot), if is_dropped { "a//" } else { "a/b/" });
    }
}

#[test]
fn probation_is_evaluated_while_a_candidate_is_staged() {
    for rollout in [CANARY, Rollout::Shadow] {
        let mut slot = slot_with(&["a", "b"]);
        slot.stage(version("c"), rollout, LIMITS, NOW, 2);
        assert_eq!(slot.evaluate(LIMITS, NOW), None);
        let active = slot.active.as_mut().unwrap();
        active.open = true;
        active.counts = Counts { calls: 3, faults: 3, own_faults: 3, ..Counts::default() };
        assert_eq!(
            slot.evaluate(LIMITS, NOW).map(|(replaced, _)| replaced.name).as_deref(),
            Some("b")
        );
        assert_eq!(format(&slot), "a/c/b", "the candidate stays staged");
    }
}

#[test]
fn roll_back_skips_rejected_versions() {
    let mut slot = slot_with(&["a", "b"]);
    assert_eq!(slot.roll_back(None, &operator()).map(|replaced| replaced.name).as_deref(), Ok("b"));
    assert_eq!(slot.roll_back(None, &operator()), Err(SlotError::NoEarlierVersion));
    assert_eq!(format(&slot), "a//b");
    // It can be promoted by name.
    assert!(slot.promote(Some("b"), LIMITS, NOW, 2).is_ok());
    assert_eq!(format(&slot), "b//a");
}

proptest! {
    /// After any operations: a slot that had an active version has one, no version is active or in
    /// the history twice, and the history is bounded.
    #[test]
    fn invariants_hold_after_any_operations(
        steps in proptest::collection::vec((0u8..6, 0u8..6, any::<bool>()), 1..60),
    ) {
        let mut slot: PolicySlot<TestVersion> = PolicySlot::default();
        for (operation, version_index, open) in steps {
            let name = ((b'a' + version_index) as char).to_string();
            // Errors are allowed: they must keep the invariants as well.
            match operation {
                0 => drop(slot.stage(version(&name), Rollout::Replace, LIMITS, NOW, 3)),
                1 => drop(slot.stage(version(&name), CANARY, LIMITS, NOW, 3)),
                2 => drop(slot.promote(open.then_some(name.as_str()), LIMITS, NOW, 3)),
                3 => drop(slot.roll_back(open.then_some(name.as_str()), &operator())),
                4 => if let Some(active) = &mut slot.active { active.open = open },
                _ => drop(slot.evaluate(LIMITS, NOW)),
            }
            let has_versions = slot.versions().next().is_some();
            prop_assert_eq!(slot.active.is_some(), has_versions);
            prop_assert!(slot.history.len() <= 4, "{}", format(&slot));
            let mut unique: Vec<&str> =
                slot.active.iter().chain(&slot.history).map(Versioned::fingerprint).collect();
            unique.sort_unstable();
            let count = unique.len();
            unique.dedup();
            prop_assert_eq!(unique.len(), count, "duplicate: {}", format(&slot));
        }
    }
}

#[test]
fn version_is_rolled_back_by_the_outcomes_that_are_judged() {
    let verdict = |outcome| Verdict { outcome, new: (40, 45), control: (0, 5) };
    for (outcome, code) in [
        (JudgedOutcome::Refused, RejectionCode::RefusalRate),
        (JudgedOutcome::NoLane, RejectionCode::NoLaneRate),
        (JudgedOutcome::Error, RejectionCode::ErrorRate),
        (JudgedOutcome::Fallback, RejectionCode::FallbackRate),
        (JudgedOutcome::SlowStart, RejectionCode::SlowStart),
    ] {
        let mut slot = slot_with(&["a", "b"]);
        slot.active.as_mut().unwrap().verdict = Some(verdict(outcome));
        let others = JudgedOutcome::ALL.into_iter().filter(|other| *other != outcome);
        let ignored = Probation { outcomes: others.collect(), ..LIMITS };
        assert_eq!(slot.evaluate(ignored, NOW), None);
        let (replaced, reason) = slot.evaluate(LIMITS, NOW).unwrap();
        assert_eq!((replaced.name.as_str(), reason.code), ("b", code));
        assert_eq!(format(&slot), "a//b");
    }
    let mut slot = slot_with(&["a"]);
    slot.stage(version("b"), CANARY, LIMITS, NOW, 2);
    slot.candidate.as_mut().unwrap().0.verdict = Some(verdict(JudgedOutcome::NoLane));
    assert_eq!(slot.evaluate(LIMITS, NOW).unwrap().1.code, RejectionCode::NoLaneRate);
    assert_eq!(format(&slot), "a//");
}
