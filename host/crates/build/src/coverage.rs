//! Builds an instrumented copy of a policy in JavaScript or TypeScript, which reports the branches
//! and functions that it takes.
//!
//! Istanbul instruments the source of the policy, with the types of TypeScript, so that positions
//! are those of the source. The copy is then built like any policy, in a temporary folder.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use pointsman_files::{read_regular, read_regular_text};
use serde::Deserialize;
use tempfile::TempDir;
use toml::{Table, Value};

use crate::command::run;
use crate::error::BuildError;
use crate::inputs;
use crate::language::Language;
use crate::manifest::{self, BuildPlan, MAX_MANIFEST_BYTES};
use crate::tools::Tools;

/// The program that instruments, and the boundary that reports.
const INSTRUMENT: &str = include_str!("../coverage/instrument.mjs");
const GUEST: &str = include_str!("../coverage/guest.js");
/// The npm package that instruments.
const PACKAGE: &str = "istanbul-lib-instrument";
/// Folders that are not copied: they are large, or results of tools.
const OTHER_FOLDERS: [&str; 4] = ["node_modules", "target", "records", inputs::SCRATCH];
/// The deadline of calls of the copy, because instrumented code is slower.
const DEADLINE: &str = "100ms";
/// Maximum size of a file of a policy in bytes.
const MAX_FILE_BYTES: u64 = 64 << 20;
/// Maximum size of the list of regions in bytes.
const MAX_REGIONS_BYTES: u64 = 16 << 20;

/// A part of the source that can be taken: a function, or a path of a branch.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Region {
    /// The file, relative to the policy's folder.
    pub file: String,
    /// The name by which the component reports the region, unique in the file.
    pub mark: String,
    /// The line in the file, from 1.
    pub line: u32,
    /// The column, from 1.
    pub column: u32,
    /// The kind of the region, such as `else` or `function advise`.
    pub what: String,
}

/// An instrumented copy of a policy. The folder is removed when it is dropped.
#[derive(Debug)]
pub struct Instrumented {
    folder: PathBuf,
    regions: Vec<Region>,
    _dir: TempDir,
}

impl Instrumented {
    /// Returns the folder of the copy, which has the component, the golden cases and the scenarios.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Returns all parts of the source that can be taken.
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }
}

/// Builds an instrumented copy of the policy in `folder`, whose own component stays as it is.
///
/// # Errors
/// Returns an error if the policy is in another language, or a tool is missing or fails.
pub fn build_instrumented(
    folder: &Path,
    tools: &Tools,
    log: &mut dyn FnMut(&str),
) -> Result<Instrumented, BuildError> {
    let plan = match BuildPlan::load(folder)? {
        BuildPlan::Language(plan) if plan.language == Language::JavaScript => plan,
        BuildPlan::Language(_) | BuildPlan::Command(_) => {
            return Err(BuildError::Usage(
                "coverage is measured for policies in JavaScript and TypeScript; for Rust use \
                 `cargo llvm-cov`, for Python `coverage` and for C `gcov`, with their native tests"
                    .to_owned(),
            ));
        }
    };
    let modules = plan.folder.join("node_modules");
    if !modules.join(PACKAGE).exists() {
        return Err(BuildError::ToolNotFound {
            tool: PACKAGE,
            language: "JavaScript (coverage)",
            remedy: "install it with `npm install istanbul-lib-instrument` in the policy's folder",
        });
    }
    let dir = tempfile::Builder::new().prefix("pointsman-coverage-").tempdir();
    let dir = dir.map_err(BuildError::file(&std::env::temp_dir()))?;
    // The name of the folder is the name of the policy, as a host expects it.
    let name = plan.folder.file_name().unwrap_or_default();
    let copy = dir.path().join(name);
    copy_folder(&plan.folder, &copy)?;
    let link = copy.join("node_modules");
    std::os::unix::fs::symlink(&modules, &link).map_err(BuildError::file(&link))?;
    extend_limits(&copy)?;
    replace_guest(&copy)?;
    let regions = instrument(&copy, &plan.source, log)?;
    crate::build(&copy, tools, log)?;
    Ok(Instrumented { folder: copy, regions, _dir: dir })
}

/// Copies the files of a policy, without its component.
fn copy_folder(from: &Path, to: &Path) -> Result<(), BuildError> {
    fs::create_dir(to).map_err(BuildError::file(to))?;
    for entry in fs::read_dir(from).map_err(BuildError::file(from))? {
        let entry = entry.map_err(BuildError::file(from))?;
        let (name, path) = (entry.file_name(), entry.path());
        let kind = entry.file_type().map_err(BuildError::file(&path))?;
        if kind.is_dir() {
            let is_other = OTHER_FOLDERS.iter().any(|other| name == *other);
            if !is_other && !name.to_string_lossy().starts_with('.') {
                copy_folder(&path, &to.join(&name))?;
            }
        } else if kind.is_file() && path.extension().is_none_or(|extension| extension != "wasm") {
            let to = to.join(&name);
            let bytes = read_regular(&path, MAX_FILE_BYTES)?;
            fs::write(&to, bytes).map_err(BuildError::file(&to))?;
        }
    }
    Ok(())
}

/// Gives calls more time, and removes the digest of the plain component.
fn extend_limits(copy: &Path) -> Result<(), BuildError> {
    let file = copy.join(manifest::FILE);
    let text = read_regular_text(&file, MAX_MANIFEST_BYTES)?;
    let fail = |problem: String| BuildError::Manifest { file: file.clone(), problem };
    let mut table: Table = toml::from_str(&text).map_err(|error| fail(error.to_string()))?;
    let limits = table.entry("limits").or_insert_with(|| Value::Table(Table::new()));
    if let Some(limits) = limits.as_table_mut() {
        limits.insert("deadline".to_owned(), DEADLINE.into());
    }
    if let Some(build) = table.get_mut("build").and_then(Value::as_table_mut) {
        build.remove("component-sha256");
    }
    fs::write(&file, table.to_string()).map_err(BuildError::file(&file))
}

/// Replaces the boundary by one that reports what was taken, in the log of the contract's version.
fn replace_guest(copy: &Path) -> Result<(), BuildError> {
    let (guest, plain) = (copy.join("sdk/guest.js"), copy.join("sdk/plain-guest.js"));
    let text = read_regular_text(&guest, MAX_MANIFEST_BYTES)?;
    let import = text.lines().find(|line| line.starts_with("import * as log from"));
    let import = import.ok_or_else(|| {
        BuildError::Usage(
            "the SDK in the policy's folder is of another version; run `pointsman policy build \
             --update-sdk`"
                .to_owned(),
        )
    })?;
    fs::rename(&guest, &plain).map_err(BuildError::file(&plain))?;
    fs::write(&guest, format!("{import}\n{GUEST}")).map_err(BuildError::file(&guest))
}

/// Instruments the policy's own source files.
fn instrument(
    copy: &Path,
    source: &Path,
    log: &mut dyn FnMut(&str),
) -> Result<Vec<Region>, BuildError> {
    let (program, regions) = (copy.join("instrument.mjs"), copy.join("regions.json"));
    fs::write(&program, INSTRUMENT).map_err(BuildError::file(&program))?;
    let mut command = Command::new("node");
    command.current_dir(copy).args([&program, &regions]).args(own_sources(copy, source));
    run(&mut command, log)?;
    let text = read_regular_text(&regions, MAX_REGIONS_BYTES)?;
    // Not an input of the component.
    for file in [&program, &regions] {
        fs::remove_file(file).map_err(BuildError::file(file))?;
    }
    serde_json::from_str(&text)
        .map_err(|error| BuildError::Component(format!("invalid list of regions: {error}")))
}

/// Returns the files beside the source and below its folder. If the source is not in a folder of
/// its own, only the source.
fn own_sources(copy: &Path, source: &Path) -> Vec<PathBuf> {
    let source: PathBuf = source.components().collect();
    let source = source.strip_prefix(".").unwrap_or(&source).to_owned();
    let folder = source.parent().filter(|folder| !folder.as_os_str().is_empty());
    let Some(folder) = folder else { return vec![source] };
    let is_source = |path: &PathBuf| {
        let is_types = path.to_string_lossy().ends_with(".d.ts");
        let extension = path.extension().and_then(|extension| extension.to_str());
        !is_types && matches!(extension, Some("js" | "mjs" | "ts" | "mts"))
    };
    let files = inputs::files(copy).into_iter();
    files.filter(|path| path.starts_with(folder) && is_source(path)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sources_of_the_policy_are_instrumented() {
        let dir = tempfile::tempdir().unwrap();
        for file in ["src/a.ts", "src/b/c.mjs", "src/d.d.ts", "src/e.json", "sdk/f.js", "g.js"] {
            let file = dir.path().join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, "").unwrap();
        }
        let sources = |source: &str| own_sources(dir.path(), Path::new(source));
        assert_eq!(sources("./src/a.ts"), ["src/a.ts", "src/b/c.mjs"].map(PathBuf::from));
        assert_eq!(sources("g.js"), [PathBuf::from("g.js")]);
    }

    #[test]
    fn copy_has_a_longer_deadline_and_no_component() {
        let dir = tempfile::tempdir().unwrap();
        let from = crate::new_policy(dir.path(), "mine", Language::JavaScript).unwrap();
        let manifest = from.join(manifest::FILE);
        let text = fs::read_to_string(&manifest).unwrap();
        let text = text.replace("[build]", "[build]\ncomponent-sha256 = \"00\"");
        fs::write(&manifest, text).unwrap();
        fs::write(from.join("policy.wasm"), "").unwrap();
        let copy = dir.path().join("copy");
        copy_folder(&from, &copy).unwrap();
        extend_limits(&copy).unwrap();
        let text = fs::read_to_string(copy.join(manifest::FILE)).unwrap();
        let table: Table = toml::from_str(&text).unwrap();
        assert_eq!(table["limits"]["deadline"].as_str(), Some(DEADLINE));
        assert!(table["build"].get("component-sha256").is_none(), "{text}");
        assert!(!copy.join("policy.wasm").exists() && copy.join("cases.jsonl").exists());
    }

    #[test]
    fn other_languages_are_rejected() {
        let dir = tempfile::tempdir().unwrap();
        let folder = crate::new_policy(dir.path(), "mine", Language::C).unwrap();
        let result = build_instrumented(&folder, &Tools::from_environment(), &mut |_| {});
        assert!(matches!(result, Err(BuildError::Usage(_))), "{result:?}");
    }
}
