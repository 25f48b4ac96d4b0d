//! What operators see of other hosts: those whose lanes this one has, and those that read this one.

use std::time::SystemTime;

use pointsman_fleet::{Fleet, PeerLaneStatus};
use serde_json::{Value, json};

use crate::fleet_stream::{FleetReader, FleetStream};

/// Describes the other host that a lane is of; null for a lane of this host. Texts of the other
/// host are as it sent them.
pub(crate) fn lane_host(fleet: &Fleet, lane: &str) -> Value {
    fleet.peers().lane_status(lane).map_or(Value::Null, |status| described(&status))
}

fn described(status: &PeerLaneStatus) -> Value {
    let PeerLaneStatus { url, host, lane, liveness, last_event, silent, error, report } = status;
    let there = report.as_ref().map(|(report, slots)| {
        json!({
            "state": report.state.label(),
            "running": report.running,
            "waiting": report.waiting,
            "queued": report.queued,
            "slots": slots,
            "slots_free": report.slots_free,
            "problem_code": report.problem,
        })
    });
    json!({
        "url": url,
        "name": Some(host).filter(|host| !host.is_empty()),
        "lane": lane,
        "liveness": liveness.label(),
        "last_event_unix_ms": last_event.map(unix_ms),
        "silent_ms": silent.map(|silent| u64::try_from(silent.as_millis()).unwrap_or(u64::MAX)),
        "error": error,
        "there": there,
    })
}

/// Describes who reads what this host tells of its lanes. An operator has no name.
pub(crate) fn readers(stream: &FleetStream) -> Value {
    let reader = |reader: FleetReader| {
        let since = unix_ms(reader.since);
        json!({ "name": reader.name, "since_unix_ms": since })
    };
    stream.readers().into_iter().map(reader).collect()
}

/// Removes of the host of a lane what changes just because time passes. The time of the last event
/// remains, to the second, if the host is silent.
pub(crate) fn settle(host: &mut Value) {
    let is_live = host["liveness"] == "live";
    let Some(host) = host.as_object_mut() else { return };
    host.remove("silent_ms");
    let last = host.get("last_event_unix_ms").and_then(Value::as_u64).filter(|_| !is_live);
    let last = last.map(|last| last / 1000 * 1000);
    host.insert("last_event_unix_ms".to_owned(), last.into());
}

fn unix_ms(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use pointsman_peers::{LaneReport, Liveness};

    use super::*;

    fn status(liveness: Liveness) -> PeerLaneStatus {
        let report = LaneReport { queued: 3, ..LaneReport::default() };
        PeerLaneStatus {
            url: "http://10.0.0.2:8080".to_owned(),
            host: String::new(),
            lane: "big".to_owned(),
            liveness,
            last_event: SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(12_345)),
            silent: Some(Duration::from_millis(2_100)),
            error: Some("peer_silent"),
            report: Some((report, 4)),
        }
    }

    #[test]
    fn host_of_a_lane_is_described_with_its_age_and_its_error() {
        let found = described(&status(Liveness::Degraded));
        assert_eq!(found["name"], Value::Null);
        assert_eq!(
            (&found["liveness"], &found["error"]),
            (&"degraded".into(), &"peer_silent".into())
        );
        assert_eq!(
            (&found["silent_ms"], &found["last_event_unix_ms"]),
            (&2100.into(), &12_345.into())
        );
        assert_eq!((&found["there"]["queued"], &found["there"]["slots"]), (&3.into(), &4.into()));
    }

    #[test]
    fn events_do_not_change_just_because_time_passes() {
        let mut live = described(&status(Liveness::Live));
        settle(&mut live);
        assert!(live.get("silent_ms").is_none() && live["last_event_unix_ms"].is_null(), "{live}");
        let mut silent = described(&status(Liveness::Down));
        settle(&mut silent);
        assert_eq!(silent["last_event_unix_ms"], 12_000);
        let mut own = Value::Null;
        settle(&mut own);
        assert!(own.is_null());
    }
}
