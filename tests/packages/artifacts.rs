//! The artifacts of a release, packed from the binary of this build.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use pointsman_tests::host::{program, root};

use crate::FAKE_ENGINE;

/// Returns the folder of the artifacts, which are packed once.
pub(crate) fn artifacts() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("release");
        if folder.exists() {
            fs::remove_dir_all(&folder).unwrap();
        }
        pack(&folder);
        folder
    })
}

/// Packs the artifacts into a folder, with `cargo xtask release`.
pub(crate) fn pack(folder: &Path) {
    let mut xtask = Command::new(Path::new(FAKE_ENGINE).with_file_name("pointsman-xtask"));
    xtask.arg("release").arg("--out").arg(folder).arg("--binary").arg(program(FAKE_ENGINE));
    output(&mut xtask);
}

/// Returns the artifact whose name ends like this.
pub(crate) fn artifact(end: &str) -> PathBuf {
    let names = names(artifacts());
    let name = names.iter().find(|name| name.ends_with(end));
    artifacts().join(name.unwrap_or_else(|| panic!("{end} is missing in {names:?}")))
}

/// Returns the names of the files in a folder, sorted.
pub(crate) fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Runs a program, and returns what it prints.
///
/// # Panics
/// If it fails.
pub(crate) fn output(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{command:?}: {}\n{text}\n{errors}", output.status);
    text
}

/// Returns the commands in the blocks marked `sh` of a page of `host/docs/install`.
pub(crate) fn commands(page: impl AsRef<OsStr>) -> Vec<String> {
    let page = root().join("host/docs/install").join(Path::new(page.as_ref()));
    let text = fs::read_to_string(page).unwrap();
    let blocks = text.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    let commands: Vec<String> =
        blocks.flat_map(|block| block.lines().map(str::to_owned).collect::<Vec<_>>()).collect();
    assert!(!commands.is_empty());
    commands
}
