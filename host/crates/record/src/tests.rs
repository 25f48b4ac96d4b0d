mod explanation;
pub(crate) mod fixtures;
mod recorder;

use std::io::BufReader;
use std::sync::Arc;

use pointsman_domain::{
    Advice, Decision, Edit, FallbackAdvice, FallbackStep, LaneId, Merged, Note, PolicyRef, Read,
    Rejection, Scalar, Triggers,
};
use proptest::prelude::*;
use serde_json::Value;

use self::fixtures::{decision, topology};
use super::*;

fn read(text: &[u8]) -> Vec<Result<Record, ReadError>> {
    records(BufReader::new(text)).collect()
}

proptest! {
    #[test]
    fn written_records_can_be_read(decision in decision(), topology in topology()) {
        let topology = Record::Topology(TopologyRecord {
            host: "0.1.0".to_owned(),
            generation: topology.generation(),
            lanes: topology.lanes().to_vec(),
            limits: fixtures::limits(),
        });
        let decision = Record::Decision(Box::new(decision));
        let lines = [topology.to_line().unwrap(), decision.to_line().unwrap()].concat();
        prop_assert_eq!(lines.iter().filter(|byte| **byte == b'\n').count(), 2, "one line each");
        let found: Vec<Record> = read(&lines).into_iter().map(Result::unwrap).collect();
        prop_assert_eq!(found, [topology, decision]);
    }

    #[test]
    fn incomplete_last_line_is_skipped(decision in decision(), part in 0.0f64..1.0) {
        let line = Record::Decision(Box::new(decision)).to_line().unwrap();
        let length = (line.len() as f64 * part) as usize;
        let text = [line.as_slice(), &line[..length]].concat();
        // A line that only lacks its line ending is a complete record.
        let complete = 1 + usize::from(length + 1 == line.len());
        let found = read(&text);
        prop_assert_eq!(found.len(), complete);
        prop_assert!(found.iter().all(Result::is_ok));
    }

    #[test]
    fn weight_is_in_proportion_to_the_written_size(decision in decision()) {
        let written = Record::Decision(Box::new(decision.clone())).to_line().unwrap().len();
        let weight = decision.weight();
        prop_assert!(weight > written / 10, "{weight} for {written} bytes");
    }
}

#[test]
fn weight_includes_long_texts_in_every_field() {
    const LONG: usize = 100_000;
    fn text() -> String {
        "x".repeat(LONG)
    }
    fn edits() -> Vec<Edit> {
        vec![Edit::PrependSystem(text())]
    }
    fn fallback() -> FallbackAdvice {
        let step = FallbackStep { lane: LaneId(0), edits: edits() };
        FallbackAdvice { on: Triggers::NONE, steps: vec![step], first_token: None }
    }
    fn rejection() -> Rejection {
        Rejection { status: 403, code: String::new(), message: text(), retry_after_s: None }
    }
    fn note() -> Note {
        Note { key: "why".to_owned(), value: Scalar::Text(text()) }
    }
    fn read(with: Value, gave: Value) -> Read {
        Read { call: "state.get".to_owned(), with: vec![with], gave }
    }
    fn policy() -> PolicyRef {
        PolicyRef::new("p", "1")
    }
    let with_advice = |advice: Advice| {
        move |decision: &mut DecisionRecord| decision.consulted[0].advice = Some(advice.clone())
    };
    type Change = Box<dyn Fn(&mut DecisionRecord)>;
    let changes: Vec<(&str, Change)> = vec![
        ("read with", Box::new(|to| to.consulted[0].reads.push(read(text().into(), Value::Null)))),
        ("read gave", Box::new(|to| to.consulted[0].reads.push(read(Value::Null, text().into())))),
        ("dropped", Box::new(|to| to.consulted[0].dropped.push(text()))),
        (
            "advised rejection",
            Box::new(with_advice(Advice { reject: Some(rejection()), ..Advice::default() })),
        ),
        ("advised edits", Box::new(with_advice(Advice { edits: edits(), ..Advice::default() }))),
        (
            "advised fallback",
            Box::new(with_advice(Advice { fallback: Some(fallback()), ..Advice::default() })),
        ),
        (
            "advised notes",
            Box::new(with_advice(Advice { notes: vec![note()], ..Advice::default() })),
        ),
        (
            "advised hints",
            Box::new(with_advice(Advice { hints: vec![note()], ..Advice::default() })),
        ),
        ("merged rejection", Box::new(|to| merged(to).reject = Some((policy(), rejection())))),
        ("merged edits", Box::new(|to| merged(to).edits = edits())),
        ("merged fallback", Box::new(|to| merged(to).fallback = Some(fallback()))),
        ("merged notes", Box::new(|to| merged(to).notes.push((policy(), note())))),
        ("decision", Box::new(|to| to.decision = Decision::Reject(policy(), rejection()))),
        (
            "request",
            Box::new(|to| {
                to.request = Some(RequestRecord { headers: Vec::new(), body: Some(text()) });
            }),
        ),
    ];
    let base = fixtures::full().weight();
    for (place, change) in changes {
        let mut decision = fixtures::full();
        change(&mut decision);
        assert!(decision.weight() > base - 1000 + LONG, "{place}");
    }
}

#[test]
fn invalid_lines_are_reported_and_do_not_end_the_file() {
    let good = Record::Decision(Box::new(fixtures::plain("a"))).to_line().unwrap();
    let text = [
        b"not json\n".as_slice(),
        br#"{"v":1,"kind":"from-the-future","x":1}"#,
        b"\n\n",
        br#"{"v":3,"kind":"decision"}"#,
        b"\n",
        br#"{"v":1,"kind":"decision"}"#,
        b"\n",
        &good,
    ]
    .concat();
    let found = read(&text);
    let errors: Vec<&ReadError> = found.iter().filter_map(|record| record.as_ref().err()).collect();
    let [first, second, third] = errors[..] else { panic!("{errors:?}") };
    assert!(matches!(first, ReadError { line: 1, problem: ReadProblem::Json(_) }), "{first}");
    assert!(matches!(second, ReadError { line: 4, problem: ReadProblem::Version(3) }), "{second}");
    let ReadError { line: 5, problem: ReadProblem::Json(error) } = third else { panic!("{third}") };
    assert!(error.to_string().starts_with("missing field"), "{error}");
    assert_eq!((found.len(), found[3].is_ok()), (4, true));
}

#[test]
fn format_does_not_change() {
    let v2 = include_bytes!("tests/v2.jsonl");
    let found: Vec<Record> = records(v2.as_slice()).map(Result::unwrap).collect();
    let lines: Vec<u8> = found.iter().flat_map(|record| record.to_line().unwrap()).collect();
    assert_eq!(String::from_utf8(lines).unwrap(), String::from_utf8_lossy(v2));
    let [Record::Topology(topology), Record::Decision(decision)] = found.as_slice() else {
        panic!("{found:?}")
    };
    assert_eq!((topology.generation, topology.lanes[0].name.as_str()), (3, "coder"));
    assert_eq!((decision.topology, decision.end.how), (3, Ended::FellBack));
    assert_eq!(**decision, fixtures::full());
}

/// Files that older hosts wrote stay readable.
#[test]
fn version_1_is_read() {
    let read = |text: &'static [u8]| -> Vec<Record> { records(text).map(Result::unwrap).collect() };
    assert_eq!(read(include_bytes!("tests/v1.jsonl")), read(include_bytes!("tests/v2.jsonl")));
}

fn merged(decision: &mut DecisionRecord) -> &mut Merged {
    Arc::make_mut(&mut decision.merged)
}
