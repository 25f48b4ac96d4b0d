//! Reads `[[lanes]]`.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::time::Duration;

use pointsman_domain::request_flow::EngineFailure;
use pointsman_domain::{Endpoint, EndpointSet, LaneNames, Trigger, derived_names};
use pointsman_fleet::{
    ANY_NAME, DRIVERS, DriverInfo, EngineConfig, GroupSpec, LaneBasics, LaneDefaults, LaneSpec,
    Liveness, Residency, Timeouts,
};
use pointsman_settings::{Code, Section, missing, nearest};

use super::need::{self, Need};

const SECOND: Duration = Duration::from_secs(1);

/// All lanes, and how the memory need of each was computed.
pub(super) struct Lanes {
    pub(super) specs: Vec<LaneSpec>,
    pub(super) needs: Vec<String>,
}

/// Where the lanes are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place<'a> {
    /// The folder of the configuration.
    pub(super) folder: &'a Path,
    /// The ports of the host.
    pub(super) taken: &'a [u16],
    /// Conversations outlive the unloading of their lane.
    pub(super) conversations: bool,
    /// There are lanes in another file.
    pub(super) are_elsewhere: bool,
}

/// Reads all lanes. Returns `None` only if an error was
/// reported.
pub(super) fn read(root: &Section<'_>, groups: &[GroupSpec], place: Place<'_>) -> Option<Lanes> {
    let sections = root.sections("lanes");
    if sections.is_empty() && !place.are_elsewhere {
        root.error_at(
            "lanes",
            Code::MissingKey
                .with("no lanes defined; add a `[[lanes]]` with a `name` and a `[lanes.engine]`"),
        );
    }
    let mut names = HashMap::new();
    let mut ports = HashMap::new();
    let mut unknown = Vec::new();
    let mut lanes = Vec::new();
    for section in &sections {
        let Some((lane, need)) = read_lane(section, groups, &mut unknown, place) else { continue };
        if names.insert(lane.name.clone(), ()).is_some() {
            let message = format!("lane \"{}\" already exists", lane.name);
            section.error_at("name", Code::Duplicate.with(message));
        }
        if let Some(port) = lane.engine.run().and_then(|run| run.port) {
            let other =
                ports.insert(port, lane.name.clone()).map(|name| format!("lane \"{name}\""));
            let own = place.taken.contains(&port).then(|| "the host's listeners".to_owned());
            if let Some(other) = other.or(own) {
                let message = format!(
                    "port {port} is also used by {other}; remove `port` to get a free one at each \
                     start"
                );
                section.section("engine").error_at("port", Code::Conflict.with(message));
            }
        }
        lanes.push((section, lane, need));
    }
    let checked: Vec<_> =
        lanes.iter().map(|(section, lane, need)| (*section, lane, need)).collect();
    need::check(&checked, groups);
    let complete = lanes.len() == sections.len();
    let (specs, needs) = lanes.into_iter().map(|(_, lane, need)| (lane, need.text)).unzip();
    complete.then_some(Lanes { specs, needs })
}

fn read_lane<'a>(
    section: &Section<'a>,
    groups: &[GroupSpec],
    unknown: &mut Vec<&'a str>,
    place: Place<'_>,
) -> Option<(LaneSpec, Need)> {
    let name = section.required_string("name", "\"orchestrator\"");
    let basics = read_basics(section, place, name);
    let labels = section.string_pairs("labels");
    let cost_milli = section.integer("cost", 0..=1_000_000_000, 0);
    let engine_model = section.string("engine-model").map(str::to_owned);
    let group = read_group(section, groups, unknown);
    let engine_section = section.section("engine");
    let driver = read_driver(&engine_section, section);
    let engine = driver.and_then(|driver| driver.read(&engine_section, &basics));
    // The defaults of a lane whose driver is invalid only serve to find further errors.
    let defaults = driver.map_or(LaneDefaults::MANAGED, |driver| driver.defaults);
    let residency = read_residency(section, driver);
    let endpoints = read_endpoints(section);
    let stream_usage = section.bool("stream-usage", true);
    let expected_load = section.positive_duration("expected-load-time", defaults.expected_load);
    let liveness = read_liveness(section, defaults);
    let timeouts = read_timeouts(&section.section("timeouts"));
    let is_external = driver.is_some_and(|driver| !driver.defaults.is_managed);
    let statuses = &section.section("fallback-statuses");
    let fallback_statuses = read_fallback_statuses(statuses, is_external);
    // Looked up even if the engine is invalid, so that they count as known keys.
    for key in ["memory", "sleep-memory"] {
        section.has(key);
    }
    section.report_unknown();
    let mut engine = engine?;
    let need = need::read(
        section,
        &engine_section,
        group.and_then(|index| groups.get(index)),
        &mut engine,
    );
    let engine_model = read_engine_model(section, engine_model, &engine.names);
    let names = read_names(&basics, &engine, engine_model.as_deref());
    let max_context = if basics.max_context == 0 { engine.max_context } else { basics.max_context };
    name?;
    let need = need?;
    let lane = LaneSpec {
        name: basics.name,
        models: basics.models,
        names,
        labels,
        max_context,
        endpoints,
        slots: basics.slots,
        group,
        need: need.bytes,
        asleep: need.asleep,
        residency,
        expected_load,
        cost_milli,
        engine_model,
        stream_usage,
        engine: engine.into_spec(),
        fallback_statuses,
        timeouts,
        liveness,
    };
    Some((lane, need))
}

/// Reads what the engine depends on. A missing name has been reported.
fn read_basics<'a>(section: &Section<'_>, place: Place<'a>, name: Option<&str>) -> LaneBasics<'a> {
    let models = section.strings("models");
    if models.as_ref().is_some_and(Vec::is_empty) {
        section.error_at("models", "must not be empty; remove it to serve the lane's own name");
    }
    LaneBasics {
        folder: place.folder,
        name: name.unwrap_or("lane").to_owned(),
        models: models.unwrap_or_else(|| name.into_iter().map(str::to_owned).collect()),
        max_context: section.integer("max-context", 0..=100_000_000, 0),
        slots: section.integer("slots", 1..=10_000, 4),
        conversations: place.conversations,
    }
}

/// Reads `driver`, which determines how the rest of the section is read.
fn read_driver(section: &Section<'_>, lane: &Section<'_>) -> Option<&'static DriverInfo> {
    if !lane.has("engine") {
        lane.error_at("engine", missing("`[lanes.engine]` with a `driver`"));
        return None;
    }
    if !section.has("driver") {
        let keys: Vec<String> = DRIVERS
            .iter()
            .map(|driver| {
                let purpose = driver.purpose.map(|purpose| format!(" ({purpose})"));
                format!("\"{}\"{}", driver.key, purpose.unwrap_or_default())
            })
            .collect();
        let (last, others) = keys.split_last()?;
        let message = format!("missing; set it to {} or {last}", others.join(", "));
        section.error_at("driver", Code::MissingKey.with(message));
        return None;
    }
    let choices: Vec<_> = DRIVERS.iter().map(|driver| (driver.key, Some(*driver))).collect();
    section.choice("driver", &choices, None)
}

/// Returns the index of a lane's group. `unknown` collects undeclared groups, so that the full hint
/// is given only once for each.
fn read_group<'a>(
    section: &Section<'a>,
    groups: &[GroupSpec],
    unknown: &mut Vec<&'a str>,
) -> Option<usize> {
    let name = section.string("group")?;
    let group = groups.iter().position(|group| group.name == name);
    if group.is_none() {
        let known: Vec<String> = groups.iter().map(|group| format!("\"{}\"", group.name)).collect();
        let known = if known.is_empty() {
            String::new()
        } else {
            format!(" (known groups: {})", known.join(", "))
        };
        let message = if unknown.contains(&name) {
            format!("unknown group \"{name}\"")
        } else {
            format!(
                "unknown group \"{name}\"{known}; declare it with the memory budget of its \
                 lanes:\n    \
                 [[groups]]\n    name = \"{name}\"\n    memory = \"48GiB\"\n    pool = \"gpu\""
            )
        };
        section.error_at("group", Code::UnknownName.with(message));
        unknown.push(name);
    }
    group
}

/// Reads the endpoints of a lane, by their names; `None` if they follow from the engine.
fn read_endpoints(section: &Section<'_>) -> Option<EndpointSet> {
    let names = section.strings("endpoints")?;
    if names.is_empty() {
        let message = "must not be empty; remove it to use those of the engine";
        section.error_at("endpoints", message);
    }
    let labels = || Endpoint::ALL.into_iter().map(Endpoint::label);
    let read = |name: &String| {
        let endpoint = Endpoint::from_label(name);
        if endpoint.is_none() {
            let hint = match nearest(name, labels()) {
                Some(near) => format!("did you mean \"{near}\"?"),
                None => format!("expected one of {}", labels().collect::<Vec<_>>().join(", ")),
            };
            let message = format!("unknown endpoint \"{}\"; {hint}", name.escape_debug());
            section.error_at("endpoints", Code::UnknownName.with(message));
        }
        endpoint
    };
    Some(EndpointSet::new(names.iter().filter_map(read)))
}

fn read_residency(section: &Section<'_>, driver: Option<&DriverInfo>) -> Residency {
    #[derive(Clone, Copy, PartialEq)]
    enum Load {
        OnDemand,
        AtStart,
        Always,
    }
    if let Some(driver) = driver.filter(|driver| !driver.defaults.is_managed) {
        let of_peers: &[&str] = if driver.defaults.is_peer { &["slots"] } else { &[] };
        let keys = ["load", "unload-after", "expected-load-time", "liveness"];
        for key in keys.iter().chain(of_peers) {
            if section.has(key) {
                let message = format!(
                    "not allowed with driver \"{}\", whose engine the host does not start",
                    driver.key
                );
                section.error_at(key, Code::Conflict.with(message));
            }
        }
        return Residency::External;
    }
    let words =
        [("on-demand", Load::OnDemand), ("at-start", Load::AtStart), ("always", Load::Always)];
    let default = if section.has("group") { Load::OnDemand } else { Load::Always };
    let load = section.choice("load", &words, default);
    let unload_after =
        section.has("unload-after").then(|| section.positive_duration("unload-after", SECOND));
    match load {
        Load::Always => {
            if unload_after.is_some() {
                let message = "has no effect on a lane that is always loaded; set `load = \
                    \"on-demand\"` or \
                               \"at-start\", or remove it";
                section.error_at("unload-after", Code::Conflict.with(message));
            }
            Residency::Always
        }
        Load::OnDemand | Load::AtStart => {
            Residency::OnDemand { preload: load == Load::AtStart, unload_after }
        }
    }
}

/// Returns the names that the lane answers to besides its models: those of its engine.
fn read_names(
    lane: &LaneBasics<'_>,
    engine: &EngineConfig,
    engine_model: Option<&str>,
) -> LaneNames {
    let adapters = engine.card().adapter_names();
    let is_new = |name: &&String| {
        *name != ANY_NAME
            && **name != lane.name
            && !lane.models.contains(name)
            && !adapters.contains(name)
    };
    let own = engine.names.iter().filter(is_new).cloned().collect();
    let sent = engine_model.into_iter().flat_map(|model| derived_names(model, None));
    let derived = engine.derived_names.iter().cloned().chain(sent);
    let mut derived: Vec<String> = derived.filter(|name| is_new(&name)).collect();
    let mut seen = HashSet::new();
    derived.retain(|name| seen.insert(name.clone()));
    LaneNames { own, shared: Vec::new(), adapters, derived }
}

/// Returns the model name that is sent to the engine.
fn read_engine_model(
    section: &Section<'_>,
    wanted: Option<String>,
    names: &[String],
) -> Option<String> {
    let Some(wanted) = wanted else { return names.first().cloned() };
    let served = names.is_empty() || names.iter().any(|name| *name == wanted || name == ANY_NAME);
    if !served {
        let message = format!(
            "the engine does not serve \"{wanted}\": expected one of \"{}\"; add it to the \
             engine's \
             `served-names`, or remove `engine-model`",
            names.join("\", \"")
        );
        section.error_at("engine-model", Code::UnknownName.with(message));
    }
    Some(wanted)
}

fn read_liveness(section: &Section<'_>, defaults: LaneDefaults) -> Liveness {
    let table = section.section("liveness");
    let liveness = Liveness {
        stall: table.duration("stall-timeout", defaults.stall),
        probe_interval: table.duration("probe-interval", defaults.probe_interval),
        probe_timeout: table.duration("probe-timeout", 30 * SECOND),
    };
    if !liveness.probe_interval.is_zero() && liveness.probe_timeout.is_zero() {
        let message = "must be greater than zero; set `probe-interval = \"0s\"` to turn probes off";
        table.error_at("probe-timeout", Code::OutOfRange.with(message));
    }
    table.report_unknown();
    if defaults.is_managed {
        liveness
    } else {
        Liveness { probe_timeout: Duration::ZERO, ..liveness }
    }
}

/// Returns the statuses for which a request continues on another lane. An engine that the host does
/// not start may have lost its model (404), its credit (402) or its free slots (409), which is not
/// the client's concern while another lane serves the model.
fn read_fallback_statuses(section: &Section<'_>, is_external: bool) -> BTreeMap<u16, Trigger> {
    let words = [
        ("server-error", Some(Trigger::ServerError)),
        ("overloaded", Some(Trigger::Overloaded)),
        ("connect-error", Some(Trigger::ConnectError)),
        ("engine-restart", Some(Trigger::EngineRestart)),
        ("none", None),
    ];
    let defaults =
        [(402, Trigger::ServerError), (404, Trigger::ServerError), (409, Trigger::Overloaded)];
    let mut statuses: BTreeMap<u16, Trigger> =
        defaults.into_iter().filter(|_| is_external).collect();
    for key in section.keys() {
        let trigger = section.choice(key, &words, None);
        let Some(status) = key.parse().ok().filter(|status| (400..600).contains(status)) else {
            let message = format!("invalid status \"{key}\": expected 400 to 599");
            section.error_at(key, Code::InvalidValue.with(message));
            continue;
        };
        match trigger {
            Some(trigger) => drop(statuses.insert(status, trigger)),
            None if EngineFailure::is_failed_status(status) => {
                let message = "\"none\" is not allowed: a response with this status is never for \
                               the client";
                section.error_at(key, Code::Conflict.with(message));
            }
            None => drop(statuses.remove(&status)),
        }
    }
    statuses
}

fn read_timeouts(section: &Section<'_>) -> Timeouts {
    let timeouts = Timeouts {
        connect: section.positive_duration("connect", 2 * SECOND),
        // The first byte of a response that is not streamed arrives when the response is complete.
        first_byte: section.positive_duration("first-byte", 300 * SECOND),
        idle: section.positive_duration("idle", 60 * SECOND),
    };
    section.report_unknown();
    timeouts
}
