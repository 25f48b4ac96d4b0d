//! Puts the contract, the SDKs and the templates into the library, so that an installed program has them with it.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

/// Folders, from the project's root, and the names under which they are found.
const FOLDERS: [(&str, &str); 6] = [
    ("WIT", "wit/0.1"),
    ("SDK_RUST", "plugins/sdk/rust"),
    ("SDK_JAVASCRIPT", "plugins/sdk/javascript"),
    ("SDK_PYTHON", "plugins/sdk/python"),
    ("SDK_C", "plugins/sdk/c"),
    ("TEMPLATES", "host/crates/build/templates"),
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("../../..").canonicalize()?;
    let mut code = String::new();
    for (name, folder) in FOLDERS {
        let folder = root.join(folder);
        println!("cargo::rerun-if-changed={}", folder.display());
        let mut files = Vec::new();
        collect(&folder, &mut files)?;
        files.sort();
        writeln!(code, "pub(crate) const {name}: &[(&str, &str)] = &[")?;
        for file in files {
            let inside = file.strip_prefix(&folder)?.to_string_lossy().replace('\\', "/");
            writeln!(code, "    ({inside:?}, include_str!({:?})),", file.display())?;
        }
        writeln!(code, "];")?;
    }
    let workspace = root.join("Cargo.toml");
    println!("cargo::rerun-if-changed={}", workspace.display());
    writeln!(code, "pub(crate) const WORKSPACE: &str = include_str!({:?});", workspace.display())?;
    fs::write(PathBuf::from(env::var("OUT_DIR")?).join("files.rs"), code)?;
    Ok(())
}

/// All files below `folder` but what tools leave there.
fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if ["__pycache__", "node_modules", "target"].contains(&name.as_str()) {
            continue;
        }
        if path.is_dir() { collect(&path, files)? } else { files.push(path) }
    }
    Ok(())
}
