pub(crate) mod made;
mod writing;

use std::io::BufReader;

use pointsman_domain::{
    Advice, Decision, Edit, FallbackAdvice, FallbackStep, LaneId, Note, PolicyRef, Read, Rejection,
    Scalar, Triggers,
};
use proptest::prelude::*;
use serde_json::Value;

use self::made::{decision, topology};
use super::*;

fn read(text: &[u8]) -> Vec<Result<Record, String>> {
    records(BufReader::new(text)).map(|record| record.map_err(|error| error.to_string())).collect()
}

proptest! {
    #[test]
    fn what_is_written_can_be_read(decision in decision(), topology in topology()) {
        let topology = Record::Topology(TopologyRecord {
            host: "0.1.0".to_owned(),
            generation: topology.generation(),
            lanes: topology.lanes().to_vec(),
            limits: made::limits(),
        });
        let decision = Record::Decision(Box::new(decision));
        let lines = [topology.to_line().unwrap(), decision.to_line().unwrap()].concat();
        prop_assert_eq!(lines.iter().filter(|byte| **byte == b'\n').count(), 2, "one line each");
        prop_assert_eq!(read(&lines), [Ok(topology), Ok(decision)]);
    }

    #[test]
    fn a_torn_end_is_no_error(decision in decision(), part in 0.0f64..1.0) {
        let line = Record::Decision(Box::new(decision)).to_line().unwrap();
        let cut = (line.len() as f64 * part) as usize;
        let text = [line.as_slice(), &line[..cut]].concat();
        let whole = 1 + usize::from(cut + 1 == line.len());
        let found = read(&text);
        prop_assert_eq!(found.len(), whole);
        prop_assert!(found.iter().all(Result::is_ok));
    }

    #[test]
    fn no_input_makes_the_reader_fail(text: Vec<u8>, line in "\\{\"v\":1,\"kind\":\"(decision|topology)\".*") {
        read(&text);
        read(line.as_bytes());
    }

    #[test]
    fn weights_are_near_what_is_written(decision in decision()) {
        let written = Record::Decision(Box::new(decision.clone())).to_line().unwrap().len();
        let weight = decision.weight();
        prop_assert!(weight > written / 10, "{weight} for {written} bytes");
    }
}

#[test]
fn a_long_text_has_its_weight_wherever_it_is() {
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
    let advised = |advice: Advice| {
        move |decision: &mut DecisionRecord| decision.consulted[0].advice = Some(advice.clone())
    };
    type Change = Box<dyn Fn(&mut DecisionRecord)>;
    let changes: Vec<(&str, Change)> = vec![
        ("read with", Box::new(|to| to.consulted[0].reads.push(read(text().into(), Value::Null)))),
        ("read gave", Box::new(|to| to.consulted[0].reads.push(read(Value::Null, text().into())))),
        ("dropped", Box::new(|to| to.consulted[0].dropped.push(text()))),
        (
            "advised rejection",
            Box::new(advised(Advice { reject: Some(rejection()), ..Advice::default() })),
        ),
        ("advised edits", Box::new(advised(Advice { edits: edits(), ..Advice::default() }))),
        (
            "advised fallback",
            Box::new(advised(Advice { fallback: Some(fallback()), ..Advice::default() })),
        ),
        ("advised notes", Box::new(advised(Advice { notes: vec![note()], ..Advice::default() }))),
        ("advised hints", Box::new(advised(Advice { hints: vec![note()], ..Advice::default() }))),
        ("merged rejection", Box::new(|to| to.merged.reject = Some((policy(), rejection())))),
        ("merged edits", Box::new(|to| to.merged.edits = edits())),
        ("merged fallback", Box::new(|to| to.merged.fallback = Some(fallback()))),
        ("merged notes", Box::new(|to| to.merged.notes.push((policy(), note())))),
        ("decision", Box::new(|to| to.decision = Decision::Reject(policy(), rejection()))),
        (
            "request",
            Box::new(|to| {
                to.request = Some(RequestRecord { headers: Vec::new(), body: Some(text()) });
            }),
        ),
    ];
    let base = made::full().weight();
    for (place, change) in changes {
        let mut decision = made::full();
        change(&mut decision);
        assert!(decision.weight() > base - 1000 + LONG, "{place}");
    }
}

#[test]
fn bad_lines_are_named_and_do_not_end_the_file() {
    let good = Record::Decision(Box::new(made::plain("a"))).to_line().unwrap();
    let text = [
        b"not json\n".as_slice(),
        br#"{"v":1,"kind":"from-the-future","x":1}"#,
        b"\n\n",
        br#"{"v":2,"kind":"decision"}"#,
        b"\n",
        br#"{"v":1,"kind":"decision"}"#,
        b"\n",
        &good,
    ]
    .concat();
    let found = read(&text);
    let errors: Vec<&String> = found.iter().filter_map(|record| record.as_ref().err()).collect();
    assert!(errors[0].starts_with("line 1: is no decision record"), "{errors:?}");
    assert_eq!(errors[1], "line 4: has version 2, and this program reads 1; use a newer one");
    assert!(errors[2].starts_with("line 5: is no decision record: missing field"), "{errors:?}");
    assert_eq!((found.len(), found[3].is_ok()), (4, true));
}

/// Files that older hosts wrote are read for ever.
#[test]
fn the_format_is_kept() {
    let kept = include_bytes!("tests/v1.jsonl");
    let found: Vec<Record> = records(kept.as_slice()).map(Result::unwrap).collect();
    let lines: Vec<u8> = found.iter().flat_map(|record| record.to_line().unwrap()).collect();
    assert_eq!(String::from_utf8(lines).unwrap(), String::from_utf8_lossy(kept));
    let [Record::Topology(topology), Record::Decision(decision)] = found.as_slice() else {
        panic!("{found:?}")
    };
    assert_eq!((topology.generation, topology.lanes[0].name.as_str()), (3, "coder"));
    assert_eq!((decision.topology, decision.end.how), (3, Ended::FellBack));
    assert_eq!(**decision, made::full());
}
