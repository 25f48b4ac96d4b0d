//! `pointsman import`: writes a configuration from that of another router or engine.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use pointsman_files::{read_regular_text, write_atomic};
use pointsman_import::{ErrorCode, ImportError, Imported, MAX_BYTES};

use crate::cli::import::Import;
use crate::output::{print, print_error, with_causes};

/// Exit code for a source that cannot be imported, as for invalid arguments.
const WRONG_INPUT: u8 = 2;
/// Mode of a file that is written: a configuration has no secrets.
const MODE: u32 = 0o644;
/// Names of the files that are looked for in a folder.
const NAMES: [&str; 12] = [
    "config.yaml",
    "config.yml",
    "llama-swap.yaml",
    "litellm_config.yaml",
    "litellm-config.yaml",
    "models.ini",
    "compose.yaml",
    "compose.yml",
    "docker-compose.yaml",
    "docker-compose.yml",
    "vllm.env",
    ".env",
];

/// Imports a source, writes the configuration, and prints the report to standard error.
pub(crate) fn import(options: &Import) -> Result<ExitCode> {
    let imported = match read(options) {
        Ok(imported) => imported,
        Err(error) if error.is::<ImportError>() => {
            print_error(with_causes(&error));
            return Ok(ExitCode::from(WRONG_INPUT));
        }
        Err(error) => return Err(error),
    };
    match &options.out {
        Some(file) => write(file, &imported.toml, options.force)?,
        None => print(&imported.toml)?,
    }
    print_error(if options.json { json(&imported)? } else { text(&imported) });
    Ok(ExitCode::SUCCESS)
}

fn read(options: &Import) -> Result<Imported> {
    let kind = options.from.map(|from| from.kind());
    let limit = MAX_BYTES as u64;
    let (file, text) = if options.source.as_os_str() == "-" {
        let mut text = String::new();
        let mut input = std::io::stdin().take(limit + 1);
        input.read_to_string(&mut text).context("failed to read standard input")?;
        ("-".to_owned(), text)
    } else {
        let file = file_of(&options.source)?;
        let name = file.display().to_string();
        // More than the import accepts, so that it reports what is too large.
        let text = read_regular_text(&file, 8 * limit)?;
        (name, text)
    };
    Ok(pointsman_import::import(&file, &text, kind)?)
}

/// Returns the file of a source, which may be a folder with one file that can be imported.
fn file_of(source: &Path) -> Result<PathBuf, ImportError> {
    if !source.is_dir() {
        return Ok(source.to_owned());
    }
    let files: Vec<_> =
        NAMES.iter().map(|name| source.join(name)).filter(|file| file.is_file()).collect();
    let folder = source.display().to_string();
    match files.as_slice() {
        [file] => Ok(file.clone()),
        [] => {
            let message = format!("no file to import; expected one of {}", NAMES.join(", "));
            Err(ErrorCode::NothingFound.error(folder, message))
        }
        several => {
            let names: Vec<_> = several.iter().map(|file| file.display().to_string()).collect();
            let message = format!("has several files; name one of {}", names.join(", "));
            Err(ErrorCode::Ambiguous.error(folder, message))
        }
    }
}

/// Writes the configuration. An existing file is only overwritten with `--force`.
fn write(file: &Path, toml: &str, force: bool) -> Result<()> {
    if !force {
        let exists = file.symlink_metadata().is_ok();
        ensure!(!exists, "{} exists; add --force to overwrite it", file.display());
    }
    write_atomic(file, toml.as_bytes(), MODE)
        .with_context(|| format!("failed to write {}", file.display()))
}

fn text(imported: &Imported) -> String {
    let lanes = imported.lanes;
    let kind = imported.kind.name();
    let mut lines: Vec<_> = imported.report.items.iter().map(ToString::to_string).collect();
    let count = lines.len();
    lines.push(format!(
        "imported {lanes} {} from {kind}; {count} {} without an equal counterpart",
        if lanes == 1 { "lane" } else { "lanes" },
        if count == 1 { "setting" } else { "settings" },
    ));
    lines.join("\n")
}

fn json(imported: &Imported) -> Result<String> {
    let report = serde_json::json!({
        "kind": imported.kind.name(),
        "lanes": imported.lanes,
        "items": imported.report.items,
    });
    Ok(serde_json::to_string_pretty(&report)?)
}
