use super::*;
use crate::{Allowance, FleetView as _, LaneState, Remaining, Wish};

/// A policy that uses all hooks and services.
struct KitchenSink;

impl Policy for KitchenSink {
    const NAME: &'static str = "kitchen-sink";
    const VERSION: &'static str = "1.0.0";

    fn configure(_: &str) -> Result<Self, PolicyError> {
        Ok(Self)
    }

    fn advise(&self, call: &Call<'_>) -> Result<Advice, PolicyError> {
        call.metrics.add("calls", 2);
        call.log.write_with(Level::Trace, || panic!("trace level is disabled"));
        call.log.write_with(Level::Info, || format!("at {}", call.context.now_ms));
        let seen = call
            .state
            .increment("seen", 1, 100)
            .map_err(|error| PolicyError::Other(error.to_string()))?;
        Ok(Advice::only(call.fleet.candidates()).with_reason(format!("seen {seen}")))
    }
}

impl Recover for KitchenSink {
    fn recover(&self, call: &Call<'_>, failed: &Failure) -> Result<Recovery, PolicyError> {
        let other = call.fleet.candidates().into_iter().find(|lane| *lane != failed.lane);
        Ok(other.map_or(Recovery::Planned, |lane| Recovery::Retry(crate::FallbackStep::new(lane))))
    }
}

impl Observe for KitchenSink {
    fn observe(&self, background: &Background<'_>, done: &[Outcome]) {
        assert!(background.fleet.candidates().is_empty(), "no request, so no candidates");
        done.iter().for_each(|outcome| background.metrics.record("ttft", outcome.ttft_ms.into()));
    }
}

impl Tick for KitchenSink {
    fn tick(&self, background: &Background<'_>, seed: u64) -> Vec<LaneWish> {
        let cold = |stat: &&crate::LaneStat| stat.state == LaneState::Unloaded;
        let wish = |stat: &crate::LaneStat| LaneWish {
            lane: stat.id,
            wish: Wish::Load,
            for_ms: seed as u32,
        };
        background.fleet.stats().iter().filter(cold).map(wish).collect()
    }
}

impl Learn for KitchenSink {
    fn learn(&self, background: &Background<'_>, done: &[Finished]) {
        for Finished { attempts, notes, .. } in done {
            let failed = attempts.iter().filter(|attempt| attempt.ended != TryResult::Ok).count();
            let crate::Scalar::Text(note) = &notes[0].value else { continue };
            background.metrics.add(&format!("{note}: {failed} failed"), 1);
        }
    }
}

crate::export_policy!(KitchenSink, on_failure, on_complete, on_outcome, on_tick);

fn why(advice: &Advice) -> &crate::Scalar {
    &advice.notes[0].value
}

#[test]
fn fake_host_calls_every_hook_and_exposes_effects() {
    let mut fleet = FakeFleet::new(&["a", "b"]);
    fleet.stat_mut("b").state = LaneState::Unloaded;
    let host = FakeHost::new(fleet).at(7);
    let request = FakeRequest::chat(r#"{"model": "auto", "messages": []}"#);
    for count in ["seen 1", "seen 2"] {
        let advice = host.advise(&KitchenSink, &request).unwrap();
        assert_eq!(why(&advice), &crate::Scalar::Text(count.into()));
    }
    host.advance(100);
    assert_eq!(
        why(&host.advise(&KitchenSink, &request).unwrap()),
        &crate::Scalar::Text("seen 1".into()),
        "expired"
    );
    assert_eq!((host.counter("calls"), host.counter("other")), (6, 0));
    assert_eq!(host.log_lines()[2], (Level::Info, "at 107".to_owned()));
    let failed = Failure {
        lane: 0,
        what: TryResult::ServerError,
        status: 500,
        sent_bytes: 0,
        elapsed_ms: 5,
        tries_left: 1,
    };
    let recovery = host.recover(&KitchenSink, &request, &failed).unwrap();
    assert!(matches!(recovery, Recovery::Retry(step) if step.lane == 1));
    host.observe(&KitchenSink, &[Outcome { ttft_ms: 30, ..outcome(0) }, outcome(1)]);
    assert_eq!(host.recorded_values("ttft"), [30, 0]);
    let advice = Advice::any().with_reason("a note");
    let mut done = finished(outcome(1), &advice);
    done.attempts.insert(0, Attempt { ended: TryResult::ServerError, ..done.attempts[0] });
    host.learn(&KitchenSink, &[done]);
    assert_eq!(host.counter("a note: 1 failed"), 1);
    assert_eq!(host.tick(&KitchenSink, 9), [LaneWish { lane: 1, wish: Wish::Load, for_ms: 9 }]);
}

#[test]
fn state_enforces_limits_and_entry_kinds() {
    let services = FakeServices::default();
    let state = State(&services);
    assert_eq!(state.put(&"k".repeat(129), b"", 0), Err(StateError::TooLong));
    assert_eq!(state.put("k", &[0; 4097], 0), Err(StateError::TooLong));
    assert_eq!(state.put("k", b"v", 0), Ok(()));
    assert_eq!(state.increment("k", 1, 0), Err(StateError::NotACounter));
    assert_eq!((state.increment("n", 5, 10), state.increment("n", -2, 10)), (Ok(5), Ok(3)));
    assert_eq!(state.get("n"), Some(3i64.to_le_bytes().to_vec()));
    services.now_ms.set(9);
    assert_eq!(state.increment("n", 0, 10), Ok(3), "later use does not extend the ttl");
    services.now_ms.set(10);
    assert_eq!(state.get("n"), None);
    services.full.set(true);
    assert_eq!(state.put("k", b"w", 0), Ok(()), "existing entries may change");
    assert_eq!(state.put("new", b"", 0), Err(StateError::Full));
    assert_eq!(state.increment("new", 1, 0), Err(StateError::Full));
    state.delete("k");
    assert_eq!(state.get("k"), None);
}

#[test]
fn prefix_hashes_cover_blocks_across_messages() {
    let two =
        FakeRequest::chat(r#"{"messages": [{"content": "foo"}, {"content": [{"text": "bar"}]}]}"#);
    // FNV-1a 64 of "foobar", from the reference test suite.
    assert_eq!(two.prefix_hashes(6, 9), [0x8594_4171_f739_67e8]);
    assert_eq!(two.prefix_hashes(4, 9).len(), 1, "an incomplete block has no hash");
    assert_eq!(two.prefix_hashes(1, 3).len(), 3);
    assert!(two.prefix_hashes(0, 3).is_empty());
    assert_eq!(two.body(1, 10), b"\"messages\"");
}

#[test]
fn read_limit_applies_per_call() {
    struct Reader;

    impl Policy for Reader {
        const NAME: &'static str = "reader";
        const VERSION: &'static str = "1.0.0";

        fn configure(_: &str) -> Result<Self, PolicyError> {
            Ok(Self)
        }

        fn advise(&self, call: &Call<'_>) -> Result<Advice, PolicyError> {
            let first = call.request.text(0, 0, 4);
            let second = call.request.text(0, 4, 4);
            let field = call.request.field("/messages", 1000);
            Ok(Advice::any().with_reason(format!("{first}|{second}|{field:?}")))
        }
    }

    let host = FakeHost::new(FakeFleet::new(&["a"]));
    let request = FakeRequest::chat(r#"{"messages": [{"content": "foobar"}]}"#).with_read_limit(5);
    for _ in 0..2 {
        let advice = host.advise(&Reader, &request).unwrap();
        assert_eq!(why(&advice), &crate::Scalar::Text("foob|a|FieldValue::TooLarge(22)".into()));
    }
}

/// The example of the documentation: a tenant with a low budget gets the cheap lane.
struct Thrift;

impl Policy for Thrift {
    const NAME: &'static str = "thrift";
    const VERSION: &'static str = "0.1.0";

    fn configure(_: &str) -> Result<Self, PolicyError> {
        Ok(Self)
    }

    fn advise(&self, call: &Call<'_>) -> Result<Advice, PolicyError> {
        let is_low = |budget: Remaining| budget.left < budget.limit / 10;
        match (call.request.allowance().budget, call.fleet.find("cheap")) {
            (Some(budget), Some(cheap)) if is_low(budget) => {
                Ok(Advice::only([cheap]).with_reason("budget is low"))
            }
            _ => Ok(Advice::any()),
        }
    }
}

#[test]
fn fake_request_has_the_key_and_limits_that_the_test_chooses() {
    let fleet = FakeFleet::new(&["fast", "cheap"]);
    let request = FakeRequest::chat(r#"{"model": "auto", "messages": []}"#);
    assert_eq!(advise(&Thrift, &request, &fleet), Ok(Advice::any()));
    let request = request.with_key("k_1", Some("staff"));
    assert_eq!(request.key_name().as_deref(), Some("k_1"));
    assert_eq!(request.key_group().as_deref(), Some("staff"));
    let cheap = Advice::only([1]).with_reason("budget is low");
    for (left, expected) in [(99, cheap), (100, Advice::any())] {
        let budget = Some(Remaining { limit: 1000, left, reset_ms: 60_000 });
        let allowance = Allowance { requests: None, tokens: None, budget };
        let request = request.clone().with_allowance(allowance);
        assert_eq!(advise(&Thrift, &request, &fleet), Ok(expected), "{left} left");
    }
}

#[test]
fn facts_follow_from_the_body() {
    let request = FakeRequest::chat(
        r#"{"model": "auto", "stream": true, "max_tokens": 9, "functions": [{}],
            "response_format": {"type": "json_object"}, "messages": [{"role": "user", "content":
            [{"type": "text", "text": "hi"}, {"type": "image_url", "image_url": {}}]}]}"#,
    );
    let context = &request.context;
    assert!(context.streaming && context.has_tools && context.has_media && context.has_grammar);
    assert_eq!(context.max_output_tokens, 9);
    let plain = FakeRequest::chat(r#"{"model": "auto", "messages": []}"#).context;
    assert!(!(plain.has_tools || plain.has_media || plain.has_grammar));
}

#[test]
fn fake_request_has_a_deadline_and_finds_patterns() {
    let body = r#"{"model": "auto", "messages": [{"role": "system", "content": "Be brief."},
        {"role": "user", "content": "A catalog of CATs"}]}"#;
    let request = FakeRequest::chat(body);
    assert_eq!(request.deadline_ms(), None);
    assert_eq!(request.clone().with_deadline_ms(900).deadline_ms(), Some(900));
    let patterns = ["dog", "cat", "cats", "brief"].map(str::to_owned);
    let found = |ignore_case| -> Vec<(u32, u32, u64)> {
        let found = request.find_any(&patterns, ignore_case);
        found.iter().map(|found| (found.pattern, found.message, found.offset)).collect()
    };
    assert_eq!(found(false), [(1, 1, 2), (3, 0, 3)]);
    assert_eq!(found(true), [(1, 1, 2), (2, 1, 13), (3, 0, 3)]);
}

#[test]
fn fake_fleet_has_the_lanes_that_earlier_filters_leave() {
    let mut fleet = FakeFleet::new(&["a", "b", "c"]);
    let left = |fleet: &FakeFleet| ModelView { fleet, model: Some("auto".to_owned()) }.lanes_left();
    assert_eq!(left(&fleet), [0, 1, 2]);
    fleet.lanes_left = Some(vec![1, 7]);
    assert_eq!(left(&fleet), [1], "only candidates are left");
}
