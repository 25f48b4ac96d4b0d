//! The project's chores, and what of them its tests need to know.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use sha2::{Digest, Sha256};

/// SHA-256 over everything that a Rust guest is built from: its own sources, the SDK, and the contract. A policy whose
/// manifest has another one is stale.
///
/// # Errors
/// When a source cannot be read.
pub fn guest_inputs_sha256(root: &Path, source: &str, api: &str) -> Result<String> {
    let mut files = Vec::new();
    for dir in [source, "plugins/sdk/rust"] {
        files.push(PathBuf::from(dir).join("Cargo.toml"));
        collect(root, &Path::new(dir).join("src"), &mut files)?;
    }
    collect(root, &Path::new("wit").join(api), &mut files)?;
    files.retain(|file| file.extension().is_some_and(|kind| kind != "sha256"));
    files_sha256(root, files)
}

/// SHA-256 over all files in these folders, and over `more`.
///
/// # Errors
/// When one cannot be read.
pub fn folders_sha256(root: &Path, folders: &[&str], more: &str) -> Result<String> {
    let mut files = Vec::new();
    for folder in folders {
        collect(root, Path::new(folder), &mut files)?;
    }
    // What tools leave there.
    files.retain(|file| !file.components().any(|part| part.as_os_str() == "__pycache__"));
    Ok(sha256(format!("{} {more}", files_sha256(root, files)?).as_bytes()))
}

fn files_sha256(root: &Path, mut files: Vec<PathBuf>) -> Result<String> {
    files.sort();
    let mut hasher = Sha256::new();
    for file in files {
        let content = fs::read(root.join(&file))
            .with_context(|| format!("{} cannot be read", file.display()))?;
        let name = file.to_string_lossy();
        // Lengths keep one file's end from passing for another's beginning.
        for part in [name.as_bytes(), &content] {
            hasher.update((part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
    }
    Ok(hex(&hasher.finalize()))
}

/// SHA-256 of a text or file, in hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn collect(root: &Path, dir: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let entries = fs::read_dir(root.join(dir))
        .with_context(|| format!("{} cannot be read", dir.display()))?;
    for entry in entries {
        let entry = entry?;
        let path = dir.join(entry.file_name());
        if entry.file_type()?.is_dir() { collect(root, &path, files)? } else { files.push(path) }
    }
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ok = write!(text, "{byte:02x}");
        text
    })
}
