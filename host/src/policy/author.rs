//! Commands for policy authors. None of them needs a running host.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use pointsman_build::{Template, Tools};
use pointsman_files::read_regular_text;
use pointsman_policy::{
    Allocator, BenchPlan, CaseFleet, Compiler, LoadError, Runtime, RuntimeSettings, Workbench,
    check_manifest, signature,
};
use serde::de::DeserializeOwned;

use super::progress::with_progress;
use super::report;
use crate::cli::policy::Bench;
use crate::facts;
use crate::output::{print, print_error};

/// Maximum size of the file of a private key in bytes.
const MAX_KEY_BYTES: u64 = 64 << 10;
/// Maximum size of a request or a description of lanes in bytes; that of a request to a host.
const MAX_JSON_BYTES: u64 = 32 << 20;

/// A policy that a host could not load. The error is not a `source`, because the message includes
/// it.
#[derive(Debug, thiserror::Error)]
pub(crate) struct PolicyLoadError {
    dir: PathBuf,
    /// The path to show instead of a temporary folder.
    shown: PathBuf,
    error: LoadError,
}

impl fmt::Display for PolicyLoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (dir, error) = (self.dir.display().to_string(), self.error.to_string());
        // Most errors begin with a file in the folder.
        let prefix = if error.starts_with(&dir) { String::new() } else { format!("{dir}: ") };
        let shown = self.shown.display();
        let text = format!("{prefix}{error}").replace(&dir, &shown.to_string());
        write!(f, "{text}")?;
        if self.is_unbuilt() {
            write!(f, "; build it with `{} policy build {shown}`", invocation())?;
        }
        write!(f, " [{}]", self.error.code())
    }
}

impl PolicyLoadError {
    /// Returns whether the folder has a policy, but not its component.
    fn is_unbuilt(&self) -> bool {
        self.error.code() == "file_missing"
            && self.dir.join("policy.toml").exists()
            && !self.dir.join("policy.wasm").exists()
    }
}

/// Creates the folder of a new policy.
pub(super) fn new(parent: &Path, name: &str, template: Template) -> Result<()> {
    let folder = pointsman_build::new_policy(parent, name, template)?;
    let folder = folder.display();
    let program = invocation();
    print(&format!(
        "{folder}: created a policy in {template}; see its README.md. Next steps:\n\n  \
         {program} policy build {folder}\n  {program} policy test {folder}\n"
    ))
}

/// Returns how this program can be called: by its name if that is on the PATH, else by its path.
fn invocation() -> String {
    let name = env!("CARGO_PKG_NAME");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let is_on_path = std::env::split_paths(&path).any(|folder| folder.join(name).is_file());
    match std::env::current_exe() {
        Ok(program) if !is_on_path => program.display().to_string(),
        Ok(_) | Err(_) => name.to_owned(),
    }
}

/// Builds a policy's component, unless that would only change the digest of the component.
pub(super) fn build(dir: &Path, verbose: bool, force: bool) -> Result<()> {
    let mut log = |line: &str| {
        if verbose {
            // Progress; the result goes to standard output.
            print_error(line.to_owned());
        }
    };
    // Before a build that may take a minute.
    check_manifest(dir).map_err(LoadError::from).map_err(cannot_load(dir))?;
    let current = pointsman_build::current_component(dir)?;
    if let Some(component) = current.filter(|_| !force) {
        let component = component.display();
        return print(&format!("{component}: up to date; --force builds it again\n"));
    }
    let tools = Tools::from_environment();
    let built = with_progress("building", || pointsman_build::build(dir, &tools, &mut log))?;
    print(&format!(
        "{}: {}, built in {}\n",
        built.component.display(),
        report::bytes(built.bytes),
        report::time(built.took)
    ))
}

/// Measures call times.
pub(super) fn bench(options: &Bench) -> Result<()> {
    let plan = BenchPlan {
        calls: options.calls,
        lanes: options.lanes.clone(),
        body: options.body.as_deref().map(read_json).transpose()?,
        fleet: options.fleet.as_deref().map(read_json::<CaseFleet>).transpose()?,
        fresh: options.fresh,
    };
    // Without a cache, because the compile time is one of the results.
    let bench = load(&options.dir, None)?;
    let measured = bench.bench(&facts::from_case, &plan).map_err(cannot_load(&options.dir))?;
    let text = if options.json {
        format!("{:#}\n", report::bench_json(&bench, &measured))
    } else {
        report::bench_report(&bench, &options.dir, &measured)
    };
    print(&text)
}

/// Signs a policy.
pub(super) fn sign(dir: &Path, key: &Path) -> Result<()> {
    let text = read_regular_text(key, MAX_KEY_BYTES).context("failed to read the private key")?;
    let file = match signature::sign(dir, &text) {
        Ok(file) => file,
        Err(error @ signature::SignError::Key(_)) => {
            return Err(error).with_context(|| key.display().to_string());
        }
        Err(error) => return Err(error.into()),
    };
    print(&format!(
        "{}: signed the component and the manifest; sign again after changing either of them\n",
        file.display()
    ))
}

/// Loads a policy as a host does. `cache_dir` has compiled components.
pub(super) fn load(dir: &Path, cache_dir: Option<PathBuf>) -> Result<Workbench> {
    let settings = RuntimeSettings {
        cache_dir,
        compiler: Compiler::this_program(),
        // As in a host, where creating an instance has to be fast.
        allocator: Allocator::Auto,
        warm_instances: 1,
        ..RuntimeSettings::default()
    };
    let runtime: Arc<Runtime> = Runtime::new(settings)?;
    let bench = with_progress("compiling", || Workbench::load(&runtime, dir));
    Ok(bench.map_err(cannot_load(dir))?)
}

pub(super) fn cannot_load(dir: &Path) -> impl FnOnce(LoadError) -> PolicyLoadError {
    cannot_load_copy(dir, dir)
}

/// Returns the error of a policy of which a copy is in a temporary folder.
pub(super) fn cannot_load_copy(
    dir: &Path,
    shown: &Path,
) -> impl FnOnce(LoadError) -> PolicyLoadError {
    let (dir, shown) = (dir.to_owned(), shown.to_owned());
    move |error| PolicyLoadError { dir, shown, error }
}

fn read_json<T: DeserializeOwned>(file: &Path) -> Result<T> {
    let text = read_regular_text(file, MAX_JSON_BYTES)?;
    serde_json::from_str(&text).with_context(|| file.display().to_string())
}
