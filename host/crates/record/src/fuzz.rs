//! Fuzzing of decision records, which a replay reads.

use pointsman_fuzz::Fuzz;

use crate::{ReadProblem, Record, records};

/// What was read is written such that it is read again as the same, in one line.
#[test]
fn decision_records() {
    let fuzz = Fuzz::new("decision_records").files("host/crates/simulate/src", ".jsonl");
    fuzz.run(|input| {
        let lines = input.split(|byte| *byte == b'\n').count() as u64;
        let mut accepted = false;
        for record in records(input) {
            let record = match record {
                Ok(record) => record,
                Err(error) => {
                    assert!(error.line <= lines && !matches!(error.problem, ReadProblem::Io(_)));
                    continue;
                }
            };
            let line = record.to_line().unwrap();
            assert_eq!(line.iter().position(|byte| *byte == b'\n'), Some(line.len() - 1));
            let again: Vec<Record> = records(line.as_slice()).map(Result::unwrap).collect();
            assert_eq!(again, [record]);
            accepted = true;
        }
        accepted
    });
}
