use std::time::Duration;

use pointsman_domain::LaneState;
use prometheus_client::registry::Registry;

use super::*;
use crate::tests::{LIMITS, fleet_spec, lane};
use crate::{ExternalSpec, GroupSpec};

/// Lanes of one group with room for two: `always` and the first of two that are to be loaded.
#[tokio::test]
async fn lanes_at_rest_are_as_after_a_start() {
    let engine = || ExternalSpec::try_new("http://127.0.0.1:9", None, Duration::ZERO).unwrap();
    let on_demand = |preload| Residency::OnDemand { preload, unload_after: None };
    let lanes = [
        ("external", None, Residency::External),
        ("always", Some(0), Residency::Always),
        ("first", Some(0), on_demand(true)),
        ("second", Some(0), on_demand(true)),
        ("rest", Some(0), on_demand(false)),
    ];
    let lanes = lanes.map(|(name, group, residency)| LaneSpec {
        group,
        need: 1,
        expected_load: Duration::from_secs(7),
        ..lane(name, engine().into(), residency)
    });
    let group = GroupSpec {
        name: "gpu".to_owned(),
        budget: 2,
        pool: None,
        free_timeout: Duration::from_secs(1),
    };
    let spec = FleetSpec { groups: vec![group], ..fleet_spec(lanes.to_vec(), LIMITS) };
    let metrics = FleetMetrics::register(&mut Registry::default(), &[]);
    let (fleet, tasks) = Fleet::at_rest(&spec, &metrics).unwrap();
    let view = fleet.view();
    let states: Vec<_> = view.stats().map(|stat| (stat.state, stat.slots_free)).collect();
    let (ready, unloaded) = ((LaneState::Ready, 2), (LaneState::Unloaded, 0));
    assert_eq!(states, [ready, ready, ready, unloaded, unloaded]);
    // The load, and the stop of the lane that has to go for it.
    let rest = view.stats().last().unwrap();
    assert!(rest.ready_in_ms > 7000, "{rest:?}");
    assert_eq!(tasks.supervisors.running(), 0);
}
