//! The default folders of a user: for state, and for compiled policies.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
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

/// Returns the default path of the admin socket in the folder of a service, or of a user, for what
/// ends with the process or the session; `None` if there is no such folder.
pub(super) fn runtime_socket(
    state: Option<&Path>,
    env_folder: impl Fn(&str) -> Option<PathBuf>,
) -> Option<PathBuf> {
    // The first one, if the service has several.
    let first = |list: PathBuf| {
        let list = list.into_os_string().into_encoded_bytes();
        let first = list.split(|byte| *byte == b':').next().unwrap_or_default().to_owned();
        PathBuf::from(OsString::from_vec(first))
    };
    if let Some(folder) = env_folder("RUNTIME_DIRECTORY").map(first).filter(|path| path.is_dir()) {
        return Some(folder.join("admin.sock"));
    }
    let folder = env_folder("XDG_RUNTIME_DIR").filter(|path| path.is_dir())?;
    // A user may run several hosts, each of which has its state directory.
    let state = state?.as_os_str().as_encoded_bytes();
    let hash = fnv1a_chain([state], state.len(), 1).first().copied().unwrap_or_default();
    Some(folder.join("pointsman").join(format!("admin-{hash:016x}.sock")))
}

/// Returns the folder in an environment variable, if it is an absolute path.
pub(super) fn env_folder(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn socket_is_in_the_folder_of_the_service_or_of_the_user() {
        let dir = tempfile::tempdir().unwrap();
        let (service, user) = (dir.path().join("service"), dir.path().join("user"));
        std::fs::create_dir(&service).unwrap();
        std::fs::create_dir(&user).unwrap();
        let several = PathBuf::from(format!("{}:/other", service.display()));
        let missing = dir.path().join("missing");
        let socket = |runtime: Option<&PathBuf>, xdg: Option<&PathBuf>, state: &str| {
            runtime_socket(Some(Path::new(state)), |name| match name {
                "RUNTIME_DIRECTORY" => runtime.cloned(),
                "XDG_RUNTIME_DIR" => xdg.cloned(),
                _ => None,
            })
        };
        for folder in [&service, &several] {
            let path = socket(Some(folder), Some(&user), "/s");
            assert_eq!(path, Some(service.join("admin.sock")));
        }
        let of_user = socket(Some(&missing), Some(&user), "/s").unwrap();
        assert!(of_user.starts_with(user.join("pointsman")), "{of_user:?}");
        assert_ne!(socket(None, Some(&user), "/other"), Some(of_user));
        assert_eq!(socket(None, Some(&missing), "/s"), None);
        assert_eq!(runtime_socket(None, |_| Some(user.clone())), Some(user.join("admin.sock")));
    }
}
