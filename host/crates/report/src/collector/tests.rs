use pointsman_domain::LaneId;

use super::*;
use crate::series::Interval;
use crate::testing::{TestRequest, at, live, small, test_run};

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() < 1e-9
}

#[test]
fn requests_are_counted_by_class_lane_and_tenant() {
    let run = test_run().summary;
    assert_eq!((run.accepted, run.all.requests(), run.lost), (7, 6, 1));
    assert_eq!(run.all.ends, [2, 1, 1, 1, 1]);
    assert_eq!(
        run.classes.iter().map(|class| class.value.ends).collect::<Vec<_>>(),
        [[1, 0, 0, 1, 1], [1, 1, 1, 0, 0]]
    );
    let tenants: Vec<_> = run
        .tenants
        .iter()
        .map(|tenant| (tenant.name.as_str(), tenant.value.requests.ends))
        .collect();
    assert_eq!(tenants, [("alice", [1, 0, 0, 0, 1]), ("bob", [1, 1, 1, 0, 0])]);
    assert_eq!(run.other_tenants, None);
    // A rejected request does not wait; requests whose client gave up do.
    let wait = run.all.wait.unwrap();
    assert_eq!((wait.count, wait.max, wait.mean), (5, at(35.0), at(20.0)));
    assert_eq!(run.classes[1].value.first_byte.unwrap().count, 2);
    assert_eq!(run.classes[1].value.total.unwrap().max, at(40.0));
    assert_eq!((run.all.output_tokens, run.all.cached), (60, Some(0.25)));
    let [coder, remote] = &run.lanes[..] else { panic!("{:?}", run.lanes) };
    assert_eq!(
        (coder.value.attempts, coder.value.failed_attempts, coder.value.requests.ends),
        (5, 3, [2, 0, 0, 1, 1])
    );
    assert_eq!(
        (remote.value.attempts, remote.value.failed_attempts, remote.value.requests.ends),
        (1, 0, [0, 1, 0, 0, 0])
    );
    assert_eq!(coder.value.requests.wait.unwrap().count, 5);
    assert_eq!(run.policies, [EventCount { name: "cortex@1.0.0".to_owned(), count: 6 }]);
    assert_eq!(run.problems, [EventCount { name: "the engine broke off".to_owned(), count: 1 }]);
}

#[test]
fn engine_phases_cover_the_whole_run() {
    let run = test_run();
    let coder = &run.summary.lanes[0].value;
    // In the order of `Phase::ALL`.
    for (got, expected) in coder.phases.iter().zip([0.15, 0.4, 0.2, 0.1, 0.1, 0.05, 0.0]) {
        assert!(close(*got, expected), "{:?}", coder.phases);
    }
    assert!(close(coder.busy, 0.3) && close(coder.occupied, 0.85));
    assert!(close(coder.slots_used, (2.0 * 20.0 + 10.0) / 400.0));
    assert!(close(coder.queue_mean, (2.0 * 35.0 + 20.0) / 100.0));
    assert_eq!((coder.queue_max, run.summary.queue_max), (2, 2));
    assert!(close(run.summary.queue_mean, coder.queue_mean));
    assert_eq!((coder.loads, coder.load_mean, run.summary.loads), (1, at(40.0), 1));
    assert_eq!((coder.switches, coder.drain_mean, coder.stop_mean), (1, at(1.0), at(2.0)));
    assert_eq!((run.summary.switches, run.summary.switches_per_hour), (1, 36.0));
    assert!(
        close(run.summary.lanes[1].value.phases[Phase::Idle as usize], 1.0),
        "an external engine is always ready"
    );
    let spans: Vec<_> = run.timelines[0].spans().map(|(_, end, phase)| (end, phase)).collect();
    let expected = [
        (40.0, Phase::Starting),
        (60.0, Phase::Busy),
        (70.0, Phase::Idle),
        (80.0, Phase::Draining),
        (85.0, Phase::Stopping),
        (100.0, Phase::Cold),
    ];
    assert_eq!(spans, expected.map(|(end, phase)| (at(end), phase)));
}

#[test]
fn intervals_add_up_to_the_whole_run() {
    let run = test_run();
    let intervals = run.series.intervals();
    assert_eq!((run.series.length(), intervals.len()), (at(1.0), 100));
    let arrivals: Vec<_> = intervals
        .iter()
        .enumerate()
        .filter(|(_, interval)| interval.classes[1].arrivals > 0)
        .map(|(index, _)| index)
        .collect();
    assert_eq!(arrivals, [5, 50, 60]);
    assert_eq!(intervals[5].classes[0].waits.max(), Some(at(35.0)));
    assert_eq!((intervals[51].classes[1].fell_back, intervals[60].classes[1].rejected), (1, 1));
    assert_eq!((intervals[80].classes[0].errors, intervals[90].classes[0].client_gone), (1, 1));
    assert!(close(intervals[10].lanes[0].mean_waiting(), 2.0));
    assert!(close(intervals[75].lanes[0].share(Phase::Draining), 1.0));
    assert!(intervals.iter().all(|interval| {
        interval.lanes.iter().all(|lane| lane.phases_us.iter().sum::<u64>() == 1_000_000)
    }));
}

#[test]
fn long_runs_have_longer_intervals_with_the_same_sums() {
    let mut to = small();
    let week = 7 * 24 * 3600;
    for hour in 0..(week / 3600) {
        let now = f64::from(hour) * 3600.0;
        to.load(at(now + 1000.0), LaneId(1), 3, 1);
        live(
            &mut to,
            &TestRequest::new(now, 0, "alice"),
            1,
            RequestResult::Answered,
            [1000.0, 1001.0, 1800.0],
        );
        to.load(at(now + 1800.0), LaneId(1), 0, 0);
    }
    let run = to.finish(1, 168, at(f64::from(week)));
    assert_eq!((run.series.length(), run.series.intervals().len()), (at(1800.0), 336));
    let sum = |of: fn(&Interval) -> u128| run.series.intervals().iter().map(of).sum::<u128>();
    assert_eq!(sum(|interval| u128::from(interval.classes[0].arrivals)), 168);
    assert_eq!(sum(|interval| u128::from(interval.classes[0].waits.count())), 168);
    assert_eq!(sum(|interval| interval.lanes[1].waiting_us), 168 * 800 * 3 * 1_000_000);
    assert_eq!(
        sum(|interval| u128::from(interval.lanes[1].phases_us[Phase::Busy as usize])),
        168 * 800 * 1_000_000
    );
    assert!(close(run.summary.lanes[1].value.queue_mean, 3.0 * 800.0 / 3600.0));
}

#[test]
fn fairness_falls_if_tenants_starve() {
    let fairness = |waits: &[f64], how: RequestResult| {
        let mut to = small();
        for (tenant, wait) in waits.iter().enumerate() {
            let how = if *wait > 0.0 { how } else { RequestResult::Answered };
            let name = format!("tenant{tenant}");
            live(&mut to, &TestRequest::new(0.0, 0, &name), 0, how, [*wait, *wait, wait + 10.0]);
        }
        to.finish(1, waits.len() as u64, at(1000.0)).summary.fairness
    };
    let close_to = |got: Option<f64>, index: f64| got.is_some_and(|got| (got - index).abs() < 1e-9);
    assert_eq!(fairness(&[], RequestResult::Answered), None);
    assert!(close_to(fairness(&[30.0, 30.0, 30.0], RequestResult::Answered), 1.0));
    // One is served immediately; three wait nine times as long as they are served.
    let starved = fairness(&[0.0, 90.0, 90.0, 90.0], RequestResult::Answered);
    assert!(close_to(starved, 1.3 * 1.3 / (4.0 * 1.03)), "{starved:?}");
    assert!(close_to(fairness(&[0.0, 90.0, 90.0, 90.0], RequestResult::Error), 0.25));
    assert!(
        close_to(fairness(&[0.0, 90.0, 90.0, 90.0], RequestResult::Rejected), 1.0),
        "rejections by a quota are not unfair"
    );
}

#[test]
fn tenants_and_error_texts_are_bounded() {
    let mut to = small();
    for tenant in 0..500 {
        live(
            &mut to,
            &TestRequest::new(1.0, 0, &format!("t{tenant:03}")),
            0,
            RequestResult::Answered,
            [1.0, 2.0, 3.0],
        );
    }
    let request = TestRequest::new(1.0, 0, "t000");
    for number in 0..1000 {
        to.ended(&request.failed(2.0, &format!("error {}", number / 2)));
    }
    let run = to.finish(1, 1500, at(3.0)).summary;
    assert_eq!((run.lost, run.tenants.len()), (0, 200));
    assert_eq!(run.other_tenants.map(|others| others.requests()), Some(300));
    assert_eq!(run.problems.len(), 11);
    assert_eq!(run.problems.iter().map(|event| event.count).sum::<u64>(), 1000);
    // The rest of the texts are counted together.
    assert_eq!(run.problems.last().map(|event| event.count), Some(382));
}

#[test]
fn unknown_lanes_and_classes_are_ignored() {
    let mut to = small();
    to.engine(at(1.0), LaneId(9), EngineState::Ready);
    to.load(at(1.0), LaneId(9), 5, 1);
    live(&mut to, &TestRequest::new(1.0, 9, "x"), 0, RequestResult::Answered, [0.0, 1.0, 2.0]);
    let run = to.finish(1, 1, at(3.0)).summary;
    assert_eq!((run.lost, run.queue_max, run.all.requests()), (0, 0, 1));
}

#[test]
fn json_has_stable_names_with_units() {
    let json = serde_json::to_value(test_run().summary).unwrap();
    assert_eq!(json["duration-s"], 100.0);
    assert_eq!(json["classes"][0]["name"], "interactive");
    assert_eq!(json["classes"][0]["wait-max-ms"], 35_000.0);
    assert_eq!(json["all"]["fell-back"], 1);
    assert_eq!(json["lanes"][0]["phases"]["starting"], 0.4);
    assert_eq!(json["lanes"][0]["switch-stop-mean-s"], 2.0);
    assert_eq!(json["tenants"][1]["promptness"], 0.5625);
    assert_eq!(json["switches-per-hour"], 36.0);
    assert!(json["classes"][0].get("queue-max").is_none());
}
