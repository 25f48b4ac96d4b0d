use super::*;
use crate::objective::Objective;
use crate::testing::{TestRequest, at, live, small, test_run};

/// Returns a report of two variants, of which the second one has hardly any waits.
fn report() -> Report {
    let objectives = ["batch.wait.p99 < 20s", "lost <= 1", "tenant.fairness > 90%"];
    let objectives = objectives.map(|text| Objective::parse(text).unwrap());
    let better = |seed: u64| {
        let mut to = small();
        live(
            &mut to,
            &TestRequest::new(5.0, 0, "alice"),
            0,
            RequestResult::Answered,
            [0.0, 1.0, 5.0],
        );
        live(
            &mut to,
            &TestRequest::new(5.0, 1, "bob\u{1b}"),
            0,
            RequestResult::Answered,
            [2.0, 3.0, 7.0 + seed as f64],
        );
        to.finish(seed, 2, at(100.0))
    };
    let seeded = |seed: u64| {
        let mut run = test_run();
        run.summary.seed = seed;
        run
    };
    Report {
        title: "A small day".to_owned(),
        scenario: "two lanes\nand two classes".to_owned(),
        variants: vec![
            VariantReport::new("as it stands", vec![seeded(1), seeded(2)], &objectives),
            VariantReport::new("better\u{7}", vec![better(1), better(2)], &objectives),
        ],
        sweep: None,
    }
}

/// Returns the table rows of a text, as cells: the lines with at least two columns, of which any
/// but the first is a number. Headings and sentences are left out.
fn table_rows(text: &str) -> Vec<Vec<&str>> {
    let is_number = |cell: &&str| cell.starts_with(|c: char| "-+<>0123456789".contains(c));
    text.lines()
        .map(|line| {
            line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect::<Vec<_>>()
        })
        .filter(|cells| cells.len() > 1 && cells.iter().any(is_number))
        .collect()
}

#[test]
fn text_report_has_a_table_for_each_scope() {
    let text = report().text();
    let expected = include_str!("report.txt");
    assert_eq!(table_rows(&text), table_rows(expected), "{text}");
    for part in ["A small day", "two lanes\nand two classes", "as it stands", "better "] {
        assert!(text.contains(part), "{part:?} is missing in\n{text}");
    }
    let numbers = |line: &str| -> Vec<String> {
        let parts = line.split(|c: char| !c.is_ascii_digit() && c != '.');
        parts.filter(|part| !part.is_empty()).map(str::to_owned).collect()
    };
    let is_run_line = |line: &&str| line.contains("fairness") && !line.contains("tenant.fairness");
    // Switches per hour, fairness and lost requests of each variant.
    let run_lines: Vec<Vec<String>> = text.lines().filter(is_run_line).map(numbers).collect();
    assert_eq!(run_lines, [["36", "0.61", "1"], ["0", "0.98", "0"]]);
    assert!(!text.contains(|c: char| c.is_control() && c != '\n'));
    assert!(text.lines().all(|line| line.chars().count() <= 100));
}
