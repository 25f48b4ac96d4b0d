use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone, PartialEq, Eq)]
struct Letter {
    name: String,
    counts: Counts,
    open: bool,
}

impl Versioned for Letter {
    fn fingerprint(&self) -> &str {
        &self.name
    }

    fn counts(&self) -> Counts {
        self.counts
    }

    fn out_of_service(&self) -> bool {
        self.open
    }
}

fn letter(name: &str) -> Letter {
    Letter { name: name.to_owned(), counts: Counts::default(), open: false }
}

const NOW: Duration = Duration::ZERO;
const LIMITS: Probation = Probation { lasts: Duration::from_secs(60), faults: 10, slow: 500 };
const CANARY: Rollout = Rollout::Canary { share: 100, by: crate::spec::CanaryBy::Tenant };

fn with(names: &[&str]) -> PolicySlot<Letter> {
    let mut place = PolicySlot::default();
    for name in names {
        place.offer(letter(name), Rollout::Replace, LIMITS, NOW, 2);
    }
    place
}

fn shown(place: &PolicySlot<Letter>) -> String {
    let name = |letter: &Letter| letter.name.clone();
    let history: Vec<String> = place.history.iter().map(name).collect();
    let active = place.active.as_ref().map(name).unwrap_or_default();
    let trial = place.trial.as_ref().map(|(it, _)| name(it)).unwrap_or_default();
    format!("{active}/{trial}/{}", history.join(""))
}

#[test]
fn a_new_version_replaces_and_the_old_ones_are_kept_up_to_a_number() {
    assert_eq!(shown(&with(&["a"])), "a//");
    assert_eq!(with(&["a"]).watch, None, "there is nothing to go back to");
    assert_eq!(shown(&with(&["a", "b"])), "b//a");
    assert!(with(&["a", "b"]).watch.is_some());
    assert_eq!(shown(&with(&["a", "b", "c", "d"])), "d//cb");
    assert_eq!(shown(&with(&["a", "b", "a"])), "a//b");
}

#[test]
fn the_first_version_is_in_service_whatever_the_rollout() {
    let mut place = PolicySlot::default();
    assert_eq!(place.offer(letter("a"), Rollout::Shadow, LIMITS, NOW, 2), Offered::Active);
    assert_eq!(place.offer(letter("b"), Rollout::Shadow, LIMITS, NOW, 2), Offered::Trial);
    assert_eq!(shown(&place), "a/b/");
    assert_eq!(place.promote(None, LIMITS, NOW, 2).unwrap().name, "b");
    assert_eq!(shown(&place), "b//a");
    assert_eq!(place.promote(None, LIMITS, NOW, 2), Err(Refused::NoTrial));
}

#[test]
fn rolling_back_sets_aside_what_is_left() {
    let mut place = with(&["a", "b", "c"]);
    assert_eq!(place.roll_back(None, "by hand").unwrap().name, "c");
    assert_eq!(shown(&place), "b//ac");
    assert_eq!(place.why_set_aside("c"), Some("by hand"));
    assert_eq!(place.roll_back(Some("a"), "by hand").unwrap().name, "b");
    assert_eq!(shown(&place), "a//cb");
    // A promotion is the way back, and forgives.
    place.promote(Some("c"), LIMITS, NOW, 2).unwrap();
    assert_eq!((shown(&place).as_str(), place.why_set_aside("c")), ("c//ab", None));
    assert_eq!(place.promote(Some("c"), LIMITS, NOW, 2), Err(Refused::InService("c".into())));
    assert!(matches!(place.roll_back(Some("x"), ""), Err(Refused::NoSuch(..))));
    assert_eq!(with(&["a"]).roll_back(None, ""), Err(Refused::NoEarlier));
}

#[test]
fn a_trial_is_what_is_rolled_back_first() {
    let mut place = with(&["a"]);
    place.offer(letter("b"), CANARY, LIMITS, NOW, 2);
    assert_eq!(place.roll_back(None, "no").unwrap().name, "b");
    assert_eq!((shown(&place).as_str(), place.why_set_aside("b")), ("a//", Some("no")));
}

#[test]
fn probation_ends_by_faults_by_slowness_by_the_breaker_or_well() {
    let counts = |calls, faults, slow| Counts { calls, faults, slow };
    for (counts, open, taken_back) in [
        (counts(1000, 2, 0), false, false),
        (counts(1000, 11, 0), false, true),
        (counts(1000, 10, 0), false, false),
        (counts(3, 3, 0), false, true),
        (counts(49, 0, 49), false, false),
        (counts(60, 0, 31), false, true),
        (counts(60, 0, 30), false, false),
        (counts(0, 0, 0), true, true),
    ] {
        let mut place = with(&["a", "b"]);
        let active = place.active.as_mut().unwrap();
        (active.counts, active.open) = (counts, open);
        let left = place.judge(LIMITS, NOW).map(|(left, _)| left.name);
        assert_eq!(left.as_deref(), taken_back.then_some("b"), "{counts:?}");
        assert_eq!(shown(&place), if taken_back { "a//b" } else { "b//a" });
        assert_eq!(place.why_set_aside("b").is_some(), taken_back);
    }
    let mut place = with(&["a", "b"]);
    assert_eq!(place.judge(LIMITS, LIMITS.lasts), None);
    assert_eq!(place.watch, None);
    place.active.as_mut().unwrap().open = true;
    assert_eq!(place.judge(LIMITS, LIMITS.lasts), None, "its time is over");
}

#[test]
fn a_canary_that_fails_is_given_up_and_a_shadow_is_not() {
    for (rollout, given_up) in [(CANARY, true), (Rollout::Shadow, false)] {
        let mut place = with(&["a"]);
        place.offer(Letter { open: true, ..letter("b") }, rollout, LIMITS, NOW, 2);
        assert_eq!(place.judge(LIMITS, NOW).is_some(), given_up);
        assert_eq!(shown(&place), if given_up { "a//" } else { "a/b/" });
    }
}

#[test]
fn whoever_is_on_probation_is_judged_though_another_one_is_tried_out() {
    for rollout in [CANARY, Rollout::Shadow] {
        let mut place = with(&["a", "b"]);
        place.offer(letter("c"), rollout, LIMITS, NOW, 2);
        assert_eq!(place.judge(LIMITS, NOW), None);
        place.active.as_mut().unwrap().open = true;
        assert_eq!(place.judge(LIMITS, NOW).map(|(left, _)| left.name).as_deref(), Some("b"));
        assert_eq!(shown(&place), "a/c/b", "what is tried out stays");
    }
}

#[test]
fn going_back_never_leads_to_what_was_left() {
    let mut place = with(&["a", "b"]);
    assert_eq!(place.roll_back(None, "why").map(|left| left.name).as_deref(), Ok("b"));
    assert_eq!(place.roll_back(None, "why"), Err(Refused::NoEarlier));
    assert_eq!(shown(&place), "a//b");
    // By its name it can be had.
    assert!(place.promote(Some("b"), LIMITS, NOW, 2).is_ok());
    assert_eq!(shown(&place), "b//a");
}

proptest! {
    /// Whatever happens, there is one version in service once there was one, nobody is there twice, and what is kept is
    /// bounded.
    #[test]
    fn any_history_keeps_its_shape(steps in proptest::collection::vec((0u8..6, 0u8..6, any::<bool>()), 1..60)) {
        let mut place: PolicySlot<Letter> = PolicySlot::default();
        for (what, which, open) in steps {
            let name = ((b'a' + which) as char).to_string();
            match what {
                0 => drop(place.offer(letter(&name), Rollout::Replace, LIMITS, NOW, 3)),
                1 => drop(place.offer(letter(&name), CANARY, LIMITS, NOW, 3)),
                2 => drop(place.promote(open.then_some(name.as_str()), LIMITS, NOW, 3)),
                3 => drop(place.roll_back(open.then_some(name.as_str()), "why")),
                4 => if let Some(active) = &mut place.active { active.open = open },
                _ => drop(place.judge(LIMITS, NOW)),
            }
            let started = place.versions().next().is_some();
            prop_assert_eq!(place.active.is_some(), started);
            prop_assert!(place.history.len() <= 4, "{}", shown(&place));
            let mut settled: Vec<&str> = place.active.iter().chain(&place.history).map(Versioned::fingerprint).collect();
            settled.sort_unstable();
            let count = settled.len();
            settled.dedup();
            prop_assert_eq!(settled.len(), count, "twice: {}", shown(&place));
        }
    }
}
