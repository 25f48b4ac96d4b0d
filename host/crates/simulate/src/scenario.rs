//! The scenario file: the lanes, engines, policies, traffic and faults of a simulation, and its
//! variants.
//!
//! ```text
//!   Document (a file and overrides) ──> Scenario ──host()──> Host: lanes, engines, chain
//!                                          ├──traffic(seed)──> Arrivals
//!                                          ├──faults(fleet)──> injected faults
//!                                          └──variants: scenarios with overridden keys
//! ```
//!
//! All errors of a file are reported in one pass, each with its line and a hint.

mod engines;
mod faults;
mod fleet;
mod host_config;
mod quantity;
mod schema;
mod tenants;
mod traffic;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use pointsman_policy::{ChainSpec, PolicySpec, Rollout};
use pointsman_settings::{
    Code, Diagnostic, FileError, InvalidPath, Location, Override, Problem, Section, chain,
    folder_of, missing, nearest,
};
use toml::de::DeValue;

pub use self::engines::Engines;
pub use self::fleet::{FleetSource, HostConfig, HostLane};
pub(crate) use self::host_config::load_host_config;
pub use self::schema::schema;
use crate::arrivals::{Arrivals, TrafficStream};
use crate::fault::InjectedFault;
use crate::fleet::{Fleet, Lane};
use crate::timestamp;

/// All errors of a scenario.
pub type ScenarioError = FileError;

/// The default start time: 2026-01-05, a Monday, 00:00 UTC.
const DEFAULT_START_MS: u64 = 1_767_571_200_000;

/// The text of a scenario file with overrides of some of its keys.
#[derive(Debug, Clone)]
pub struct Document {
    source: String,
    file: PathBuf,
    overrides: Vec<Override>,
}

impl Document {
    /// Creates a document from a text. Paths in it are relative to the folder of `file`.
    pub fn new(source: String, file: &Path) -> Self {
        Self { source, file: file.to_owned(), overrides: Vec::new() }
    }

    /// Reads a file.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn load(file: &Path) -> Result<Self, ScenarioError> {
        Ok(Self::new(FileError::source(file)?, file))
    }

    /// Overrides a key, given by its dotted path, for example `traffic.interactive.rate`. Elements
    /// of lists are addressed by their index or by their `name`, `class` or `lane`. A value that is
    /// not valid TOML is taken as a string.
    ///
    /// Keys of `policies` are those of the host's chain if the scenario has no policies of its own.
    ///
    /// # Errors
    /// If `path` is not a dotted path. Whether the key exists is checked by [`Document::scenario`].
    pub fn set(&mut self, path: &str, value: &str) -> Result<(), InvalidPath> {
        let path = match path.strip_prefix("policies.") {
            Some(rest) if self.has_policies_of_host() => {
                format!("fleet.set.policies.chain.{rest}")
            }
            Some(_) | None => path.to_owned(),
        };
        self.overrides.push(Override::key(&path, value)?);
        Ok(())
    }

    /// Returns whether the policies are those of a host configuration.
    fn has_policies_of_host(&self) -> bool {
        let Ok(table) = self.source.parse::<toml::Table>() else { return false };
        let config = table.get("fleet").and_then(|fleet| fleet.get("config"));
        config.is_some() && !table.contains_key("policies")
    }

    /// Parses the document.
    ///
    /// # Errors
    /// All errors in the document, in the order of the file.
    pub fn scenario(&self) -> Result<Scenario, ScenarioError> {
        let read = |root: &Section<'_>| {
            let scenario = read(root, &self.file)?;
            Some(Scenario { description: description(&self.source), ..scenario })
        };
        pointsman_settings::read(&self.source, &self.overrides, read)
            .map_err(|errors| FileError::new(&self.file, errors))
    }
}

/// A valid scenario.
#[derive(Debug, Clone)]
pub struct Scenario {
    /// The title.
    pub title: String,
    /// The comment at the start of the file.
    pub description: String,
    /// The wall clock at the start, in milliseconds since the Unix epoch.
    pub start_ms: u64,
    /// The time within which requests arrive.
    pub duration: Duration,
    /// The seeds; the scenario is run once with each.
    pub seeds: Vec<u64>,
    /// The objectives that reports are checked against.
    pub objectives: Vec<String>,
    /// The source of the lanes.
    pub fleet: FleetSource,
    /// The models of the lanes' engines.
    pub engines: Engines,
    /// The policies; `None` means those of the host's configuration.
    pub policies: Option<Vec<PolicySpec>>,
    /// The weights of tenants; the others have weight 1.
    pub weights: BTreeMap<String, u32>,
    /// The variants to compare with. They have no variants themselves.
    pub variants: Vec<Variant>,
    /// The streams of requests.
    pub streams: Vec<Arc<TrafficStream>>,
    faults: Vec<faults::UnresolvedFault>,
    file: PathBuf,
    locations: Locations,
}

#[derive(Debug, Clone)]
struct Locations {
    objectives: Location,
    fleet: Location,
    traffic: Location,
    /// The trace file of each stream.
    streams: Vec<Location>,
}

/// A scenario with some keys overridden.
#[derive(Debug, Clone)]
pub struct Variant {
    /// The name.
    pub name: String,
    /// The complete scenario.
    pub scenario: Scenario,
}

/// Lanes with their engines, and the policies that decide.
#[derive(Debug, Clone)]
pub struct Host {
    /// The lanes.
    pub fleet: Fleet,
    /// The policies.
    pub chain: ChainSpec,
    /// Sections of the host configuration that a simulation does not represent.
    pub ignored: Vec<&'static str>,
}

impl Host {
    /// Returns what a simulation of this host leaves out.
    pub fn warnings(&self) -> Vec<String> {
        let ignored = self.ignored.iter().map(|what| format!("not simulated: {what}"));
        let staged = self.chain.policies.iter().filter_map(|policy| match policy.rollout {
            Rollout::Replace => None,
            rollout @ (Rollout::Shadow | Rollout::Canary { .. }) => Some(format!(
                "not simulated: the rollout `{}` of policy `{}`",
                rollout.name(),
                policy.name
            )),
        });
        ignored.chain(staged).collect()
    }
}

impl Scenario {
    /// Parses the text of a scenario file.
    ///
    /// # Errors
    /// All errors in the text, in the order of the file.
    pub fn parse(text: &str, file: &Path) -> Result<Self, ScenarioError> {
        Document::new(text.to_owned(), file).scenario()
    }

    /// Returns the lanes and the policies. `resolve` reads a host configuration with overrides.
    ///
    /// # Errors
    /// If the configuration cannot be read, or if the scenario refers to lanes that do not exist.
    pub fn host(
        &self,
        resolve: &dyn Fn(&Path, &toml::Table) -> Result<HostConfig, Problem>,
    ) -> Result<Host, ScenarioError> {
        let config = match &self.fleet {
            FleetSource::Inline(config) => config.as_ref().clone(),
            FleetSource::Config { file, set, location } => {
                resolve(file, set).map_err(|problem| self.error(vec![location.error(problem)]))?
            }
        };
        let names: Vec<&str> = config.lanes.iter().map(|lane| lane.info.name.as_str()).collect();
        let unknown =
            self.engines.lanes.iter().filter(|(name, ..)| !names.contains(&name.as_str()));
        let errors: Vec<Diagnostic> =
            unknown.map(|(name, location, _)| location.error(unknown_lane(name, &names))).collect();
        if !errors.is_empty() {
            return Err(self.error(errors));
        }
        if config.lanes.is_empty() {
            let problem = Code::MissingKey.with("the host configuration defines no lanes");
            return Err(self.error(vec![self.locations.fleet.error(problem)]));
        }
        let lanes = config.lanes.into_iter().map(|lane| {
            let (engine, first_byte_timeout) = self.engines.for_lane(&lane);
            Lane { info: lane.info, setup: lane.setup, first_byte_timeout, engine }
        });
        let fleet = Fleet {
            lanes: lanes.collect(),
            groups: config.groups,
            rules: config.rules,
            limits: config.limits,
            guards: config.guards.clone(),
            deadline: config.deadline,
            weights: self.weights.clone(),
        };
        let chain = match &self.policies {
            Some(policies) => ChainSpec { policies: policies.clone(), ..config.chain },
            None => config.chain,
        };
        Ok(Host { fleet, chain, ignored: config.ignored })
    }

    /// Returns the faults to inject into the engines of these lanes.
    ///
    /// # Errors
    /// If a fault refers to a lane that does not exist.
    pub fn faults(&self, fleet: &Fleet) -> Result<Vec<InjectedFault>, ScenarioError> {
        let names: Vec<&str> = fleet.lanes.iter().map(|lane| lane.info.name.as_str()).collect();
        faults::resolve(&self.faults, &names).map_err(|errors| self.error(errors))
    }

    /// Returns the requests of one run.
    ///
    /// # Errors
    /// If a trace file cannot be read.
    pub fn traffic(&self, seed: u64) -> Result<Arrivals, ScenarioError> {
        Arrivals::new(&self.streams, seed, self.start_ms).map_err(|(stream, error)| {
            let location = self.locations.streams.get(stream);
            self.error(vec![location.unwrap_or(&self.locations.traffic).error(&error)])
        })
    }

    /// Returns the file of the scenario.
    pub(crate) fn file(&self) -> &Path {
        &self.file
    }

    /// Returns an error in the `objectives` key, which the reports parse.
    pub fn objective_error(&self, problem: impl Into<Problem>) -> ScenarioError {
        self.error(vec![self.locations.objectives.error(problem)])
    }

    /// Returns an error in a trace file that was found during a run.
    pub fn traffic_error(&self, problem: impl Into<Problem>) -> ScenarioError {
        self.error(vec![self.locations.traffic.error(problem)])
    }

    fn error(&self, errors: Vec<Diagnostic>) -> ScenarioError {
        FileError::new(&self.file, errors)
    }
}

/// Returns the comment at the start of a file, without its indented lines such as commands, and
/// without the line that names a schema for editors.
fn description(source: &str) -> String {
    let comment = source.lines().map_while(|line| line.strip_prefix('#'));
    let prose = comment
        .filter(|line| !line.starts_with("  ") && !line.starts_with(":schema "))
        .map(str::trim)
        .filter(|line| !line.is_empty());
    prose.collect::<Vec<_>>().join(" ")
}

fn unknown_lane(name: &str, names: &[&str]) -> Problem {
    let hint = match nearest(name, names.iter().copied()) {
        Some(near) => format!("did you mean \"{near}\"?"),
        None => format!("expected one of \"{}\"", names.join("\", \"")),
    };
    Code::UnknownName.with(format!("unknown lane \"{name}\"; {hint}"))
}

/// Reads a scenario with its variants. Returns `None` only if an error was reported.
fn read(root: &Section<'_>, file: &Path) -> Option<Scenario> {
    let variants = root.sections("variants");
    let scenario = read_without_variants(root, file);
    let mut names: Vec<&str> = Vec::new();
    let mut read = Vec::new();
    for variant in &variants {
        let name = variant.required_string("name", "\"first-come\"");
        if let Some(name) = name.filter(|name| names.contains(name)) {
            let message = format!("another variant has the name \"{name}\"");
            variant.error_at("name", Code::Duplicate.with(message));
        }
        names.extend(name);
        let set = variant.value("set");
        let table = set.and_then(|set| set.get_ref().as_table());
        if let (Some(set), None) = (set, table) {
            variant.wrong_type(
                "set",
                set,
                "a table of keys, for example { fleet.switching.min-residency = 0.0 }",
            );
        }
        let empty = toml::de::DeTable::new();
        let merged = root.merged(table.unwrap_or(&empty));
        let scenario = read_without_variants(&root.subsection(&merged), file);
        let policies = read_policies(variant, folder_of(file));
        variant.report_unknown();
        if let (Some(name), Some(mut scenario)) = (name, scenario) {
            scenario.policies = policies.or(scenario.policies);
            read.push(Variant { name: name.to_owned(), scenario });
        }
    }
    Some(Scenario { variants: read, ..scenario? })
}

/// Reads a scenario without its variants. Returns `None` only if an error was reported.
fn read_without_variants(root: &Section<'_>, file: &Path) -> Option<Scenario> {
    let folder = folder_of(file);
    let title = root.string("title").map(str::to_owned);
    let start_ms = read_start_time(root);
    if !root.has("duration") {
        root.error_at(
            "duration",
            missing("`duration = \"24h\"`, the time within which requests arrive"),
        );
    }
    let duration = root.positive_duration("duration", Duration::from_secs(86_400));
    let seeds = read_seeds(root);
    let objectives = root.strings("objectives").unwrap_or_default();
    let fleet = fleet::read(&root.section("fleet"), folder);
    let engines = engines::read(&root.section("engines"));
    let policies = read_policies(root, folder);
    let (streams, stream_locations) = traffic::read(root, folder, duration).into_iter().unzip();
    let locations = Locations {
        objectives: root.location("objectives"),
        fleet: root.location("fleet"),
        traffic: root.location("traffic"),
        streams: stream_locations,
    };
    let weights = tenants::read(root);
    let faults = faults::read(root);
    // Marks the key as known; `read` reads the variants.
    let _ = root.has("variants");
    root.report_unknown();
    Some(Scenario {
        title: title
            .unwrap_or_else(|| file.file_stem().unwrap_or_default().to_string_lossy().into_owned()),
        description: String::new(),
        start_ms,
        duration,
        seeds,
        objectives,
        fleet: fleet?,
        engines,
        policies,
        weights,
        variants: Vec::new(),
        streams,
        faults,
        file: file.to_owned(),
        locations,
    })
}

fn read_start_time(root: &Section<'_>) -> u64 {
    let Some(value) = root.value("start-time") else { return DEFAULT_START_MS };
    let micros = match value.get_ref() {
        DeValue::Datetime(datetime) => timestamp::micros(datetime),
        other => other.as_str().and_then(timestamp::parse),
    };
    let ms = micros.and_then(|micros| u64::try_from(micros / 1000).ok());
    ms.unwrap_or_else(|| {
        root.error_at(
            "start-time",
            "invalid date and time: expected for example \"2026-01-05T00:00:00Z\", not before 1970",
        );
        DEFAULT_START_MS
    })
}

/// Reads the seeds: a list, or the number of seeds to use, starting with 1.
fn read_seeds(root: &Section<'_>) -> Vec<u64> {
    let Some(DeValue::Array(_)) = root.value("seeds").map(|seeds| seeds.get_ref()) else {
        return (1..=root.integer("seeds", 1..=10_000, 1)).collect();
    };
    let seeds: Option<Vec<u64>> =
        root.json("seeds").and_then(|seeds| serde_json::from_value(seeds).ok());
    match seeds {
        Some(seeds) if !seeds.is_empty() => seeds,
        _ => {
            root.error_at(
                "seeds",
                "invalid list: expected at least one integer, and none below zero; or set the \
                 number of seeds, for example `seeds = 3`",
            );
            vec![1]
        }
    }
}

/// Reads `[[policies]]`. Returns `None` if the key is missing.
fn read_policies(section: &Section<'_>, folder: &Path) -> Option<Vec<PolicySpec>> {
    let dir = |policy: &Section<'_>, _: &str| {
        Some(folder.join(policy.required_string("dir", "\"../policies/cortex\"")?).into())
    };
    section.has("policies").then(|| chain(&section.sections("policies"), dir))
}

#[cfg(test)]
mod tests;
