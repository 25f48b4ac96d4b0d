//! `[fleet]`: the lanes of a scenario, with the keys of a host configuration.

use std::path::Path;
use std::time::Duration;

use pointsman_domain::dispatch::{Backoff, GroupSetup, LaneSetup, Residency, Rules};
use pointsman_domain::{Guards, LaneId, LaneInfo, PlanLimits};
use pointsman_fleet::{DRIVERS, DriverInfo, vllm};
use pointsman_policy::ChainSpec;
use pointsman_settings::{Code, Location, Section, missing, nearest, rules};
use serde::Deserialize as _;
use toml::de::ValueDeserializer;

const SECOND: Duration = Duration::from_secs(1);

/// The part of a host configuration that a simulation uses.
#[derive(Debug, Clone)]
pub struct HostConfig {
    /// The lanes in the order of their ids.
    pub lanes: Vec<HostLane>,
    /// The groups whose lanes share memory.
    pub groups: Vec<GroupSetup>,
    /// The host's queueing and switching rules.
    pub rules: Rules,
    /// The limits on every plan.
    pub limits: PlanLimits,
    /// Rules that no policy can break.
    pub guards: Guards,
    /// The maximum time from the arrival of a request to the first byte of its response, over all
    /// attempts.
    pub deadline: Duration,
    /// The policies.
    pub chain: ChainSpec,
    /// Sections of the host configuration that a simulation does not represent.
    pub ignored: Vec<&'static str>,
}

/// The configuration of one lane.
#[derive(Debug, Clone)]
pub struct HostLane {
    /// The part that policies see.
    pub info: LaneInfo,
    /// The part that the dispatcher uses.
    pub setup: LaneSetup,
    /// The maximum time to the first byte of a response, unless the plan sets one.
    pub first_byte: Duration,
    /// How long the host takes to detect that the engine hangs; [`Duration::MAX`] means that the
    /// host does not detect hangs.
    pub hang_detection_time: Duration,
}

/// The source of the lanes.
#[derive(Debug, Clone)]
pub enum FleetSource {
    /// A host configuration.
    Config {
        /// The file.
        file: std::path::PathBuf,
        /// Keys that override those of the file.
        set: toml::Table,
        /// The position of the `config` key in the scenario.
        location: Location,
    },
    /// The scenario itself.
    Inline(Box<HostConfig>),
}

/// Reads `[fleet]`. Returns `None` only if an error was reported.
pub(super) fn read(section: &Section<'_>, folder: &Path) -> Option<FleetSource> {
    if let Some(config) = section.value("config") {
        let file = config.get_ref().as_str();
        if file.is_none() {
            section.wrong_type("config", config, "a string");
        }
        let set = section
            .value("set")
            .map(|set| toml::Table::deserialize(ValueDeserializer::from(set.clone())));
        let set = match set.transpose() {
            Ok(set) => set.unwrap_or_default(),
            Err(error) => {
                let message = format!("expected a table: {}", error.message());
                section.error_at("set", Code::WrongType.with(message));
                return None;
            }
        };
        section.report_unknown();
        return Some(FleetSource::Config {
            file: folder.join(file?),
            set,
            location: section.location("config"),
        });
    }
    let max_attempts = section.integer("max-attempts", 1..=20, 5);
    let deadline = section.positive_duration("deadline", 600 * SECOND);
    let (rules, max_wait) = rules(&section.section("queue"), &section.section("switching"));
    let groups: Vec<(String, u64)> = section.sections("groups").iter().map(read_group).collect();
    let sections = section.sections("lanes");
    if sections.is_empty() {
        let message = "no lanes defined: set `config` to a host configuration, or add a \
                       `[[fleet.lanes]]`";
        section.error_at("lanes", Code::MissingKey.with(message));
    }
    let lanes: Vec<HostLane> =
        sections.iter().filter_map(|lane| read_lane(lane, &groups)).collect();
    // Lanes and sections only correspond if every lane could be read.
    if lanes.len() == sections.len() {
        for (index, lane) in lanes.iter().enumerate() {
            let name = &lane.info.name;
            if lanes[..index].iter().any(|other| other.info.name == *name) {
                let message = format!("another lane has the name \"{name}\"");
                sections[index].error_at("name", Code::Duplicate.with(message));
            }
        }
        check_resident_memory(&sections, &lanes, &groups);
    }
    section.report_unknown();
    Some(FleetSource::Inline(Box::new(HostConfig {
        lanes,
        groups: groups.into_iter().map(|(_, budget)| GroupSetup { budget }).collect(),
        rules,
        limits: PlanLimits { max_wait, max_steps: max_attempts },
        guards: Guards::default(),
        deadline,
        chain: ChainSpec::default(),
        ignored: Vec::new(),
    })))
}

/// Reads the name and the memory of a group. After an error in the memory, the group counts as
/// unlimited, so that its lanes cause no further errors.
fn read_group(section: &Section<'_>) -> (String, u64) {
    let name = section.required_string("name", "\"gpu0\"").unwrap_or_default().to_owned();
    if !section.has("memory") {
        section
            .error_at("memory", missing("`memory = \"48GiB\"`, the memory that its lanes share"));
    }
    let budget = section.bytes("memory").filter(|bytes| *bytes > 0);
    section.report_unknown();
    (name, budget.unwrap_or(u64::MAX))
}

fn read_lane(section: &Section<'_>, groups: &[(String, u64)]) -> Option<HostLane> {
    let name = section.required_string("name", "\"coder\"");
    let models = section.strings("models").filter(|models| !models.is_empty());
    let drivers: Vec<_> = DRIVERS.iter().map(|driver| (driver.key, *driver)).collect();
    let driver = section.choice("engine", &drivers, &vllm::DRIVER);
    let group = read_group_and_memory(section, groups);
    let residency = read_residency(section, driver);
    let expected_load =
        section.positive_duration("expected-load-time", driver.defaults.expected_load);
    let slots = section.integer("slots", 1..=10_000, 4);
    let info = LaneInfo {
        id: LaneId(0),
        name: name.unwrap_or_default().to_owned(),
        engine: driver.kind,
        models: models.unwrap_or_else(|| name.into_iter().map(str::to_owned).collect()),
        names: Default::default(),
        labels: section.string_pairs("labels"),
        max_context: section.integer("max-context", 0..=100_000_000, 0),
        endpoints: pointsman_domain::EndpointSet::all(),
        slots,
        // Policies number groups from 1; 0 means no group.
        group: group.and_then(|(group, _)| u32::try_from(group + 1).ok()).unwrap_or(0),
        cost_milli: section.integer("cost", 0..=1_000_000_000, 0),
        is_peer: false,
    };
    section.report_unknown();
    name?;
    let is_managed = residency != Residency::External;
    let setup = LaneSetup {
        slots,
        group: group.map_or(usize::MAX, |(group, _)| group),
        need: group.map_or(0, |(_, need)| need),
        asleep: 0,
        residency,
        expected_load,
        backoff: if is_managed {
            DEFAULT_BACKOFF
        } else {
            // The host does not restart external engines, so there is nothing to delay.
            Backoff { first: Duration::ZERO, most: Duration::ZERO, ..DEFAULT_BACKOFF }
        },
    };
    let hang_detection_time = if is_managed { driver.defaults.stall } else { Duration::MAX };
    Some(HostLane { info, setup, first_byte: 300 * SECOND, hang_detection_time })
}

/// The default backoff of a host configuration.
const DEFAULT_BACKOFF: Backoff = Backoff {
    first: SECOND,
    most: Duration::from_secs(60),
    reset_after: Duration::from_secs(60),
    max_failures: 5,
    retry_failed_after: Duration::from_secs(600),
};

/// Reads the index of the lane's group, and the memory that the lane needs of the group.
fn read_group_and_memory(section: &Section<'_>, groups: &[(String, u64)]) -> Option<(usize, u64)> {
    let memory = section.bytes("memory");
    let Some(name) = section.string("group") else {
        if section.has("memory") {
            let message = "only used by lanes of a group; set `group`, or remove it";
            section.error_at("memory", Code::Conflict.with(message));
        }
        return None;
    };
    let Some(index) = groups.iter().position(|(group, _)| group == name) else {
        let near = nearest(name, groups.iter().map(|(name, _)| name.as_str()));
        let hint = near.map_or_else(
            || "declare it with `[[fleet.groups]]` and its memory".to_owned(),
            |near| format!("did you mean \"{near}\"?"),
        );
        let message = format!("unknown group \"{name}\"; {hint}");
        section.error_at("group", Code::UnknownName.with(message));
        return None;
    };
    match memory {
        None if !section.has("memory") => {
            let example = "`memory = \"22GiB\"`, the memory that the lane needs of its group";
            section.error_at("memory", missing(example));
        }
        Some(bytes) if bytes > groups[index].1 => {
            let message = format!("exceeds the memory of group \"{name}\"");
            section.error_at("memory", Code::OutOfMemory.with(message));
        }
        _ => {}
    }
    Some((index, memory?))
}

fn read_residency(section: &Section<'_>, driver: &DriverInfo) -> Residency {
    if !driver.defaults.is_managed {
        for key in ["load", "unload-after", "expected-load-time"] {
            if section.has(key) {
                let message = "not used by an external engine, which the host does not load; \
                               remove it";
                section.error_at(key, Code::Conflict.with(message));
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
    let choices = [
        ("on-demand", on_demand(false)),
        ("at-start", on_demand(true)),
        ("always", Residency::Always),
    ];
    let default = choices[if section.has("group") { 0 } else { 2 }].1;
    let residency = section.choice("load", &choices, default);
    if residency == Residency::Always && section.has("unload-after") {
        let message = "not used by a lane that is always loaded; remove it";
        section.error_at("unload-after", Code::Conflict.with(message));
    }
    residency
}

/// Checks that the lanes that are always loaded fit into their groups together, and that every
/// other lane fits beside them.
fn check_resident_memory(sections: &[Section<'_>], lanes: &[HostLane], groups: &[(String, u64)]) {
    for (index, (name, budget)) in groups.iter().enumerate() {
        let is_resident = |lane: &HostLane| {
            lane.setup.group == index
                && matches!(lane.setup.residency, Residency::Always | Residency::External)
        };
        // The sums saturate, so that absurd sizes are too large instead of wrapping around.
        let held = lanes
            .iter()
            .filter(|lane| is_resident(lane))
            .fold(0u64, |sum, lane| sum.saturating_add(lane.setup.need));
        for (section, lane) in
            sections.iter().zip(lanes).filter(|(_, lane)| lane.setup.group == index)
        {
            let own = if is_resident(lane) { 0 } else { lane.setup.need };
            if held.saturating_add(own) > *budget {
                let message = format!(
                    "does not fit into group \"{name}\" beside the lanes that are always loaded"
                );
                section.error_at("memory", Code::OutOfMemory.with(message));
            }
        }
    }
}
