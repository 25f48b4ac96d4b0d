//! Scenarios with arbitrary keys and values.

use proptest::prelude::*;

use super::*;
use crate::arrivals::{ArrivalProcess, TrafficSource};

/// Checks that errors name lines of the file, in ascending order.
fn check_errors(source: &str, errors: &[Diagnostic]) -> Result<(), TestCaseError> {
    let lines = source.matches('\n').count() + 1;
    prop_assert!(!errors.is_empty());
    prop_assert!(errors.is_sorted_by_key(|error| error.line), "{errors:?}");
    for error in errors {
        prop_assert!((1..=lines).contains(&error.line), "{error} of {lines} lines");
        prop_assert!(!error.message.is_empty());
    }
    Ok(())
}

proptest! {
    #[test]
    fn errors_in_arbitrary_text_name_a_line(text: String) {
        // A scenario without lanes and traffic is invalid.
        check_errors(&text, &parse(&text).unwrap_err())?;
    }

    #[test]
    fn comments_change_no_values(
        comment in "[^\\x00-\\x1f\\x7f]{0,40}",
        place in 0usize..99,
    ) {
        let lines: Vec<&str> = COMPLETE.lines().collect();
        let (before, after) = lines.split_at(place.min(lines.len()));
        let source = format!("{}\n# {comment}\n{}\n", before.join("\n"), after.join("\n"));
        let (plain, commented) = (parse(COMPLETE).unwrap(), parse(&source).unwrap());
        prop_assert_eq!(&plain.streams, &commented.streams);
        prop_assert_eq!(plain.seeds, commented.seeds);
        prop_assert_eq!(plain.variants.len(), commented.variants.len());
    }

    #[test]
    fn values_are_read_as_written(
        seconds in 1u64..100_000,
        seeds in prop::collection::vec(0u64..1 << 53, 1..5),
        streams in prop::collection::vec((1u32..10_000, 1u32..50_000, 1u32..50_000), 1..5),
    ) {
        let mut source = format!("duration = \"{seconds}s\"\nseeds = {seeds:?}\n");
        source += "[[fleet.lanes]]\nname = \"a\"\n";
        for (rate, prompt, output) in &streams {
            source += &format!(
                "[[traffic]]\nmodel = \"a\"\nrate = \"{rate}/h\"\nprompt = {prompt}\n\
                 output = {output}\n"
            );
        }
        let scenario = parse(&source).unwrap();
        prop_assert_eq!(scenario.duration, Duration::from_secs(seconds));
        prop_assert_eq!(scenario.seeds, seeds);
        let read: Vec<_> = scenario
            .streams
            .iter()
            .map(|stream| (stream.source.clone(), stream.prompt.clone(), stream.output.clone()))
            .collect();
        let written: Vec<_> = streams
            .iter()
            .map(|(rate, prompt, output)| {
                let process = ArrivalProcess::Poisson(f64::from(*rate) / 3600.0);
                let fixed = |tokens: u32| Distribution::Fixed(f64::from(tokens));
                (TrafficSource::Open(process), fixed(*prompt), fixed(*output))
            })
            .collect();
        prop_assert_eq!(read, written);
    }

    #[test]
    fn arbitrary_values_are_valid_or_reported(
        keys in prop::collection::vec(
            (prop::sample::select(KEYS), prop::sample::select(VALUES)),
            1..8,
        ),
        seed: u64,
    ) {
        let mut document = Document::new(COMPLETE.to_owned(), Path::new("/conf/day.toml"));
        for (key, value) in keys {
            document.set(key, value).unwrap();
        }
        let scenario = match document.scenario() {
            Ok(scenario) => scenario,
            Err(error) => {
                prop_assert!(!error.diagnostics().is_empty());
                return Ok(());
            }
        };
        prop_assert!(!scenario.duration.is_zero() && !scenario.seeds.is_empty());
        prop_assert!(scenario.streams.iter().all(|stream| stream.until <= scenario.duration));
        if let Ok(host) = scenario.host(&no_config) {
            prop_assert!(!host.fleet.lanes.is_empty());
            let lanes = host.fleet.lanes.len();
            if let Ok(faults) = scenario.faults(&host.fleet) {
                let mut affected = faults.iter().flat_map(|fault| &fault.lanes);
                prop_assert!(affected.all(|lane| lane.index() < lanes));
            }
        }
        // The trace file does not exist.
        prop_assert!(scenario.traffic(seed).is_err());
    }
}

const KEYS: &[&str] = &[
    "start-time",
    "duration",
    "seeds",
    "fleet.groups.gpu0.memory",
    "fleet.lanes.coder.memory",
    "fleet.lanes.coder.group",
    "fleet.lanes.cloud.load",
    "engines.default.load",
    "engines.default.decode",
    "engines.coder",
    "traffic.interactive.daily",
    "traffic.interactive.prompt",
    "traffic.interactive.models",
    "traffic.interactive.tenants",
    "tenants.acme.weight",
    "traffic.interactive.skew",
    "traffic.agents.sessions",
    "traffic.agents.sessions.turns",
    "traffic.agents.turns",
    "traffic.2.bursts.every",
    "traffic.2.bursts",
    "traffic.3.speed",
    "failures.0.at",
    "failures.0.lane",
    "variants.no-policies.set",
];
const VALUES: &[&str] = &[
    "0",
    "-1",
    "0xffff_ffff_ffff_ffff_ffff",
    "9223372036854775807",
    "nan",
    "inf",
    "1e999",
    "1e-9",
    "0.5",
    "true",
    "[]",
    "[0]",
    "[[1, 2]]",
    "{}",
    "{ mean = 1e300 }",
    "{ median = 0, p99 = 0 }",
    "{ median = 1e-300, p99 = 1e9 }",
    "{ min = 1e-9, shape = 0.01, max = 1e11 }",
    "\"\"",
    "\"18446744073709551615B\"",
    "\"18446744073709551615ms\"",
    "\"9000000000000us\"",
    "\"1e5/s\"",
    "\"99999-01-01T00:00:00Z\"",
    "2020-01-01",
    "0000-01-01T00:00:00Z",
];
