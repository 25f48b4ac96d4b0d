//! `[[failures]]`: what goes wrong with engines.

use std::time::Duration;

use pointsman_domain::LaneId;
use pointsman_domain::units::{self, UnitError};
use pointsman_settings::{Diagnostic, Location, Section};
use toml::de::DeValue;

use super::no_lane;
use super::quantity::{Unit, between, number, required_spread};
use crate::fault::{Failure, Trouble, When};

/// A failure whose lanes are not known yet.
#[derive(Debug, Clone)]
pub(super) struct Planned {
    lanes: Vec<String>,
    place: Location,
    what: Trouble,
    when: When,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Word {
    Crash,
    Hang,
    LoadsFail,
    SlowLoads,
    SlowDown,
}

const WORDS: [(&str, Option<Word>); 5] = [
    ("crash", Some(Word::Crash)),
    ("hang", Some(Word::Hang)),
    ("loads-fail", Some(Word::LoadsFail)),
    ("slow-loads", Some(Word::SlowLoads)),
    ("slow-down", Some(Word::SlowDown)),
];

pub(super) fn read(root: &Section<'_>) -> Vec<Planned> {
    root.sections("failures").iter().filter_map(read_one).collect()
}

fn read_one(section: &Section<'_>) -> Option<Planned> {
    let key = if section.has("lanes") { "lanes" } else { "lane" };
    let lanes = match (section.has("lane"), section.has("lanes")) {
        (false, false) => {
            section.error_at("lane", "is missing; name the lane (`lane`), or several (`lanes`)");
            None
        }
        (true, true) => {
            section.error_at("lanes", "stands beside `lane`; write one of the two");
            None
        }
        (true, false) => section.string("lane").map(|lane| vec![lane.to_owned()]),
        (false, true) => section.strings("lanes"),
    };
    let what = read_what(section);
    let when = read_when(section);
    section.report_unknown();
    Some(Planned { lanes: lanes?, place: section.location(key), what: what?, when: when? })
}

fn read_what(section: &Section<'_>) -> Option<Trouble> {
    if !section.has("what") {
        let words = WORDS.map(|(word, _)| format!("\"{word}\"")).join(", ");
        section.error_at("what", format!("is missing; write one of {words}"));
    }
    let what = section.choice("what", &WORDS, None)?;
    let lasts = || required_spread(section, "lasts", Unit::Time);
    let factor = |key: &str, low, high, example| {
        if !section.has(key) {
            section.error_at(key, format!("is missing; write for example `{key} = {example}`"));
        }
        number(section, key, low, high)
    };
    match what {
        Word::Crash => Some(Trouble::Crash),
        Word::Hang => lasts().map(Trouble::Hang),
        Word::LoadsFail => lasts().map(Trouble::LoadsFail),
        Word::SlowLoads => {
            let (times, lasts) = (factor("times", 0.01, 1e6, "4.0"), lasts());
            Some(Trouble::SlowLoads { times: times?, lasts: lasts? })
        }
        Word::SlowDown => {
            let (part, lasts) = (factor("part", 0.001, 1.0, "0.5"), lasts());
            Some(Trouble::SlowDown { part: part?, lasts: lasts? })
        }
    }
}

fn read_when(section: &Section<'_>) -> Option<When> {
    match (section.has("at"), section.has("every")) {
        (true, false) => {}
        (false, true) => return between(section, "every").map(When::Every),
        (false, false) => {
            section.error_at(
                "at",
                "is missing; write when it happens, such as \"3h\", or how often (`every`)",
            );
            return None;
        }
        (true, true) => {
            section.error_at("every", "stands beside `at`; write one of the two");
            return None;
        }
    }
    let times = match section.value("at").map(|at| at.get_ref()) {
        Some(DeValue::Array(_)) => section.strings("at")?,
        _ => vec![section.string("at")?.to_owned()],
    };
    let times: Result<Vec<Duration>, UnitError> =
        times.iter().map(|time| units::duration(time)).collect();
    match times {
        Ok(mut times) => {
            times.sort_unstable();
            Some(When::At(times))
        }
        Err(what) => {
            section.error_at("at", what);
            None
        }
    }
}

/// The failures of lanes with these names, in the order of their ids.
pub(super) fn of_lanes(
    planned: &[Planned],
    names: &[&str],
) -> Result<Vec<Failure>, Vec<Diagnostic>> {
    let mut errors = Vec::new();
    let mut failures = Vec::new();
    for failure in planned {
        let mut lanes = Vec::new();
        for name in &failure.lanes {
            match names.iter().position(|known| known == name) {
                Some(index) => lanes.push(LaneId(u32::try_from(index).unwrap_or(u32::MAX))),
                None => errors.push(failure.place.error(no_lane(name, names))),
            }
        }
        failures.push(Failure { lanes, what: failure.what.clone(), when: failure.when.clone() });
    }
    if errors.is_empty() { Ok(failures) } else { Err(errors) }
}
