//! The `[[lanes]]` of the configuration.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use pointsman_fleet::{GroupSpec, LaneSpec, Liveness, Residency, Timeouts};

use super::engines::{self, Basics, Kind};
use super::need::{self, Need};
use pointsman_settings::Section;

const SECOND: Duration = Duration::from_secs(1);

/// All lanes, and how the need of each comes about.
pub(super) struct Lanes {
    pub(super) specs: Vec<LaneSpec>,
    pub(super) needs: Vec<String>,
}

/// All lanes. `listen` is the port that is ours. `None` only together with a mistake.
pub(super) fn read(
    root: &Section<'_>,
    groups: &[GroupSpec],
    folder: &Path,
    listen: Option<u16>,
) -> Option<Lanes> {
    let sections = root.sections("lanes");
    if sections.is_empty() {
        root.error_at(
            "lanes",
            "there is no lane; write at least one `[[lanes]]` with a `name` and a `[lanes.engine]`",
        );
    }
    let mut names = HashMap::new();
    let mut ports = HashMap::new();
    let mut missing = Vec::new();
    let mut lanes = Vec::new();
    for section in &sections {
        let Some((lane, need)) = read_lane(section, groups, &mut missing, folder) else { continue };
        if names.insert(lane.name.clone(), ()).is_some() {
            section.error_at("name", format!("there is a lane \"{}\" already", lane.name));
        }
        if let Some(port) = lane.engine.run().and_then(|run| run.port) {
            let other =
                ports.insert(port, lane.name.clone()).map(|name| format!("lane \"{name}\""));
            let ours = (listen == Some(port)).then(|| "`server.listen`".to_owned());
            if let Some(other) = other.or(ours) {
                let what = format!(
                    "{port} is that of {other} too; leave it out, and each engine gets a free one"
                );
                section.section("engine").error_at("port", what);
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
    missing: &mut Vec<&'a str>,
    folder: &Path,
) -> Option<(LaneSpec, Need)> {
    let name = section.required_string("name", "\"orchestrator\"");
    let models = section.strings("models");
    if models.as_ref().is_some_and(Vec::is_empty) {
        section.error_at(
            "models",
            "is empty; name the models that this lane answers to, or leave it out for the lane's own name",
        );
    }
    let basics = Basics {
        name: name.unwrap_or("lane").to_owned(),
        models: models.unwrap_or_else(|| name.into_iter().map(str::to_owned).collect()),
        max_context: section.integer("max-context", 0..=100_000_000, 0),
        slots: section.integer("slots", 1..=10_000, 4),
    };
    let labels = section.string_pairs("labels");
    let cost_milli = section.integer("cost", 0..=1_000_000_000, 0);
    let engine_model = section.string("engine-model").map(str::to_owned);
    let group = read_group(section, groups, missing);
    let engine_section = section.section("engine");
    let kind = engines::read_kind(&engine_section, section);
    let engine = kind.and_then(|kind| engines::read(&engine_section, kind, folder, &basics));
    let residency = read_residency(section, kind);
    let expected_load = section.positive_duration(
        "expected-load-time",
        if kind == Some(Kind::Vllm) { 60 * SECOND } else { 10 * SECOND },
    );
    let liveness = read_liveness(section, kind);
    let timeouts = read_timeouts(&section.section("timeouts"));
    // Read in any case, so that they are known keys.
    let _known = ["memory", "sleep-memory"].map(|key| section.has(key));
    section.report_unknown();
    let mut engine = engine?;
    let need = need::read(
        section,
        &engine_section,
        group.and_then(|index| groups.get(index)),
        &mut engine,
    );
    let engine_model = read_engine_model(section, engine_model, &engine.names);
    let max_context = if basics.max_context == 0 { engine.max_context } else { basics.max_context };
    name?;
    let need = need?;
    let lane = LaneSpec {
        name: basics.name,
        models: basics.models,
        labels,
        max_context,
        slots: basics.slots,
        group,
        need: need.bytes,
        asleep: need.asleep,
        residency,
        expected_load,
        cost_milli,
        engine_model,
        engine: engine.spec,
        timeouts,
        liveness,
    };
    Some((lane, need))
}

/// Index of the group that a lane names. `missing` are those that others have named and nobody has declared.
fn read_group<'a>(
    section: &Section<'a>,
    groups: &[GroupSpec],
    missing: &mut Vec<&'a str>,
) -> Option<usize> {
    let name = section.string("group")?;
    let group = groups.iter().position(|group| group.name == name);
    if group.is_none() {
        let known: Vec<String> = groups.iter().map(|group| format!("\"{}\"", group.name)).collect();
        let known = if known.is_empty() {
            String::new()
        } else {
            format!(" (there is {})", known.join(", "))
        };
        let what = if missing.contains(&name) {
            format!("there is no group \"{name}\" either for this lane")
        } else {
            format!(
                "there is no group \"{name}\"{known}; declare it, with the memory that its lanes may hold together:\n    \
                 [[groups]]\n    name = \"{name}\"\n    memory = \"48GiB\"\n    pool = \"gpu\""
            )
        };
        section.error_at("group", what);
        missing.push(name);
    }
    group
}

fn read_residency(section: &Section<'_>, kind: Option<Kind>) -> Residency {
    #[derive(Clone, Copy, PartialEq)]
    enum Load {
        OnDemand,
        AtStart,
        Always,
    }
    if kind == Some(Kind::External) {
        for key in ["load", "unload-after", "expected-load-time", "liveness"] {
            if section.has(key) {
                section.error_at(
                    key,
                    "is for engines that we start, and this one is there already; leave it out",
                );
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
                let what = "is of no use to a lane that is always loaded; write `load = \"on-demand\"` or \"at-start\" \
                            too, or leave it out";
                section.error_at("unload-after", what);
            }
            Residency::Always
        }
        Load::OnDemand | Load::AtStart => {
            Residency::OnDemand { preload: load == Load::AtStart, unload_after }
        }
    }
}

/// The name that the engine is asked for.
fn read_engine_model(
    section: &Section<'_>,
    wanted: Option<String>,
    names: &[String],
) -> Option<String> {
    let Some(wanted) = wanted else { return names.first().cloned() };
    let served =
        names.is_empty() || names.iter().any(|name| *name == wanted || name == engines::ANY);
    if !served {
        let what = format!(
            "the engine would not know \"{wanted}\": it serves \"{}\"; name one of them, write `served-names` in its \
             engine, or leave it out",
            names.join("\", \"")
        );
        section.error_at("engine-model", what);
    }
    Some(wanted)
}

fn read_liveness(section: &Section<'_>, kind: Option<Kind>) -> Liveness {
    let table = section.section("liveness");
    let (stall, probe_every) = match kind {
        Some(Kind::Vllm) => (120, 60),
        Some(Kind::LlamaCpp | Kind::Command) | None => (120, 0),
        Some(Kind::External) => (0, 0),
    };
    let liveness = Liveness {
        stall: table.duration("stall-timeout", stall * SECOND),
        probe_every: table.duration("probe-interval", probe_every * SECOND),
        probe_limit: table.duration("probe-timeout", 30 * SECOND),
    };
    if !liveness.probe_every.is_zero() && liveness.probe_limit.is_zero() {
        let what = "must be more than nothing; `probe-interval = \"0s\"` turns probes off";
        table.error_at("probe-timeout", what);
    }
    table.report_unknown();
    match kind {
        Some(Kind::External) => Liveness { probe_limit: Duration::ZERO, ..liveness },
        _ => liveness,
    }
}

fn read_timeouts(section: &Section<'_>) -> Timeouts {
    let timeouts = Timeouts {
        connect: section.positive_duration("connect", 2 * SECOND),
        // An answer that is not streamed has its first byte when it is complete.
        first_byte: section.positive_duration("first-byte", 300 * SECOND),
        idle: section.positive_duration("idle", 60 * SECOND),
    };
    section.report_unknown();
    timeouts
}
