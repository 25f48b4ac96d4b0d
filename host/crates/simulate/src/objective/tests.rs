use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::metric::Statistic;
use crate::observe::RequestResult;
use crate::report::{Figures, Named, Times, test_run};

fn parsed(text: &str) -> (String, Metric, f64) {
    let objective = Objective::parse(text).unwrap_or_else(|problem| panic!("{problem}"));
    (objective.scope.to_string(), objective.metric, objective.value)
}

#[test]
fn sentences_mean_what_they_say() {
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
fn every_metric_has_a_name_that_reads_as_it() {
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

#[test]
fn mistakes_say_what_to_write() {
    for (text, says) in [
        ("", "is no comparison"),
        ("wait.p99", "is no comparison"),
        ("< 20s", "says no figure before the operator"),
        ("wait.p99 = 20s", "compares with none of `<`"),
        ("wait < 20s", "does not say which; write one of `wait.mean`"),
        ("interactive.first_byte < 20s", "`first-byte.mean`"),
        ("queue < 3", "`queue.max` or `queue.mean`"),
        ("interactive.wait.p98 < 20s", "did you mean `wait.p9"),
        ("interactive.wiat.p99 < 20s", "did you mean `wait.p99`?"),
        ("swiches < 3", "did you mean `switches`?"),
        ("error < 3", "did you mean `errors`?"),
        ("zzz < 3", "known: `wait`, `first-byte`"),
        ("wait.p99 < 20", "`20` is no time; write for example 250ms"),
        ("wait.p99 < 20 days", "is no time"),
        ("wait.p99 < 5%", "`wait.p99` is no part of anything"),
        ("lost < 5%", "`lost` is no part of anything"),
        ("lost == -1", "`-1` is no number"),
        ("lost == 1e3", "`1e3` is no number"),
        ("lost == inf", "`inf` is no number"),
        ("errors < five%", "`five%` is no percentage"),
        ("lane.coder.busy < 20s", "`20s` is no part; write for example 5%"),
        ("busy > 0.5", "write `lane.<name>.` before it"),
        ("interactive.lost == 0", "`lost` is a figure of the whole run only"),
        ("tenant.alice.fairness > 1", "`tenant.fairness` is a figure of the whole run only"),
        ("tenant.alice.loads > 1", "`loads` is a figure of a lane or of the whole run"),
        ("tenant.wait.p99 < 2s", "says no name after `tenant.`"),
        ("lane..busy < 1", "says no name"),
    ] {
        let problem = Objective::parse(text).expect_err(text);
        assert!(problem.contains(says), "{text}: {problem}");
    }
}

#[test]
fn names_are_those_of_the_scenario() {
    let check =
        |text: &str| Objective::parse(text).unwrap().check(["interactive", "batch"], ["coder"]);
    for text in
        ["interactive.errors < 1", "lane.coder.busy > 0", "tenant.anybody.errors < 1", "lost == 0"]
    {
        assert_eq!(check(text), Ok(()), "{text}");
    }
    let problem = check("interactiv.errors < 1").unwrap_err();
    assert_eq!(
        problem,
        "`interactiv.errors < 1`: there is no class `interactiv`; did you mean `interactive`?"
    );
    let problem = check("lane.x.errors < 1").unwrap_err();
    assert!(problem.ends_with("there is no lane `x`; there are `coder`"), "{problem}");
}

/// A run in which a class waited so many seconds at most.
fn run(seconds: u64) -> Summary {
    let mut run = test_run().summary;
    let time = Duration::from_secs(seconds);
    let times =
        Times { count: 1, mean: time, p50: time, p90: time, p95: time, p99: time, max: time };
    run.classes = vec![Named {
        name: "interactive".to_owned(),
        of: Figures { wait: Some(times), ends: [3, 1, 0, 0, 0], ..Figures::default() },
    }];
    run
}

#[test]
fn an_objective_is_met_if_it_is_met_with_every_seed() {
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
fn what_cannot_be_measured_is_not_met() {
    let objective = Objective::parse("nobody.wait.p99 < 20s").unwrap();
    assert_eq!(objective.judge(&run(1)), Verdict { met: false, value: None });
    let judged = objective.over(&[run(1)]);
    assert_eq!((judged.met, judged.mean, judged.worst), (false, None, None));
    assert!(!objective.over(&[]).met, "no run proves anything");
}

proptest! {
    #[test]
    fn reading_never_panics(text in ".{0,60}") {
        if let Err(problem) = Objective::parse(&text) {
            prop_assert!(!problem.contains(char::is_control), "{problem:?}");
        }
    }

    #[test]
    fn what_reads_once_reads_again(
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
