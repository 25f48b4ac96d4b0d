//! `[[failures]]`: the faults that a scenario injects into engines.

use std::time::Duration;

use pointsman_domain::LaneId;
use pointsman_domain::units::{self, UnitError};
use pointsman_settings::{Diagnostic, Location, Section, missing};
use toml::de::DeValue;

use super::quantity::{Unit, conflict, number, required_distribution, required_interval};
use super::unknown_lane;
use crate::fault::{FaultKind, InjectedFault, Schedule};

/// A fault whose lane names have not been resolved.
#[derive(Debug, Clone)]
pub(super) struct UnresolvedFault {
    lanes: Vec<String>,
    location: Location,
    kind: FaultKind,
    schedule: Schedule,
}

/// A value of the key `kind`.
#[derive(Debug, Clone, Copy, PartialEq)]
enum KindName {
    Crash,
    Hang,
    LoadFailure,
    SlowLoad,
    Slowdown,
}

const KINDS: [(&str, Option<KindName>); 5] = [
    ("crash", Some(KindName::Crash)),
    ("hang", Some(KindName::Hang)),
    ("load-failure", Some(KindName::LoadFailure)),
    ("slow-load", Some(KindName::SlowLoad)),
    ("slowdown", Some(KindName::Slowdown)),
];

/// Reads `[[failures]]`.
pub(super) fn read(root: &Section<'_>) -> Vec<UnresolvedFault> {
    root.sections("failures").iter().filter_map(read_fault).collect()
}

fn read_fault(section: &Section<'_>) -> Option<UnresolvedFault> {
    let key = if section.has("lanes") { "lanes" } else { "lane" };
    let lanes = match (section.has("lane"), section.has("lanes")) {
        (false, false) => {
            section.error_at("lane", missing("`lane = \"coder\"`, or `lanes` for several"));
            None
        }
        (true, true) => {
            conflict(section, "lanes", "lane");
            None
        }
        (true, false) => section.string("lane").map(|lane| vec![lane.to_owned()]),
        (false, true) => section.strings("lanes"),
    };
    let kind = read_kind(section);
    let schedule = read_schedule(section);
    section.report_unknown();
    Some(UnresolvedFault {
        lanes: lanes?,
        location: section.location(key),
        kind: kind?,
        schedule: schedule?,
    })
}

fn read_kind(section: &Section<'_>) -> Option<FaultKind> {
    if !section.has("kind") {
        let kinds = KINDS.map(|(name, _)| format!("\"{name}\"")).join(", ");
        section.error_at("kind", missing(format!("`kind = \"crash\"`; kinds are {kinds}")));
    }
    let kind = section.choice("kind", &KINDS, None)?;
    let duration = || required_distribution(section, "duration", Unit::Time);
    let factor = |key: &str, low, high, example| {
        if !section.has(key) {
            section.error_at(key, missing(format!("`{key} = {example}`")));
        }
        number(section, key, low, high)
    };
    match kind {
        KindName::Crash => Some(FaultKind::Crash),
        KindName::Hang => duration().map(FaultKind::Hang),
        KindName::LoadFailure => duration().map(FaultKind::LoadFailure),
        KindName::SlowLoad => {
            let factor = factor("load-time-factor", 0.01, 1e6, "4.0");
            let duration = duration();
            Some(FaultKind::SlowLoad { load_time_factor: factor?, duration: duration? })
        }
        KindName::Slowdown => {
            let factor = factor("speed-factor", 0.001, 1.0, "0.5");
            let duration = duration();
            Some(FaultKind::Slowdown { speed_factor: factor?, duration: duration? })
        }
    }
}

fn read_schedule(section: &Section<'_>) -> Option<Schedule> {
    match (section.has("at"), section.has("every")) {
        (true, false) => {}
        (false, true) => return required_interval(section, "every").map(Schedule::Every),
        (false, false) => {
            section.error_at("at", missing("`at = \"3h\"`, or `every` to repeat the fault"));
            return None;
        }
        (true, true) => {
            conflict(section, "every", "at");
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
            Some(Schedule::At(times))
        }
        Err(error) => {
            section.error_at("at", error);
            None
        }
    }
}

/// Resolves lane names, given in the order of their ids.
pub(super) fn resolve(
    faults: &[UnresolvedFault],
    names: &[&str],
) -> Result<Vec<InjectedFault>, Vec<Diagnostic>> {
    let mut errors = Vec::new();
    let mut resolved = Vec::new();
    for fault in faults {
        let mut lanes = Vec::new();
        for name in &fault.lanes {
            match names.iter().position(|known| known == name) {
                Some(index) => lanes.push(LaneId(u32::try_from(index).unwrap_or(u32::MAX))),
                None => errors.push(fault.location.error(unknown_lane(name, names))),
            }
        }
        resolved.push(InjectedFault {
            lanes,
            kind: fault.kind.clone(),
            schedule: fault.schedule.clone(),
        });
    }
    if errors.is_empty() { Ok(resolved) } else { Err(errors) }
}
