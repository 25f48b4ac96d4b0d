//! `/health`: whether requests can be served, by the rule of the listener, or one lane can.
//!
//! | lanes | any lane | all lanes, or `?lane=` |
//! |---|---|---|
//! | one serves | 200 | 503 if another one is loading, draining or down |
//! | none serves, one is loading or draining | 503 | 503 |
//! | none serves, some are unloaded, the others down | 200 | 503 |
//! | all are unloaded | 200 | 200 |
//!
//! A lane that is unloaded is healthy: a request loads it. Were it not, a host whose lanes are
//! loaded on demand would never become healthy, and what waits for that would never send a request.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Query, Request, State};
use axum::response::Response;
use pointsman_domain::dispatch::again;
use pointsman_domain::{FleetView, LaneStat, LaneState};
use pointsman_fleet::LaneStatus;
use serde_json::json;

use crate::error::RouteError;
use crate::failure::whole_seconds;
use crate::response::{check_result, error};
use crate::rights;
use crate::settings::{HealthRule, ListenerSettings};
use crate::status::{StatusSources, identify};

pub(crate) async fn health(State(host): State<Arc<StatusSources>>, request: Request) -> Response {
    let view = host.fleet.view();
    let settings = request.extensions().get::<Arc<ListenerSettings>>();
    let rule = settings.map_or(HealthRule::AnyLane, |settings| settings.health);
    let (rule, lanes) = match requested_lane(&request) {
        None => (rule, view.stats().collect()),
        // Whether a lane exists, and how it is, is told with a key only.
        Some(name) => match lane_of_key(&host, &view, &request, &name) {
            Ok(stat) => (HealthRule::AllLanes, vec![stat]),
            Err(refused) => return error(request, refused),
        },
    };
    let reason = match host.stop.is_cancelled() {
        true => Some(("the host is shutting down".to_owned(), Duration::ZERO)),
        false => {
            reported(rule, &lanes).map(|lanes| (describe(&host, &view, &lanes), soonest(&lanes)))
        }
    };
    match reason {
        None => check_result(None, &json!({ "status": "ok" })),
        // The reason names lanes.
        Some((_, retry_in))
            if !identify(&host, &request).is_ok_and(|who| !who.rights.hides_lanes()) =>
        {
            check_result(Some(retry_in), &json!({ "status": "unavailable" }))
        }
        Some((reason, retry_in)) => {
            check_result(Some(retry_in), &json!({ "status": "unavailable", "reason": reason }))
        }
    }
}

/// Returns the state of a lane that the key of a request may use.
fn lane_of_key(
    host: &StatusSources,
    view: &FleetView,
    request: &Request,
    name: &str,
) -> Result<LaneStat, RouteError> {
    let identity = identify(host, request)?;
    let unknown = || RouteError::UnknownLane(name.to_owned());
    let stat = view.topology.find(name).and_then(|id| view.stat(id)).ok_or_else(unknown)?;
    let lane = view.topology.lane(stat.id).ok_or_else(unknown)?;
    match rights::shows_lane(&identity.rights, lane) {
        true => Ok(stat),
        false => Err(RouteError::LaneNotAllowed { what: format!("lane `{name}`") }),
    }
}

/// Returns the lane that the query asks for. A query that cannot be read asks for none.
fn requested_lane(request: &Request) -> Option<String> {
    let query = Query::<HashMap<String, String>>::try_from_uri(request.uri()).ok();
    query.and_then(|Query(mut parameters)| parameters.remove("lane"))
}

/// Returns the lanes that the reason names; `None` if the rule is satisfied.
fn reported(rule: HealthRule, lanes: &[LaneStat]) -> Option<Vec<LaneStat>> {
    use LaneState::{Degraded, Down, Draining, Ready, Starting, Unloaded};
    let any = |states: &[LaneState]| lanes.iter().any(|lane| states.contains(&lane.state));
    match rule {
        HealthRule::AnyLane => {
            let can_load = any(&[Unloaded]) && !any(&[Starting, Draining]);
            (!can_load && !any(&[Ready, Degraded])).then(|| lanes.to_vec())
        }
        HealthRule::AllLanes => {
            let is_busy = |lane: &&LaneStat| matches!(lane.state, Starting | Draining | Down);
            let busy: Vec<LaneStat> = lanes.iter().filter(is_busy).copied().collect();
            (!busy.is_empty()).then_some(busy)
        }
    }
}

fn describe(host: &StatusSources, view: &FleetView, lanes: &[LaneStat]) -> String {
    let statuses = host.fleet.status();
    let describe = |stat: &LaneStat| {
        let name = view.topology.name(stat.id);
        let ready_in = Duration::from_millis(stat.ready_in_ms.into());
        let problem =
            LaneStatus::find(&statuses, stat.id).and_then(|status| status.problem.as_ref());
        match (stat.state, problem) {
            (LaneState::Starting, _) => {
                format!("{name} is loading, about {} s left", whole_seconds(ready_in))
            }
            (LaneState::Down, Some(problem)) => {
                format!("{name} is down: {}{}", problem.in_short(), again(ready_in))
            }
            (state, _) => format!("{name} is {}", state.label()),
        }
    };
    lanes.iter().map(describe).collect::<Vec<_>>().join("; ")
}

/// Returns when the first of the lanes is expected to serve.
fn soonest(lanes: &[LaneStat]) -> Duration {
    let ready_in = lanes.iter().map(|lane| lane.ready_in_ms).filter(|ready_in| *ready_in > 0).min();
    Duration::from_millis(ready_in.unwrap_or_default().into())
}

#[cfg(test)]
mod tests {
    use pointsman_domain::LaneId;

    use super::*;

    #[test]
    fn rules_judge_the_states_of_lanes() {
        use HealthRule::{AllLanes, AnyLane};
        use LaneState::{Degraded, Down, Draining, Ready, Starting, Unloaded};
        // The last columns are true if the check succeeds with any lane, and with all lanes.
        let table: &[(&[LaneState], bool, bool)] = &[
            (&[Ready], true, true),
            (&[Degraded], true, true),
            (&[Unloaded], true, true),
            (&[Unloaded, Unloaded], true, true),
            (&[Starting], false, false),
            (&[Draining], false, false),
            (&[Down], false, false),
            (&[Ready, Unloaded], true, true),
            (&[Ready, Starting], true, false),
            (&[Ready, Draining], true, false),
            (&[Ready, Down], true, false),
            (&[Degraded, Down], true, false),
            (&[Unloaded, Starting], false, false),
            (&[Unloaded, Draining], false, false),
            (&[Unloaded, Down], true, false),
            (&[Draining, Starting], false, false),
            (&[Down, Down], false, false),
            (&[], false, true),
        ];
        for (states, any, all) in table {
            let ids = (0..).map(LaneId);
            let lanes: Vec<LaneStat> =
                ids.zip(*states).map(|(id, state)| LaneStat::idle(id, *state, 1)).collect();
            let succeeds = |rule| reported(rule, &lanes).is_none();
            assert_eq!((succeeds(AnyLane), succeeds(AllLanes)), (*any, *all), "{states:?}");
        }
    }

    #[test]
    fn reason_names_only_the_lanes_that_fail_the_rule() {
        let lanes = [LaneState::Ready, LaneState::Down, LaneState::Unloaded];
        let lanes: Vec<LaneStat> =
            (0..).map(LaneId).zip(lanes).map(|(id, state)| LaneStat::idle(id, state, 1)).collect();
        let named = reported(HealthRule::AllLanes, &lanes).unwrap();
        assert_eq!(named.iter().map(|lane| lane.id).collect::<Vec<_>>(), [LaneId(1)]);
    }
}
