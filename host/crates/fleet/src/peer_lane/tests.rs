use pointsman_domain::{EngineKind, LaneStat};
use pointsman_peers::{Event, HostInfo, LaneReport, LaneReports, TopologyEvent, VERSION};

use super::*;

const LIMITS: StaleLimits =
    StaleLimits { degraded: Duration::from_secs(2), down: Duration::from_secs(6) };

fn spec(lane: &str) -> PeerLaneSpec {
    let (url, lane) = ("http://h:1".to_owned(), lane.to_owned());
    PeerLaneSpec { url, key: None, ca: None, lane, queue_there: None }
}

/// Returns what is known of a host with one lane `big`, of which this was heard at `now`.
fn view(report: LaneReport, now: Instant) -> PeerView {
    let lane = LaneDescription {
        name: "big".to_owned(),
        engine: "external".to_owned(),
        models: vec!["m".to_owned(), "any".to_owned()],
        virtual_names: vec!["any".to_owned()],
        slots: 2,
        max_context: 4096,
        ..LaneDescription::default()
    };
    let host = HostInfo { id: "host".to_owned(), ..HostInfo::default() };
    let topology = TopologyEvent { version: VERSION, generation: 1, host, lanes: vec![lane] };
    let mut view = PeerView::default();
    view.apply(Event::Topology(topology), now);
    view.apply(Event::Lanes(LaneReports { generation: 1, lanes: vec![report] }), now);
    view
}

fn report(state: LaneState) -> LaneReport {
    LaneReport { state, ..LaneReport::default() }
}

fn code(result: Result<PeerReport, Problem>) -> Option<&'static str> {
    result.err().and_then(|problem| problem.code())
}

#[test]
fn lane_is_degraded_and_then_down_while_its_host_is_silent() {
    let heard = Instant::now();
    let view = view(report(LaneState::Ready), heard);
    let after =
        |seconds| assess(&view, &spec("big"), &LIMITS, heard + Duration::from_secs(seconds));
    assert_eq!(after(1).unwrap().remote.silent, None);
    assert_eq!(after(3).unwrap().remote.silent, Some(Duration::from_secs(3)));
    assert_eq!(code(after(7)), Some(UNREACHABLE));
    let never = PeerView::default();
    assert_eq!(code(assess(&never, &spec("big"), &LIMITS, heard)), Some(UNREACHABLE));
}

#[test]
fn lane_that_is_not_loaded_accepts_requests_and_one_that_is_down_does_not() {
    let now = Instant::now();
    let unloaded = LaneReport { ready_in_ms: 9000, displaces: 2, ..report(LaneState::Unloaded) };
    let known = assess(&view(unloaded, now), &spec("big"), &LIMITS, now).unwrap();
    assert_eq!((known.remote.state, known.remote.slots), (LaneState::Unloaded, 4));
    let ready_in = Duration::from_secs(9);
    assert_eq!((known.remote.ready_in, known.remote.displaces), (ready_in, 2));
    let failed = LaneReport { problem: Some("disk_full".into()), ..report(LaneState::Down) };
    let problem = assess(&view(failed, now), &spec("big"), &LIMITS, now).unwrap_err();
    assert_eq!(problem.code(), Some("peer_lane_down"));
    assert!(problem.for_clients().contains("disk_full"), "{problem}");
    let view = view(report(LaneState::Ready), now);
    let problem = assess(&view, &spec("small"), &LIMITS, now).unwrap_err();
    assert_eq!(problem.code(), Some("peer_lane_missing"));
    assert!(problem.to_string().contains("`big`") && !problem.for_clients().contains("`big`"));
}

#[test]
fn card_has_what_the_other_host_says() {
    let view = view(report(LaneState::Ready), Instant::now());
    let card = card("gpu-2", &view.lane("big").unwrap().description, &spec("big"));
    assert_eq!(card.context, Some(4096));
    let peer = card.peer.unwrap();
    assert_eq!(peer.host, "gpu-2");
    assert_eq!((peer.models, peer.slots), (vec!["m".to_owned()], 4), "without virtual names");
    assert_eq!(peer.engine, EngineKind::External, "for guards that forbid external engines");
}

#[test]
fn metrics_count_what_the_other_host_has_not_reported() {
    let now = Instant::now();
    let there = LaneReport {
        running: 1,
        queued: 3,
        slots_free: 1,
        kv_used: 200,
        stale_ms: 40,
        ..report(LaneState::Ready)
    };
    let known = assess(&view(there, now), &spec("big"), &LIMITS, now).unwrap();
    let here = |running, slots_free| LaneStat {
        running,
        slots_free,
        ..LaneStat::idle(LaneId(7), LaneState::Ready, 4)
    };
    let merged = |mut stat: LaneStat| {
        known.merge_into(&mut stat);
        stat
    };
    let stat = merged(here(0, 4));
    assert_eq!((stat.id, stat.running, stat.slots_free, stat.waiting), (LaneId(7), 1, 1, 3));
    assert!(stat.stale_ms >= 40 && stat.kv_used == 200);
    let busy = merged(here(3, 1));
    assert_eq!((busy.running, busy.slots_free), (2, 0), "two are served there, one waits");
}

#[test]
fn report_is_repeated_if_only_its_age_has_changed_for_a_short_time() {
    let heard = Instant::now();
    let ready = || report(LaneState::Ready);
    let digest: Arc<dyn CachedPrompts> = Arc::new(PeerDigest::default());
    let known = |report, after_ms| {
        let heard = heard + Duration::from_millis(after_ms);
        let known = assess(&view(report, heard), &spec("big"), &LIMITS, heard).unwrap();
        PeerReport { digest: Arc::clone(&digest), ..known }
    };
    let last = known(ready(), 0);
    assert!(known(ready(), 100).is_repeated(&last));
    assert!(!known(ready(), 400).is_repeated(&last), "its age is to be reported");
    assert!(!known(LaneReport { queued: 1, ..ready() }, 100).is_repeated(&last));
    assert!(!known(report(LaneState::Degraded), 100).is_repeated(&last));
    let other = PeerReport { digest: Arc::new(PeerDigest::default()), ..known(ready(), 100) };
    assert!(!other.is_repeated(&last), "its digest has changed");
    let silent = heard + LIMITS.degraded;
    let silent = assess(&view(ready(), heard), &spec("big"), &LIMITS, silent).unwrap();
    let silent = PeerReport { digest, ..silent };
    assert!(!silent.is_repeated(&silent.clone()));
}
