//! `pointsman policy dev`: builds and tests a policy each time one of its files changes, and shows
//! what that changes about recorded decisions.

mod changes;
mod checks;
mod compare;
mod install;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use pointsman_build::Tools;
use pointsman_config::Config;
use pointsman_policy::ChainSpec;

use self::changes::Changes;
use super::author::load;
use super::progress::with_progress;
use super::report::time;
use super::test::run_scenario;
use super::test_report::{self, Paint};
use super::test_results::TestResults;
use crate::cli::policy::Dev;
use crate::output::{print, print_error, with_causes};

/// What is done after each change.
struct Session<'a> {
    options: &'a Dev,
    /// The chain of the host's configuration.
    chain: Option<ChainSpec>,
    /// Files or folders of decision records.
    records: Vec<PathBuf>,
    /// Whether this process has built the component, or found it up to date.
    has_built: bool,
}

/// Runs until it is interrupted, or once. Returns failure if the last run has failed.
pub(super) fn dev(options: &Dev) -> Result<ExitCode> {
    // What is missing later, as while files are moved, is reported and waited for.
    if !options.dir.join("policy.toml").is_file() {
        let dir = options.dir.display();
        bail!(
            "{dir}: no policy.toml; name the folder of a policy, or create one with `policy new`"
        );
    }
    let mut session = Session::new(options)?;
    let mut changes = Changes::new(&options.dir);
    loop {
        let start = Instant::now();
        // Changes during the run start the next one.
        changes.take();
        let has_passed = session.run().unwrap_or_else(|error| {
            print_error(format!("error: {}", with_causes(&error)));
            false
        });
        if options.once {
            return Ok(if has_passed { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        let dir = options.dir.display();
        print_error(format!("done in {}; waiting for changes in {dir}\n", time(start.elapsed())));
        changes.wait();
    }
}

impl<'a> Session<'a> {
    fn new(options: &'a Dev) -> Result<Self> {
        let config = options.config.as_deref().map(|file| Config::load_without_secrets(file, &[]));
        let config = config.transpose()?;
        let mut records = options.records.clone();
        let recorded = config.as_ref().and_then(|config| config.records.as_ref());
        if let Some(settings) =
            recorded.filter(|settings| records.is_empty() && settings.dir.exists())
        {
            records.push(settings.dir.clone());
        }
        let chain = config.map(|config| config.policies.chain);
        Ok(Self { options, chain, records, has_built: false })
    }

    /// Runs all steps. Returns false if a case, a check or an objective fails.
    fn run(&mut self) -> Result<bool> {
        let dir = &self.options.dir;
        self.build()?;
        let mut has_passed = checks::run(dir)?;
        let bench = load(dir, pointsman_config::default_cache())?;
        let results = TestResults::run(&bench, dir, |_| true)?;
        let paint = Paint::for_stdout();
        print(&test_report::cases(&results, false, paint))?;
        has_passed &= results.passed();
        if let Some(file) = &self.options.scenario {
            let scenario = with_progress("simulating", || run_scenario(file))?;
            print(&test_report::scenario(&scenario, paint))?;
            has_passed &= scenario.report.met();
        }
        if !self.records.is_empty() {
            let compare =
                || compare::compare(dir, &self.records, self.options.last, self.chain.as_ref());
            print(&with_progress("replaying", compare)?)?;
        }
        match &self.chain {
            Some(chain) if self.options.install && has_passed => {
                print(&install::install(&bench, chain)?)?;
            }
            _ => {}
        }
        Ok(has_passed)
    }

    /// Builds the component if its source has changed, or if this is the first run.
    fn build(&mut self) -> Result<()> {
        let dir = &self.options.dir;
        let is_current = || {
            self.has_built
                && dir.join("policy.wasm").exists()
                && pointsman_build::changed_since_build(dir).is_empty()
        };
        if is_current() || !has_source(dir)? {
            return Ok(());
        }
        // Another build of the same source would be another version for a host.
        if !self.has_built && pointsman_build::current_component(dir)?.is_some() {
            self.has_built = true;
            return Ok(());
        }
        // Until it succeeds, each change is a reason to build.
        self.has_built = false;
        let tools = Tools::from_environment();
        let built = with_progress("building", || pointsman_build::build(dir, &tools, &mut |_| ()))?;
        self.has_built = true;
        print(&format!("{}: built in {}\n", built.component.display(), time(built.took)))
    }
}

/// Returns whether the manifest says how to build the component.
fn has_source(dir: &Path) -> Result<bool> {
    let file = dir.join("policy.toml");
    let text = pointsman_files::read_regular_text(&file, pointsman_policy::MAX_MANIFEST_BYTES)?;
    let manifest: toml::Table = text.parse().with_context(|| file.display().to_string())?;
    let build = manifest.get("build");
    Ok(["language", "command"]
        .iter()
        .any(|key| build.is_some_and(|build| build.get(key).is_some())))
}
