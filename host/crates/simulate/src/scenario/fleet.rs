//! The lanes of a scenario, in the words of a host's configuration.

use std::path::Path;
use std::time::Duration;

use pointsman_domain::dispatch::{BackOff, GroupSetup, LaneSetup, Residency, Rules};
use pointsman_domain::{EngineKind, LaneId, LaneInfo, PlanLimits};
use pointsman_policy::ChainSpec;
use pointsman_settings::{Location, Section, nearest, rules};
use serde::Deserialize as _;
use toml::de::ValueDeserializer;

const SECOND: Duration = Duration::from_secs(1);

/// What of a host's configuration matters to a simulation.
#[derive(Debug, Clone)]
pub struct HostConfig {
    /// The lanes in the order of their ids.
    pub lanes: Vec<HostLane>,
    /// The groups that they share memory in.
    pub groups: Vec<GroupSetup>,
    /// The host's rules of queue and switching.
    pub rules: Rules,
    /// Limits on every plan.
    pub limits: PlanLimits,
    /// Longest time from a request to the first byte of its answer, on all lanes together.
    pub deadline: Duration,
    /// The policies.
    pub chain: ChainSpec,
}

/// What a configuration says about one lane.
#[derive(Debug, Clone)]
pub struct HostLane {
    /// What policies see of it.
    pub info: LaneInfo,
    /// What the dispatcher is told.
    pub setup: LaneSetup,
    /// The first byte of an answer may take this long, where the plan does not say.
    pub first_byte: Duration,
    /// How long the host takes to see that its engine hangs; [`Duration::MAX`]: it never does.
    pub notices_hang: Duration,
}

/// Where the lanes come from.
#[derive(Debug, Clone)]
pub enum FleetSource {
    /// A host's configuration.
    Config {
        /// Its file.
        file: std::path::PathBuf,
        /// Keys of it that are other here.
        set: toml::Table,
        /// Where the scenario names it.
        place: Location,
    },
    /// The scenario itself.
    Inline(Box<HostConfig>),
}

/// `[fleet]`. `None` only together with a mistake.
pub(super) fn read(section: &Section<'_>, folder: &Path) -> Option<FleetSource> {
    if let Some(config) = section.value("config") {
        let file = config.get_ref().as_str();
        if file.is_none() {
            section.wrong_type("config", config, "a text in quotes");
        }
        let set = section
            .value("set")
            .map(|set| toml::Table::deserialize(ValueDeserializer::from(set.clone())));
        let set = match set.transpose() {
            Ok(set) => set.unwrap_or_default(),
            Err(error) => {
                section.error_at("set", format!("must be a table: {}", error.message()));
                return None;
            }
        };
        section.report_unknown();
        return Some(FleetSource::Config {
            file: folder.join(file?),
            set,
            place: section.location("config"),
        });
    }
    let attempts = section.integer("max-attempts", 1..=20, 5);
    let deadline = section.positive_duration("deadline", 600 * SECOND);
    let (rules, max_wait) = rules(&section.section("queue"), &section.section("switching"));
    let groups: Vec<(String, u64)> = section.sections("groups").iter().map(read_group).collect();
    let sections = section.sections("lanes");
    if sections.is_empty() {
        section.error_at(
            "lanes",
            "there is no lane; write `config` with a host's configuration, or at least one `[[fleet.lanes]]`",
        );
    }
    let lanes: Vec<HostLane> =
        sections.iter().filter_map(|lane| read_lane(lane, &groups)).collect();
    for (index, lane) in lanes.iter().enumerate().filter(|_| lanes.len() == sections.len()) {
        if lanes[..index].iter().any(|other| other.info.name == lane.info.name) {
            sections[index]
                .error_at("name", format!("there is a lane \"{}\" already", lane.info.name));
        }
    }
    if lanes.len() == sections.len() {
        check_standing(&sections, &lanes, &groups);
    }
    section.report_unknown();
    Some(FleetSource::Inline(Box::new(HostConfig {
        lanes,
        groups: groups.into_iter().map(|(_, budget)| GroupSetup { budget }).collect(),
        rules,
        limits: PlanLimits { max_wait, max_steps: attempts },
        deadline,
        chain: ChainSpec::default(),
    })))
}

/// Name and memory. What is wrong with it has been noted, and it has room for every lane then.
fn read_group(section: &Section<'_>) -> (String, u64) {
    let name = section.required_string("name", "\"gpu0\"").unwrap_or_default().to_owned();
    if !section.has("memory") {
        section.error_at(
            "memory",
            "is missing; write how much its lanes may hold together, such as \"48GiB\"",
        );
    }
    let budget = section.bytes("memory").filter(|bytes| *bytes > 0);
    section.report_unknown();
    (name, budget.unwrap_or(u64::MAX))
}

fn read_lane(section: &Section<'_>, groups: &[(String, u64)]) -> Option<HostLane> {
    let kinds = [
        ("vllm", EngineKind::Vllm),
        ("llama-cpp", EngineKind::LlamaCpp),
        ("command", EngineKind::Other),
        ("external", EngineKind::External),
    ];
    let name = section.required_string("name", "\"coder\"");
    let models = section.strings("models").filter(|models| !models.is_empty());
    let engine = section.choice("engine", &kinds, EngineKind::Vllm);
    let group = read_place_in_group(section, groups);
    let residency = read_residency(section, engine);
    let expected = section.positive_duration(
        "expected-load-time",
        if engine == EngineKind::Vllm { 60 * SECOND } else { 10 * SECOND },
    );
    let slots = section.integer("slots", 1..=10_000, 4);
    let info = LaneInfo {
        id: LaneId(0),
        name: name.unwrap_or_default().to_owned(),
        engine,
        models: models.unwrap_or_else(|| name.into_iter().map(str::to_owned).collect()),
        labels: section.string_pairs("labels"),
        max_context: section.integer("max-context", 0..=100_000_000, 0),
        slots,
        // Policies number groups from 1; 0 is none.
        group: group.and_then(|(group, _)| u32::try_from(group + 1).ok()).unwrap_or(0),
        cost_milli: section.integer("cost", 0..=1_000_000_000, 0),
    };
    section.report_unknown();
    name?;
    let ours = residency != Residency::External;
    let setup = LaneSetup {
        slots,
        group: group.map_or(usize::MAX, |(group, _)| group),
        need: group.map_or(0, |(_, need)| need),
        asleep: 0,
        residency,
        expected_load: expected,
        back_off: if ours {
            BACK_OFF
        } else {
            BackOff { first: Duration::ZERO, most: Duration::ZERO, ..BACK_OFF }
        },
    };
    let notices_hang = if ours { 120 * SECOND } else { Duration::MAX };
    Some(HostLane { info, setup, first_byte: 300 * SECOND, notices_hang })
}

/// That of a configuration which does not say.
const BACK_OFF: BackOff = BackOff {
    first: SECOND,
    most: Duration::from_secs(60),
    reset_after: Duration::from_secs(60),
    give_up: 5,
    failed_retry: Duration::from_secs(600),
};

/// Index of the group, and the memory of it that the lane needs.
fn read_place_in_group(section: &Section<'_>, groups: &[(String, u64)]) -> Option<(usize, u64)> {
    let memory = section.bytes("memory");
    let Some(name) = section.string("group") else {
        if section.has("memory") {
            section.error_at(
                "memory",
                "counts among the lanes of a group; name one with `group`, or leave it out",
            );
        }
        return None;
    };
    let Some(index) = groups.iter().position(|(group, _)| group == name) else {
        let known = nearest(name, groups.iter().map(|(name, _)| name.as_str()));
        let hint = known.map_or_else(
            || "declare it with `[[fleet.groups]]` and the memory of it".to_owned(),
            |near| format!("did you mean \"{near}\"?"),
        );
        section.error_at("group", format!("there is no group \"{name}\"; {hint}"));
        return None;
    };
    match memory {
        None if !section.has("memory") => {
            section.error_at(
                "memory",
                "is missing; write what the lane needs of its group, such as \"22GiB\"",
            );
        }
        Some(bytes) if bytes > groups[index].1 => {
            section.error_at(
                "memory",
                format!("is more than group \"{name}\" has: it could never be loaded"),
            );
        }
        _ => {}
    }
    Some((index, memory?))
}

fn read_residency(section: &Section<'_>, engine: EngineKind) -> Residency {
    if engine == EngineKind::External {
        for key in ["load", "unload-after", "expected-load-time"] {
            if section.has(key) {
                section.error_at(
                    key,
                    "is for engines that the host starts, and this one is there already; leave it out",
                );
            }
        }
        return Residency::External;
    }
    let on_demand = |preload| Residency::OnDemand {
        preload,
        unload_after: section
            .has("unload-after")
            .then(|| section.positive_duration("unload-after", SECOND)),
    };
    let words = [
        ("on-demand", on_demand(false)),
        ("at-start", on_demand(true)),
        ("always", Residency::Always),
    ];
    let residency =
        section.choice("load", &words, words[if section.has("group") { 0 } else { 2 }].1);
    if residency == Residency::Always && section.has("unload-after") {
        section
            .error_at("unload-after", "is of no use to a lane that is always loaded; leave it out");
    }
    residency
}

/// Lanes that are always loaded have to fit together.
fn check_standing(sections: &[Section<'_>], lanes: &[HostLane], groups: &[(String, u64)]) {
    for (index, (name, budget)) in groups.iter().enumerate() {
        let stands = |lane: &HostLane| {
            lane.setup.group == index
                && matches!(lane.setup.residency, Residency::Always | Residency::External)
        };
        let held = lanes
            .iter()
            .filter(|lane| stands(lane))
            .fold(0u64, |sum, lane| sum.saturating_add(lane.setup.need));
        for (section, lane) in
            sections.iter().zip(lanes).filter(|(_, lane)| lane.setup.group == index)
        {
            let beside = if stands(lane) { 0 } else { lane.setup.need };
            if held.saturating_add(beside) > *budget {
                section.error_at(
                    "memory",
                    format!(
                        "does not fit into group \"{name}\" beside the lanes that are always loaded"
                    ),
                );
            }
        }
    }
}
