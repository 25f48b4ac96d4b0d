//! The default folders of a user: for state, and for compiled policies.

use std::path::{Path, PathBuf};

use pointsman_domain::fnv1a_chain;
use pointsman_settings::Section;

/// Returns the default folder of compiled policies, below the user's cache folder.
pub fn default_cache() -> Option<PathBuf> {
    let cache = env_folder("XDG_CACHE_HOME")
        .or_else(|| env_folder("HOME").map(|home| home.join(".cache")))?;
    Some(cache.join("pointsman").join("policies"))
}

/// Returns the state directory; `None` if it is turned off or there is no default.
pub(super) fn state_dir(section: &Section<'_>, file: &Path, folder: &Path) -> Option<PathBuf> {
    match section.string("dir") {
        Some("") => None,
        Some(dir) => Some(folder.join(dir)),
        None => default_state(file, env_folder),
    }
}

/// Returns the default state directory: one folder per configuration file, below the user's state
/// folder.
pub(super) fn default_state(
    file: &Path,
    env_folder: impl Fn(&str) -> Option<PathBuf>,
) -> Option<PathBuf> {
    let states = env_folder("XDG_STATE_HOME")
        .or_else(|| env_folder("HOME").map(|home| home.join(".local/state")))?;
    let whole = std::fs::canonicalize(file).unwrap_or_else(|_| file.to_owned());
    let path = whole.as_os_str().as_encoded_bytes();
    // Files with the same name in different folders are different configurations.
    let hash = fnv1a_chain([path], path.len(), 1).first().copied().unwrap_or_default();
    let name = whole.file_stem().unwrap_or_default().to_string_lossy();
    Some(states.join("pointsman").join(format!("{name}-{hash:016x}")))
}

/// Returns the folder in an environment variable, if it is an absolute path.
fn env_folder(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute())
}
