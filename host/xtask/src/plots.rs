//! Regenerates the plots of the documentation from the scenarios that they are named after.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use pointsman_xtask::command::{cargo, run};

/// Folder of the plots, `SCENARIO.PLOT.svg`. The existing files determine which plots are
/// generated.
const FOLDER: &str = "host/docs/simulation";

/// Regenerates all plots.
pub(crate) fn plots(root: &Path) -> Result<()> {
    let folder = root.join(FOLDER);
    let mut names: Vec<(String, String)> = Vec::new();
    for entry in
        fs::read_dir(&folder).with_context(|| format!("failed to read {}", folder.display()))?
    {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if let Some((scenario, plot)) =
            name.strip_suffix(".svg").and_then(|name| name.split_once('.'))
        {
            names.push((scenario.to_owned(), plot.to_owned()));
        }
    }
    names.sort_unstable();
    let mut scenarios: Vec<&str> = names.iter().map(|(scenario, _)| scenario.as_str()).collect();
    scenarios.dedup();
    for scenario in scenarios {
        let output = tempfile::tempdir().context("failed to create a temporary folder")?;
        let file = root.join("examples/scenarios").join(scenario).with_extension("toml");
        let mut simulate: Command = cargo(root)?;
        simulate.args(["run", "--quiet", "--package", "pointsman", "--", "simulate"]).arg(file);
        simulate.arg("--quiet").arg("--svg").arg(output.path());
        run(&mut simulate)?;
        for (_, plot) in names.iter().filter(|(name, _)| name == scenario) {
            let from = output.path().join(plot).with_extension("svg");
            if !from.exists() {
                bail!(
                    "scenario {scenario} has no plot {plot}; remove {scenario}.{plot}.svg from \
                     {FOLDER}"
                );
            }
            fs::copy(&from, folder.join(format!("{scenario}.{plot}.svg")))?;
            println!("wrote {FOLDER}/{scenario}.{plot}.svg");
        }
    }
    Ok(())
}
