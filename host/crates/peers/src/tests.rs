use std::time::{Duration, Instant};

use pointsman_domain::{
    DIGEST_BLOCKS, DigestCursor, EndpointSet, EngineKind, FleetKey, LaneId, LaneInfo, LaneNames,
    LaneStat, LaneState, MAX_DIGEST, PrefixIndex, PromptHasher,
};
use proptest::prelude::*;

use crate::*;

const GOLDEN: &str = include_str!("../tests/golden.sse");

pub(crate) fn lane(id: u32, name: &str) -> LaneDescription {
    let info = LaneInfo {
        id: LaneId(id),
        name: name.to_owned(),
        engine: EngineKind::Vllm,
        models: vec!["Qwen/Qwen3-8B".to_owned(), "fast".to_owned()],
        names: LaneNames {
            own: vec!["coder".to_owned()],
            shared: vec!["fast".to_owned()],
            adapters: vec!["sql".to_owned()],
            derived: Vec::new(),
        },
        labels: vec![("zone".to_owned(), "a".to_owned())],
        max_context: 32768,
        endpoints: EndpointSet::new([pointsman_domain::Endpoint::ChatCompletions]),
        slots: 8,
        group: 1,
        cost_milli: 0,
        is_peer: false,
    };
    LaneDescription::new(&info, Some("gpu"))
}

pub(crate) fn topology(generation: u64, lanes: Vec<LaneDescription>) -> Event {
    let host = HostInfo { id: "5f0c".into(), name: "gpu-1".into(), software: "0.1.0".into() };
    Event::Topology(TopologyEvent { version: VERSION, generation, host, lanes })
}

fn report(id: u32, queued: u32) -> LaneReport {
    let stat = LaneStat { queued, ..LaneStat::idle(LaneId(id), LaneState::Ready, 8) };
    LaneReport::new(&stat)
}

fn decode(text: &str) -> Result<Vec<Event>, WireError> {
    let mut events = Vec::new();
    EventDecoder::default().push(text.as_bytes(), |event| events.push(event))?;
    Ok(events)
}

fn golden_events() -> Vec<Event> {
    let digest = DigestChange { whole: true, milli_tokens: 128_000, hashes: vec![1, 0xdead_beef] };
    let busy = LaneReport {
        running: 8,
        slots_free: 0,
        est_wait_ms: 450,
        kv_used: 310,
        decode_tps: 41,
        digest: Some(digest),
        ..report(0, 3)
    };
    let failed = LaneReport {
        state: LaneState::Down,
        slots_free: 0,
        ready_in_ms: 12_000,
        problem: Some("out_of_memory".into()),
        ..report(2, 0)
    };
    vec![
        topology(7, vec![lane(0, "big"), lane(2, "small")]),
        Event::Lanes(LaneReports { generation: 7, lanes: vec![busy, failed] }),
        Event::Heartbeat(Heartbeat { generation: 7 }),
    ]
}

#[test]
fn events_are_written_and_read_as_in_the_golden_file() {
    let events = golden_events();
    let text: String = events.iter().map(Event::to_sse).collect();
    assert_eq!(text, GOLDEN, "a change that earlier readers misunderstand needs a new version");
    assert_eq!(decode(GOLDEN), Ok(events));
}

#[test]
fn unknown_events_fields_and_values_are_ignored() {
    let text = concat!(
        ": comment\r\nid: 5\r\nevent: topology\r\n",
        "data: {\"version\":1,\"generation\":2,\"new\":[{}],\"host\":{\"id\":\"a\",\"new\":1},\r\n",
        "data: \"lanes\":[{\"id\":0,\"name\":\"l\",\"engine\":\"new\",\"endpoints\":[\"new\",",
        "\"chat-completions\"],\"new\":null}]}\r\n\r\n",
        "event: new\ndata: not JSON\n\n",
        "event: lanes\ndata: {\"generation\":2,\"lanes\":[{\"id\":0,\"state\":\"new\",\"new\":1}]}",
        "\n\n",
    );
    let mut view = PeerView::default();
    for event in decode(text).unwrap() {
        view.apply(event, Instant::now());
    }
    let lane = view.lane("l").unwrap();
    let info = lane.description.info(LaneId(4));
    assert_eq!((info.id, info.engine), (LaneId(4), EngineKind::Other));
    let chat = EndpointSet::new([pointsman_domain::Endpoint::ChatCompletions]);
    assert_eq!(info.endpoints, chat);
    assert_eq!(lane.report.state, LaneState::Down);
}

#[test]
fn what_cannot_be_understood_ends_the_stream_with_a_code() {
    let topology = |lanes: Vec<LaneDescription>| topology(1, lanes).to_sse();
    let named = |name: String| vec![LaneDescription { name, ..lane(0, "") }];
    let reports = |report: LaneReport, count| {
        let lanes = vec![report; count];
        Event::Lanes(LaneReports { generation: 1, lanes }).to_sse()
    };
    let digest = DigestChange { hashes: vec![1; MAX_DIGEST + 1], ..DigestChange::default() };
    let digest = LaneReport { digest: Some(digest), ..report(0, 0) };
    for (text, expected) in [
        ("event: topology\ndata: {\"version\":2,\"host\":7}\n\n".into(), "peer_version"),
        ("event: topology\ndata: {}\n\n".into(), "peer_invalid_event"),
        ("event: lanes\ndata: {\"generation\":-1}\n\n".into(), "peer_invalid_event"),
        (topology(vec![lane(1, "a"), lane(1, "b")]), "peer_invalid_event"),
        (topology(named(String::new())), "peer_invalid_event"),
        (topology(named("n".repeat(MAX_TEXT + 1))), "peer_event_too_large"),
        (topology((0..1025).map(|id| lane(id, "l")).collect()), "peer_event_too_large"),
        (reports(report(0, 0), MAX_LANES + 1), "peer_event_too_large"),
        (reports(digest, 1), "peer_event_too_large"),
        ("x".repeat(MAX_EVENT_BYTES + 1), "peer_event_too_large"),
        ("data: 0123456789\n".repeat(MAX_EVENT_BYTES / 8), "peer_event_too_large"),
    ] {
        let code = decode(&text).map_err(WireError::code);
        assert_eq!(code, Err(expected), "{:.80}", text);
    }
}

#[test]
fn view_folds_events_and_keeps_what_it_knows_of_lanes() {
    let (begun, mut view) = (Instant::now(), PeerView::default());
    let after = |ms| begun + Duration::from_millis(ms);
    let lanes = |generation, lanes| Event::Lanes(LaneReports { generation, lanes });
    view.apply(lanes(0, vec![report(0, 1)]), begun);
    assert_eq!((view.age(begun), view.host()), (None, None), "no topology yet");
    assert!(view.apply(topology(1, vec![lane(3, "b"), lane(0, "a")]), begun));
    assert_eq!(view.lane("a").unwrap().report.state, LaneState::Down, "not reported");
    view.apply(lanes(1, vec![report(0, 5), report(3, 6), report(9, 7)]), after(10));
    view.apply(lanes(2, vec![report(0, 8)]), after(20));
    assert_eq!(view.lane("a").unwrap().report.queued, 5, "a report of another generation");
    assert!(!view.apply(topology(2, vec![lane(0, "a"), lane(3, "b")]), after(30)));
    assert!(view.apply(topology(3, vec![lane(0, "b"), lane(1, "c")]), after(40)));
    let found: Vec<_> =
        view.lanes().iter().map(|lane| (lane.report.id, lane.report.queued)).collect();
    assert_eq!(found, [(0, 6), (1, 0)], "`b` has another id");
    let stat = view.lanes()[0].stat(LaneId(7), Duration::from_millis(25), None);
    assert_eq!((stat.id, stat.queued, stat.stale_ms), (LaneId(7), 6, 25));
    let Event::Topology(mut restarted) = topology(3, vec![lane(0, "b")]) else { return };
    restarted.host.id = "other".into();
    assert!(view.apply(Event::Topology(restarted), after(50)));
    assert_eq!(view.lanes()[0].report.queued, 0, "the host has restarted");
}

#[test]
fn silence_makes_a_view_degraded_and_then_down() {
    let (begun, mut view, limits) = (Instant::now(), PeerView::default(), StaleLimits::default());
    assert_eq!(view.liveness_at(begun, &limits), Liveness::Down);
    view.apply(topology(1, Vec::new()), begun);
    for (ms, expected) in [
        (999, Liveness::Live),
        (1000, Liveness::Degraded),
        (4999, Liveness::Degraded),
        (5000, Liveness::Down),
    ] {
        let now = begun + Duration::from_millis(ms);
        assert_eq!(view.liveness_at(now, &limits), expected, "{ms}");
        view.apply(Event::Heartbeat(Heartbeat { generation: 1 }), begun);
    }
}

#[test]
fn another_host_of_the_fleet_knows_what_a_lane_has_cached() {
    let key = FleetKey([7; 16]);
    let (index, reader) =
        (PrefixIndex::with_hasher(1, PromptHasher::for_fleet(&key)), PromptHasher::for_fleet(&key));
    let text: Vec<u8> = (0..128 * 100u32).map(|byte| (byte * byte / 7) as u8).collect();
    let part_of = |hasher: &PromptHasher, bytes: usize| hasher.hash("m", [&text[..bytes]]);
    let (mut digest, mut cursor) = (Digest::default(), DigestCursor::default());
    let mut update = |digest: &mut Digest| {
        let Some(part) = index.digest(LaneId(0), cursor) else { return false };
        cursor = part.cursor;
        digest.apply(&part.into());
        true
    };
    assert!(update(&mut digest), "the whole digest, which is empty");
    index.served(LaneId(0), &part_of(index.hasher(), 128 * 40));
    assert!(update(&mut digest) && !update(&mut digest));
    let tokens_of_block = 128 / 4;
    for (blocks, expected) in [(3, 0), (4, 4), (40, 40), (100, 40)] {
        let tokens = digest.cached_tokens(&part_of(&reader, blocks * 128));
        assert_eq!(tokens, expected * tokens_of_block, "{blocks} blocks");
    }
    let other = PromptHasher::for_fleet(&FleetKey([8; 16]));
    assert_eq!(digest.cached_tokens(&part_of(&other, 128 * 40)), 0, "another fleet");
    assert!(PrefixIndex::new(1).digest(LaneId(0), DigestCursor::default()).is_none());
    index.reset(LaneId(0), None);
    assert!(update(&mut digest) && digest.is_empty(), "the engine has restarted");
}

#[test]
fn digests_are_bounded_and_keep_the_newest_prompts() {
    let hasher = PromptHasher::for_fleet(&FleetKey([1; 16]));
    let index = PrefixIndex::with_hasher(1, hasher);
    let (mut digest, mut cursor) = (Digest::default(), DigestCursor::default());
    // Each prompt has a hash for each of its four blocks.
    let prompt = |number: u32| {
        let text: Vec<u8> = number.to_le_bytes().repeat(128 * 16 / 4);
        index.hasher().hash("m", [text.as_slice()])
    };
    for number in 0..3000 {
        index.served(LaneId(0), &prompt(number));
        let part = index.digest(LaneId(0), cursor).expect("each prompt adds hashes");
        cursor = part.cursor;
        digest.apply(&part.into());
        assert!((4..=MAX_DIGEST).contains(&digest.len()));
    }
    let tokens = |number| digest.cached_tokens(&prompt(number));
    let kept = u32::try_from(MAX_DIGEST / 2 / 16 * DIGEST_BLOCKS).unwrap();
    let newest = (3000 - kept..3000).all(|number| tokens(number) == 16 * 32);
    assert!(newest && tokens(0) == 0 && digest.len() > MAX_DIGEST / 2);
}

#[test]
fn full_digest_finds_few_hashes_that_it_does_not_have() {
    // A permutation of the numbers of 32 bits, so that no probe is one of the hashes.
    let hash =
        |number: u32| number.wrapping_mul(0x9e37_79b1) ^ (number.wrapping_mul(0x85eb_ca6b) >> 16);
    let mut digest = Digest::default();
    let full = u32::try_from(MAX_DIGEST).unwrap();
    let hashes = (0..full).map(hash).collect();
    digest.apply(&DigestChange { whole: true, milli_tokens: 1000, hashes });
    let probes = 20_000_000;
    let found = (full..full + probes).filter(|number| digest.contains(hash(*number))).count();
    // The expected number is 20,000,000 * 4096 / 2^32 = 19.
    assert!(found < 100, "{found} of {probes}");
}

proptest! {
    #[test]
    fn pieces_of_any_size_give_the_same_events(
        cuts in prop::collection::vec(0..GOLDEN.len(), 0..20),
        queued in any::<u32>(),
        hashes in prop::collection::vec(any::<u32>(), 0..50),
    ) {
        let digest = Some(DigestChange { whole: false, milli_tokens: queued, hashes });
        let lanes = vec![LaneReport { digest, ..report(0, queued) }];
        let mut events = golden_events();
        events.push(Event::Lanes(LaneReports { generation: 7, lanes }));
        let text: String = events.iter().map(Event::to_sse).collect();
        let mut cuts = cuts;
        cuts.extend([0, text.len()]);
        cuts.sort_unstable();
        let (mut decoder, mut found) = (EventDecoder::default(), Vec::new());
        for piece in cuts.windows(2) {
            let bytes = &text.as_bytes()[piece[0]..piece[1]];
            decoder.push(bytes, |event| found.push(event)).unwrap();
        }
        prop_assert_eq!(found, events);
    }
}
