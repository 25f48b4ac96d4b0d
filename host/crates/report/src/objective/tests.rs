use std::time::Duration;

use proptest::prelude::*;

use pointsman_domain::RequestResult;

use super::ObjectiveErrorKind as Kind;
use super::*;
use crate::metric::{ScopeError, Statistic};
use crate::summary::{DurationSummary, Named, RequestStatistics};
use crate::testing::test_run;

fn parsed(text: &str) -> (String, Metric, f64) {
    let objective = Objective::parse(text).unwrap_or_else(|error| panic!("{error}"));
    (objective.scope.to_string(), objective.metric, objective.value)
}

#[test]
fn objectives_are_parsed() {
    let p99 = Statistic::P99;
    for (text, scope, metric, value) in [
        ("interactive.wait.p99 < 20s", "interactive.", Metric::Wait(p99), 20.0),
        ("wait.max<=1.5s", "", Metric::Wait(Statistic::Max), 1.5),
        ("all.first_byte.mean < 250 ms", "", Metric::FirstByte(Statistic::Mean), 0.25),
        ("tenant.alice.total.p50 < 2m", "tenant.alice.", Metric::Total(Statistic::P50), 120.0),
        (
            "lane.qwen2.5-coder.wait.p95 < 1h",
            "lane.qwen2.5-coder.",
            Metric::Wait(Statistic::P95),
            3600.0,
        ),
        ("my_class.wait.p99 < 15us", "my_class.", Metric::Wait(p99), 0.000_015),
        ("switches_per_hour < 12", "", Metric::SwitchesPerHour, 12.0),
        ("switches-per-hour < 12.5", "", Metric::SwitchesPerHour, 12.5),
        ("lost == 0", "", Metric::Lost, 0.0),
        ("tenant.fairness > 0.9", "", Metric::Fairness, 0.9),
        ("tenant.fairness > 90%", "", Metric::Fairness, 0.9),
        ("tenant.wait.wait.p99 < 1s", "tenant.wait.", Metric::Wait(p99), 1.0),
        ("errors < 3", "", Metric::Ended(RequestResult::Error), 3.0),
        ("errors < 5%", "", Metric::Share(RequestResult::Error), 0.05),
        ("batch.fell_back.share <= 0.25", "batch.", Metric::Share(RequestResult::FellBack), 0.25),
        ("served >= 99.5 %", "", Metric::ServedShare, 0.995),
        ("lane.coder.busy > 40%", "lane.coder.", Metric::Busy, 0.4),
        ("lane.coder.occupied != 1", "lane.coder.", Metric::Occupied, 1.0),
        ("lane.coder.queue.max < 10", "lane.coder.", Metric::QueueMax, 10.0),
        ("queue.mean < 2.5", "", Metric::QueueMean, 2.5),
    ] {
        assert_eq!(parsed(text), (scope.to_owned(), metric, value), "{text}");
    }
    assert_eq!(Objective::parse("  lost  ==\n 0 ").unwrap().to_string(), "lost == 0");
}

#[test]
fn metric_names_round_trip() {
    for text in [
        "wait.p90",
        "first-byte.p95",
        "total.max",
        "answered.share",
        "client-gone",
        "requests",
        "loads",
    ] {
        let value = if text.contains('p') || text.contains("max") { "1s" } else { "1" };
        let (scope, metric, _) = parsed(&format!("{text} < {value}"));
        assert_eq!(format!("{scope}{metric}"), text);
    }
}

/// Returns the kind of the error that parsing gives.
fn error_kind(text: &str) -> Kind {
    let error = Objective::parse(text).expect_err(text);
    assert_eq!(error.objective, text.trim());
    error.kind
}

#[test]
fn invalid_comparisons_are_rejected() {
    for (text, kind) in [
        ("", Kind::MissingOperator),
        ("wait.p99", Kind::MissingOperator),
        ("< 20s", Kind::MissingMetric),
        ("wait.p99 = 20s", Kind::InvalidOperator),
        ("tenant.wait.p99 < 2s", Kind::MissingName { scope: "tenant" }),
        ("lane..busy < 1", Kind::MissingName { scope: "lane" }),
    ] {
        assert_eq!(error_kind(text), kind, "{text}");
    }
}

#[test]
fn missing_statistics_are_listed() {
    for (text, metric, first, count) in [
        ("wait < 20s", "wait", "wait.mean", 6),
        ("interactive.first_byte < 20s", "first-byte", "first-byte.mean", 6),
        ("queue < 3", "queue", "queue.max", 2),
    ] {
        let Kind::MissingStatistic { metric: found, expected } = error_kind(text) else {
            panic!("{text}")
        };
        assert_eq!((found.as_str(), expected[0].as_str(), expected.len()), (metric, first, count));
    }
}

#[test]
fn unknown_metrics_get_a_suggestion() {
    for (text, suggestion) in [
        ("interactive.wait.p98 < 20s", "`wait.p9"),
        ("interactive.wiat.p99 < 20s", "`wait.p99`"),
        ("swiches < 3", "`switches`"),
        ("error < 3", "`errors`"),
        ("zzz < 3", "`first-byte.STATISTIC`"),
    ] {
        let Kind::UnknownMetric { hint, .. } = error_kind(text) else { panic!("{text}") };
        assert!(hint.contains(suggestion), "{text}: {hint}");
    }
}

#[test]
fn values_have_the_unit_of_the_metric() {
    for (text, value, expected) in [
        ("wait.p99 < 20", "20", "duration"),
        ("wait.p99 < 20 days", "20 days", "duration"),
        ("lost == -1", "-1", "number"),
        ("lost == 1e3", "1e3", "number"),
        ("lost == inf", "inf", "number"),
        ("errors < five%", "five%", "percentage"),
        ("lane.coder.busy < 20s", "20s", "share"),
    ] {
        match error_kind(text) {
            Kind::InvalidValue { value: found, expected: kind, .. } => {
                assert_eq!((found.as_str(), kind), (value, expected), "{text}");
            }
            other => panic!("{text}: {other}"),
        }
    }
    for (text, metric) in
        [("wait.p99 < 5%", Metric::Wait(Statistic::P99)), ("lost < 5%", Metric::Lost)]
    {
        assert_eq!(error_kind(text), Kind::NotAShare { metric, value: "5%".to_owned() }, "{text}");
    }
}

#[test]
fn metrics_are_limited_to_their_scopes() {
    for (text, metric, error) in [
        ("busy > 0.5", Metric::Busy, ScopeError::LaneOnly),
        ("interactive.lost == 0", Metric::Lost, ScopeError::RunOnly),
        ("tenant.alice.fairness > 1", Metric::Fairness, ScopeError::RunOnly),
        ("tenant.alice.loads > 1", Metric::Loads, ScopeError::LaneOrRun),
    ] {
        assert_eq!(error_kind(text), Kind::Scope { metric, error }, "{text}");
    }
}

#[test]
fn classes_and_lanes_must_exist() {
    let check =
        |text: &str| Objective::parse(text).unwrap().check(["interactive", "batch"], ["coder"]);
    for text in
        ["interactive.errors < 1", "lane.coder.busy > 0", "tenant.unknown.errors < 1", "lost == 0"]
    {
        assert_eq!(check(text), Ok(()), "{text}");
    }
    for (text, scope, name, suggestion) in [
        ("interactiv.errors < 1", "class", "interactiv", "did you mean `interactive`?"),
        ("lane.x.errors < 1", "lane", "x", "`coder`"),
    ] {
        let error = check(text).unwrap_err();
        assert_eq!(error.objective, text);
        let Kind::UnknownName { scope: found_scope, name: found, hint } = error.kind else {
            panic!("{text}")
        };
        assert_eq!((found_scope, found.as_str()), (scope, name));
        assert!(hint.contains(suggestion), "{hint}");
    }
}

/// Returns a run in which every request of a class waited for this many seconds.
fn run(seconds: u64) -> Summary {
    let mut run = test_run().summary;
    let time = Duration::from_secs(seconds);
    let times = DurationSummary {
        count: 1,
        mean: time,
        p50: time,
        p90: time,
        p95: time,
        p99: time,
        max: time,
    };
    run.classes = vec![Named {
        name: "interactive".to_owned(),
        value: RequestStatistics {
            wait: Some(times),
            ends: [3, 1, 0, 0, 0],
            ..RequestStatistics::default()
        },
    }];
    run
}

#[test]
fn objective_is_met_if_every_seed_meets_it() {
    let runs = [run(10), run(30), run(19)];
    let judged = |text: &str| Objective::parse(text).unwrap().over(&runs);
    let below = judged("interactive.wait.p99 < 20s");
    assert_eq!((below.met, below.runs_met, below.runs), (false, 2, 3));
    assert_eq!((below.mean, below.worst), (Some(59.0 / 3.0), Some(30.0)));
    let above = judged("interactive.wait.p99 > 9s");
    assert_eq!((above.met, above.worst), (true, Some(10.0)));
    let equal = judged("interactive.wait.p99 == 19s");
    assert_eq!((equal.met, equal.runs_met, equal.worst), (false, 1, Some(30.0)));
    assert_eq!(judged("interactive.wait.p99 != 19s").worst, Some(19.0));
    assert!(
        judged("interactive.fell-back <= 25%").met && !judged("interactive.fell-back < 25%").met
    );
    assert!(judged("interactive.served == 4").met && judged("interactive.answered == 3").met);
}

#[test]
fn metric_without_value_does_not_meet_an_objective() {
    let objective = Objective::parse("unknown.wait.p99 < 20s").unwrap();
    assert_eq!(objective.judge(&run(1)), Verdict { met: false, value: None });
    let judged = objective.over(&[run(1)]);
    assert_eq!((judged.met, judged.mean, judged.worst), (false, None, None));
    assert!(!objective.over(&[]).met, "without runs, no objective is met");
}

proptest! {
    #[test]
    fn errors_name_the_objective_on_one_line(text in ".{0,60}") {
        match Objective::parse(&text) {
            Ok(objective) => {
                prop_assert!(text.contains(['<', '>', '=', '!']), "{text:?}");
                prop_assert_eq!(normal(&objective.text), normal(&text));
            }
            Err(error) => {
                let message = error.to_string();
                prop_assert!(!message.contains(char::is_control), "{message:?}");
                prop_assert_eq!(error.objective.as_str(), text.trim());
            }
        }
    }

    #[test]
    fn objectives_are_read_as_written(
        scope in r"(|class\.|tenant\.[a-z]{1,8}\.|lane\.[a-z]{1,8}\.|[a-z]{1,8}\.x\.)",
        statistic in prop::sample::select(Statistic::ALL.to_vec()),
        op in prop::sample::select(vec!["<", "<=", ">", ">=", "==", "!="]),
        value in 0u32..100_000,
        run_value in 0u32..100_000,
    ) {
        let objective = Objective::parse(&format!("{scope}total.{} {op} {value}ms", statistic.0));
        let objective = objective.map_err(|error| TestCaseError::fail(error.to_string()))?;
        prop_assert_eq!(objective.scope.to_string(), scope);
        prop_assert_eq!(objective.metric, Metric::Total(statistic.1));
        let (left, right) = (run_value, value);
        let expected = match op {
            "<" => left < right,
            "<=" => left <= right,
            ">" => left > right,
            ">=" => left >= right,
            "==" => left == right,
            _ => left != right,
        };
        prop_assert_eq!(objective.holds(f64::from(run_value) / 1e3), expected);
    }

    #[test]
    fn parsed_objectives_parse_again(
        scope in r"(|a\.|tenant\.é_b\.|lane\.x\.y\.|[a-z_.<é ]{0,8})",
        metric in "(wait.p99|first_byte.max|errors|queue.max|x)",
        op in "(<|==|=!|>=)",
        value in "(5%|1.5s|3|[0-9.a-z%]{0,6})",
    ) {
        if let Ok(objective) = Objective::parse(&format!("{scope}{metric}{op}{value}")) {
            prop_assert_eq!(Objective::parse(objective.text.as_str()), Ok(objective));
        }
    }
}

/// Returns a text without white space.
fn normal(text: &str) -> String {
    text.split_whitespace().collect()
}
