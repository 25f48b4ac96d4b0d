//! Lanes that are not in the configuration file: the trait of their sources, and the file of
//! endpoints, which is one of them.

use std::collections::HashSet;
use std::fmt;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use pointsman_fleet::LaneSpec;
use pointsman_settings::{Code, FileError, Problem, Secrets, Section, read, read_expanded};

use super::lanes::{self, Lanes};
use super::pick::{Pick, no_address};

/// A source of lanes for `pointsman pick` that are not in the configuration file.
///
/// A source wakes the reload when its lanes have changed, by means that it gets when it is created.
/// The reload then compares versions, and reads the lanes as a part of the configuration.
pub trait Discovery: fmt::Debug + Send + Sync {
    /// Returns the key of `[pick]` by which the source is used. Errors in its lanes are reported
    /// there.
    fn key(&self) -> &'static str;

    /// Returns the lanes that a configuration has from this source now; none if it does not use the
    /// source.
    ///
    /// # Errors
    /// Why they cannot be read. The configuration in force stays as it is then.
    fn lanes(&self, pick: &Pick) -> Result<Vec<LaneText>, String>;

    /// Returns a number that differs from the one before whenever the lanes may differ.
    fn version(&self, pick: &Pick) -> u64;

    /// Takes notice that a configuration is in force, so that its lanes are looked for.
    fn follow(&self, pick: Option<&Pick>);
}

/// Lanes as text of a configuration that has nothing but `[[lanes]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaneText {
    /// Where the text comes from, for errors: the path of a file, or a name.
    pub origin: PathBuf,
    /// The text.
    pub text: String,
    /// `${NAME}` in strings stands for an environment variable. False for a text of others.
    pub has_references: bool,
}

/// The file of `pick.endpoints`. The watcher of the configuration wakes the reload for it.
#[derive(Debug, Clone, Copy)]
pub struct EndpointsFile;

impl Discovery for EndpointsFile {
    fn key(&self) -> &'static str {
        "endpoints"
    }

    fn lanes(&self, pick: &Pick) -> Result<Vec<LaneText>, String> {
        let Some(file) = &pick.endpoints else { return Ok(Vec::new()) };
        let text = FileError::source(file).map_err(|error| error.to_string())?;
        Ok(vec![LaneText { origin: file.clone(), text, has_references: true }])
    }

    fn version(&self, pick: &Pick) -> u64 {
        pick.endpoints.as_deref().map_or(0, version_of)
    }

    fn follow(&self, _pick: Option<&Pick>) {}
}

fn version_of(file: &Path) -> u64 {
    let mut hasher = DefaultHasher::new();
    let found = std::fs::metadata(file).ok();
    found
        .map(|found| (found.dev(), found.ino(), found.size(), found.ctime(), found.ctime_nsec()))
        .hash(&mut hasher);
    hasher.finish()
}

/// Adds the lanes of the sources, and checks that a proxy can reach all lanes. Returns `None` if
/// the lanes cannot be used.
pub(super) fn complete(
    root: &Section<'_>,
    pick: Option<&Pick>,
    lanes: Option<Lanes>,
    place: lanes::Place<'_>,
    sources: &[&dyn Discovery],
) -> Option<Lanes> {
    let Some(pick) = pick else { return lanes };
    let section = root.section("pick");
    let mut lanes = lanes?;
    for (lane, at) in lanes.specs.iter().zip(root.sections("lanes")) {
        not_pickable(lane).into_iter().for_each(|problem| at.section("engine").error(problem));
    }
    let mut names: HashSet<String> = lanes.specs.iter().map(|lane| lane.name.clone()).collect();
    for source in sources {
        let report = |problem: Problem| section.error_at(source.key(), problem);
        let texts = source.lanes(pick).map_err(|error| report(Code::InvalidValue.with(error)));
        for text in texts.ok()? {
            let found = read_lanes(&text, place);
            let found = found.map_err(|error| report(Code::InvalidValue.with(error))).ok()?;
            for lane in &found.specs {
                if !names.insert(lane.name.clone()) {
                    let origin = text.origin.display();
                    let message = format!("{origin}: lane \"{}\" already exists", lane.name);
                    report(Code::Duplicate.with(message));
                }
                not_pickable(lane).into_iter().for_each(report);
            }
            lanes.specs.extend(found.specs);
            lanes.needs.extend(found.needs);
        }
    }
    Some(lanes)
}

/// Returns why a proxy cannot reach a lane; `None` if it can.
fn not_pickable(lane: &LaneSpec) -> Option<Problem> {
    let message = match lane.engine.external_address() {
        None => "is started by the host, and a proxy cannot reach it; only lanes with the drivers \
                 `external` and `pointsman` can be picked"
            .to_owned(),
        Some(address) if address.authority.parse::<SocketAddr>().is_err() => {
            no_address(&address.authority)
        }
        Some(_) => return None,
    };
    Some(Code::NotPickable.with(format!("lane \"{}\" {message}", lane.name)))
}

/// Reads the lanes of a source.
///
/// # Errors
/// All errors, each with the source and the line.
fn read_lanes(found: &LaneText, place: lanes::Place<'_>) -> Result<Lanes, String> {
    let read_root = |root: &Section<'_>| {
        let lanes = lanes::read(root, &[], place);
        root.report_unknown();
        lanes
    };
    let lanes = match found.has_references {
        true => read_expanded(&found.text, &[], Secrets::Read, read_root),
        false => read(&found.text, &[], read_root),
    };
    lanes.map_err(|errors| FileError::new(&found.origin, errors).to_string())
}
