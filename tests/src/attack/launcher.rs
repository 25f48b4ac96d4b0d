//! Programs that start the host in an unusual way.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

/// Writes a shell script that runs `prepare` and becomes the host; returns its path, which can be
/// given to [`Host::start_in`](crate::host::Host::start_in) instead of the program.
///
/// # Panics
/// If the script cannot be written.
pub fn launcher(dir: &Path, program: &Path, prepare: &str) -> PathBuf {
    let path = dir.join("launcher.sh");
    fs::write(&path, format!("#!/bin/sh\n{prepare}\nexec '{}' \"$@\"\n", program.display()))
        .unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}
