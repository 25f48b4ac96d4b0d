//! The scenario file: lanes, engines, policies, traffic and failures of a simulation, and what is to be compared.
//!
//! ```text
//!   Document (a file, and keys that are other) ──> Scenario ──host()──> Host: lanes, engines, chain
//!                                                     ├──traffic(seed)──> Arrivals
//!                                                     ├──failures(fleet)──> what goes wrong
//!                                                     └──variants: scenarios with keys that are other
//! ```
//!
//! All mistakes are found at once, each with its line and what to write instead.

mod engines;
mod faults;
mod fleet;
mod quantity;
mod traffic;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use pointsman_policy::{ChainSpec, PolicySpec};
use pointsman_settings::{
    Diagnostic, FileError, InvalidPath, Location, Override, Problem, Section, chain, folder_of,
    nearest,
};
use toml::de::DeValue;

pub use self::engines::Engines;
pub use self::fleet::{FleetSource, HostConfig, HostLane};
pub(crate) use self::quantity::moment;
pub use self::traffic::{Format, Models, Pace, Sessions, Source, Stream, Tenants, Trace};
use crate::arrivals::Arrivals;
use crate::fault::Failure;
use crate::fleet::{Fleet, Lane};

/// Everything that is wrong with a scenario.
pub type ScenarioError = FileError;

/// 2026-01-05, a Monday, 00:00 UTC.
const BEGINS: u64 = 1_767_571_200_000;

/// A scenario file, and keys of it that are other than it says.
#[derive(Debug, Clone)]
pub struct Document {
    source: String,
    file: PathBuf,
    over: Vec<Override>,
}

impl Document {
    /// The document of this text; paths in it are relative to the file's folder.
    pub fn new(source: String, file: &Path) -> Self {
        Self { source, file: file.to_owned(), over: Vec::new() }
    }

    /// Read a file.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn load(file: &Path) -> Result<Self, ScenarioError> {
        Ok(Self::new(FileError::source(file)?, file))
    }

    /// Set a key by its dotted path, where elements of lists are named by their index or by their `name`, `class` or `lane`:
    /// `traffic.interactive.rate`. What is not a value of TOML is a text.
    ///
    /// # Errors
    /// When that is no path. Whether there is such a key turns out in [`Document::scenario`].
    pub fn set(&mut self, path: &str, value: &str) -> Result<(), InvalidPath> {
        self.over.push(Override::key(path, value)?);
        Ok(())
    }

    /// The scenario.
    ///
    /// # Errors
    /// With every mistake in it, in the order of the file.
    pub fn scenario(&self) -> Result<Scenario, ScenarioError> {
        let read = |root: &Section<'_>| {
            let scenario = read(root, &self.file)?;
            Some(Scenario { description: description(&self.source), ..scenario })
        };
        pointsman_settings::read(&self.source, &self.over, read)
            .map_err(|errors| FileError::new(&self.file, errors))
    }
}

/// A valid scenario.
#[derive(Debug, Clone)]
pub struct Scenario {
    /// What it is called.
    pub title: String,
    /// The comment that its file begins with.
    pub description: String,
    /// The wall clock at its begin, in milliseconds since the Unix epoch.
    pub begins_ms: u64,
    /// Requests come for so long.
    pub lasts: Duration,
    /// It is run once with each.
    pub seeds: Vec<u64>,
    /// What has to be true of what comes out.
    pub objectives: Vec<String>,
    /// Where the lanes come from.
    pub fleet: FleetSource,
    /// How their engines behave.
    pub engines: Engines,
    /// The policies; `None`: those of the host's configuration.
    pub policies: Option<Vec<PolicySpec>>,
    /// What it is compared with. These have no variants themselves.
    pub variants: Vec<Variant>,
    /// Who asks.
    pub streams: Vec<Arc<Stream>>,
    failures: Vec<faults::Planned>,
    file: PathBuf,
    places: Places,
}

#[derive(Debug, Clone)]
struct Places {
    objectives: Location,
    fleet: Location,
    traffic: Location,
}

/// A scenario with some keys that are other.
#[derive(Debug, Clone)]
pub struct Variant {
    /// What it is called.
    pub name: String,
    /// The whole of it.
    pub scenario: Scenario,
}

/// Lanes with their engines, and the policies that decide.
#[derive(Debug, Clone)]
pub struct Host {
    /// The lanes.
    pub fleet: Fleet,
    /// The policies.
    pub chain: ChainSpec,
}

impl Scenario {
    /// Read a scenario's text.
    ///
    /// # Errors
    /// With every mistake in it, in the order of the file.
    pub fn parse(text: &str, file: &Path) -> Result<Self, ScenarioError> {
        Document::new(text.to_owned(), file).scenario()
    }

    /// The lanes and the policies. `resolve` reads a host's configuration with some keys that are other than it says.
    ///
    /// # Errors
    /// When that fails, and for lanes that do not exist.
    pub fn host(
        &self,
        resolve: &dyn Fn(&Path, &toml::Table) -> Result<HostConfig, String>,
    ) -> Result<Host, ScenarioError> {
        let config = match &self.fleet {
            FleetSource::Inline(config) => config.as_ref().clone(),
            FleetSource::Config { file, set, place } => {
                resolve(file, set).map_err(|what| self.error(vec![place.error(what)]))?
            }
        };
        let names: Vec<&str> = config.lanes.iter().map(|lane| lane.info.name.as_str()).collect();
        let strangers =
            self.engines.lanes.iter().filter(|(name, ..)| !names.contains(&name.as_str()));
        let errors: Vec<Diagnostic> =
            strangers.map(|(name, place, _)| place.error(no_lane(name, &names))).collect();
        if !errors.is_empty() {
            return Err(self.error(errors));
        }
        if config.lanes.is_empty() {
            return Err(self.error(vec![self.places.fleet.error("has no lane")]));
        }
        let lanes = config.lanes.into_iter().map(|lane| {
            let (engine, first_byte) = self.engines.of(&lane);
            Lane { info: lane.info, setup: lane.setup, first_byte, engine }
        });
        let fleet = Fleet {
            lanes: lanes.collect(),
            groups: config.groups,
            rules: config.rules,
            limits: config.limits,
            deadline: config.deadline,
        };
        let chain = match &self.policies {
            Some(policies) => ChainSpec { policies: policies.clone(), ..config.chain },
            None => config.chain,
        };
        Ok(Host { fleet, chain })
    }

    /// What goes wrong with the engines of these lanes.
    ///
    /// # Errors
    /// For lanes that do not exist.
    pub fn failures(&self, fleet: &Fleet) -> Result<Vec<Failure>, ScenarioError> {
        let names: Vec<&str> = fleet.lanes.iter().map(|lane| lane.info.name.as_str()).collect();
        faults::of_lanes(&self.failures, &names).map_err(|errors| self.error(errors))
    }

    /// The requests of one run.
    ///
    /// # Errors
    /// When a file of requests cannot be read.
    pub fn traffic(&self, seed: u64) -> Result<Arrivals, ScenarioError> {
        Arrivals::new(&self.streams, seed, self.begins_ms)
            .map_err(|(place, what)| self.error(vec![place.error(what)]))
    }

    /// A mistake in the objectives, which others read.
    pub fn wrong_objective(&self, what: impl Into<Problem>) -> ScenarioError {
        self.error(vec![self.places.objectives.error(what)])
    }

    /// A mistake in a file of requests that shows when it is read on.
    pub fn wrong_traffic(&self, what: impl Into<Problem>) -> ScenarioError {
        self.error(vec![self.places.traffic.error(what)])
    }

    fn error(&self, errors: Vec<Diagnostic>) -> ScenarioError {
        FileError::new(&self.file, errors)
    }
}

/// The comment at the head of a file, without what stands indented in it.
fn description(source: &str) -> String {
    let comment = source.lines().map_while(|line| line.strip_prefix('#'));
    let prose = comment
        .filter(|line| !line.starts_with("  "))
        .map(str::trim)
        .filter(|line| !line.is_empty());
    prose.collect::<Vec<_>>().join(" ")
}

fn no_lane(name: &str, names: &[&str]) -> String {
    match nearest(name, names.iter().copied()) {
        Some(near) => format!("there is no lane \"{name}\"; did you mean \"{near}\"?"),
        None => format!("there is no lane \"{name}\"; there is \"{}\"", names.join("\", \"")),
    }
}

/// The scenario and its variants. `None` only together with a mistake.
fn read(root: &Section<'_>, file: &Path) -> Option<Scenario> {
    let variants = root.sections("variants");
    let scenario = read_form(root, file);
    let mut names: Vec<&str> = Vec::new();
    let mut read = Vec::new();
    for variant in &variants {
        let name = variant.required_string("name", "\"first-come\"");
        if name.is_some_and(|name| names.contains(&name)) {
            variant.error_at("name", "is that of another variant already");
        }
        names.extend(name);
        let set = variant.value("set");
        let table = set.and_then(|set| set.get_ref().as_table());
        if let (Some(set), None) = (set, table) {
            variant.wrong_type(
                "set",
                set,
                "a table of keys, such as { fleet.switching.min-residency = 0.0 }",
            );
        }
        let nothing = toml::de::DeTable::new();
        let merged = root.merged(table.unwrap_or(&nothing));
        let form = read_form(&root.subsection(&merged), file);
        let policies = read_policies(variant, folder_of(file));
        variant.report_unknown();
        if let (Some(name), Some(mut form)) = (name, form) {
            form.policies = policies.or(form.policies);
            read.push(Variant { name: name.to_owned(), scenario: form });
        }
    }
    Some(Scenario { variants: read, ..scenario? })
}

/// The scenario without its variants. `None` only together with a mistake.
fn read_form(root: &Section<'_>, file: &Path) -> Option<Scenario> {
    let folder = folder_of(file);
    let title = root.string("title").map(str::to_owned);
    let begins = read_begins(root);
    if !root.has("lasts") {
        root.error_at(
            "lasts",
            "is missing; write how long requests come, such as `lasts = \"24h\"`",
        );
    }
    let lasts = root.positive_duration("lasts", Duration::from_secs(86_400));
    let seeds = read_seeds(root);
    let objectives = root.strings("objectives").unwrap_or_default();
    let places = Places {
        objectives: root.location("objectives"),
        fleet: root.location("fleet"),
        traffic: root.location("traffic"),
    };
    let fleet = fleet::read(&root.section("fleet"), folder);
    let engines = engines::read(&root.section("engines"));
    let policies = read_policies(root, folder);
    let streams = traffic::read(root, folder, lasts);
    let failures = faults::read(root);
    // Read elsewhere.
    let _known = root.has("variants");
    root.report_unknown();
    Some(Scenario {
        title: title
            .unwrap_or_else(|| file.file_stem().unwrap_or_default().to_string_lossy().into_owned()),
        description: String::new(),
        begins_ms: begins,
        lasts,
        seeds,
        objectives,
        fleet: fleet?,
        engines,
        policies,
        variants: Vec::new(),
        streams,
        failures,
        file: file.to_owned(),
        places,
    })
}

fn read_begins(root: &Section<'_>) -> u64 {
    let Some(value) = root.value("begins") else { return BEGINS };
    let micros = match value.get_ref() {
        DeValue::Datetime(datetime) => quantity::moment_of(datetime),
        other => other.as_str().and_then(moment),
    };
    let ms = micros.and_then(|micros| u64::try_from(micros / 1000).ok());
    ms.unwrap_or_else(|| {
        root.error_at("begins", "is no date and time; write for example \"2026-01-05T00:00:00Z\"");
        BEGINS
    })
}

/// A number is how many there are, from 1.
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
                "must be a number of runs, such as 3, or a list of whole numbers",
            );
            vec![1]
        }
    }
}

/// `[[policies]]`; `None` where the key is missing.
fn read_policies(section: &Section<'_>, folder: &Path) -> Option<Vec<PolicySpec>> {
    let dir = |policy: &Section<'_>, _: &str| {
        Some(folder.join(policy.required_string("dir", "\"../policies/cortex\"")?))
    };
    section.has("policies").then(|| chain(&section.sections("policies"), dir))
}

#[cfg(test)]
mod tests;
