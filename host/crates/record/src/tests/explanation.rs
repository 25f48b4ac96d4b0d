//! Records of single requests: found in files, and explained.

use std::io::BufReader;

use super::fixtures::{fleet, full, limits, plain};
use crate::*;

/// Returns a file with the lanes of generation 3 and these decisions.
fn file(decisions: impl IntoIterator<Item = DecisionRecord>) -> Vec<u8> {
    let lanes = fleet(3).topology.lanes().to_vec();
    let topology = TopologyRecord { host: "1".to_owned(), generation: 3, lanes, limits: limits() };
    let decisions = decisions.into_iter().map(|record| Record::Decision(Box::new(record)));
    let records = std::iter::once(Record::Topology(topology)).chain(decisions);
    records.flat_map(|record| record.to_line().unwrap()).collect()
}

#[test]
fn last_record_of_a_request_is_found_and_explained() {
    let quoted = "a\"b";
    let first = DecisionRecord { topology: 3, ..plain("request-1") };
    let mut text =
        file([first.clone(), full(), DecisionRecord { request_id: quoted.into(), ..first }]);
    text.extend_from_slice(b"not a record\n");
    let find = |id: &str| find(BufReader::new(&*text), id);
    assert!(find("request-").unwrap().is_none(), "only a part of an id");
    assert!(find(quoted).unwrap().is_some());
    let explained = find("request-1").unwrap().unwrap().explain();
    let names: Vec<&str> = explained.lanes.iter().map(|lane| lane.name.as_str()).collect();
    let attempted: Vec<&str> =
        explained.attempts.iter().map(|attempt| attempt.lane.as_str()).collect();
    assert_eq!((attempted, names.len()), (names.clone(), 2));
    let steps: Vec<_> = explained.lanes.iter().map(|lane| (lane.step, lane.score)).collect();
    assert_eq!(steps, [(Some(1), Some(1000)), (Some(2), Some(-5))]);
    let decision = explained.decision.unwrap();
    assert_eq!((decision.kind.as_str(), decision.lanes.len()), ("route", 2));
    let outcome = explained.outcome.unwrap();
    assert_eq!((outcome.outcome.as_str(), outcome.status), ("fell-back", Some(200)));
    assert_eq!((outcome.ttft_ms, outcome.output_tokens), (Some(30), Some(96)));
    assert_eq!(explained.reason.as_deref(), Some("the prompt is about code"));
}

#[test]
fn decision_without_its_lanes_is_an_error() {
    let text = file([DecisionRecord { topology: 4, ..plain("x") }]);
    let missing = find(BufReader::new(&*text), "x").unwrap_err();
    assert_eq!(missing, MissingTopology("x".to_owned()));
}

#[test]
fn lanes_that_cannot_be_used_have_a_reason() {
    let down = DecisionRecord { topology: 3, ..plain("x") };
    let text = file([down]);
    let explained = find(BufReader::new(&*text), "x").unwrap().unwrap().explain();
    // The record has no statistics of the lanes, which count as down then.
    assert!(explained.lanes.iter().all(|lane| lane.excluded.is_some()), "{explained:?}");
    assert_eq!(explained.decision.unwrap().kind, "no-lane");
    assert!(explained.attempts.is_empty());
}
