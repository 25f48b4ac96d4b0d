//! Makes sure that the state directory can be used, before anything is read from it.

use anyhow::{Context as _, Result};
use pointsman_config::Config;
use pointsman_files::{FolderError, check_writable, create_private};

/// Creates the state directory and checks that only this user can write to it. If the default
/// directory cannot be written, as in a container with a read-only root or with a folder of root,
/// the configuration is changed to work without one: engines are only tracked in memory, versions
/// of policies are not stored, and there is no admin socket.
///
/// # Errors
/// If the directory of the configuration cannot be used, or other users can write to any of them.
pub(crate) fn prepare(config: &mut Config) -> Result<()> {
    let Some(dir) = config.fleet.state_dir.clone() else { return Ok(()) };
    let Err(error) = create_private(&dir).and_then(|()| check_writable(&dir)) else {
        return Ok(());
    };
    let is_unwritable = match &error {
        FolderError::Io { .. } | FolderError::NotAFolder(_) => true,
        // As a container's image or runtime creates it. Root has no need to attack.
        FolderError::ForeignOwner { owner: 0, .. } => true,
        // An attacker may have prepared it.
        FolderError::ForeignLink { .. }
        | FolderError::ForeignOwner { .. }
        | FolderError::Writable { .. } => false,
    };
    if !(config.has_default_state && is_unwritable) {
        return Err(error).context("cannot use the state directory (`state.dir`)");
    }
    tracing::warn!(
        event = "state_unavailable",
        %error,
        "running without a state directory and an admin socket; set `state.dir`"
    );
    config.fleet.state_dir = None;
    config.policies.chain.store = None;
    // Unless the socket is configured to be elsewhere.
    config.admin.socket.take_if(|socket| socket.starts_with(&dir));
    config.admin.link = None;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

    use super::*;

    fn config(state: &str) -> (tempfile::TempDir, Config) {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("host.toml");
        let lane = "[[lanes]]\nname = \"a\"\n[lanes.engine]\ndriver = \"external\"\n\
                    url = \"http://127.0.0.1:1\"\n";
        fs::write(&file, format!("{state}{lane}")).unwrap();
        let mut config = Config::load(&file).unwrap();
        // As if it were the default.
        if config.has_default_state {
            let state = dir.path().join("state");
            config.policies.chain.store = Some(state.join("policies"));
            config.admin.socket = Some(state.join("admin.sock"));
            config.fleet.state_dir = Some(state);
        }
        (dir, config)
    }

    #[test]
    fn default_directory_that_cannot_be_created_is_not_used() {
        let (dir, mut config) = config("");
        // A file, because root may write to every folder.
        fs::write(dir.path().join("state"), "").unwrap();
        prepare(&mut config).unwrap();
        assert_eq!((&config.fleet.state_dir, &config.admin.socket), (&None, &None));
        assert_eq!(config.policies.chain.store, None);
    }

    /// The tests may run as root, whose own folder this is.
    #[test]
    fn default_directory_of_root_is_not_used() {
        for (state, is_default) in [("", true), ("[state]\ndir = \"/usr\"\n", false)] {
            let (dir, mut config) = config(state);
            if fs::metadata(dir.path()).unwrap().uid() == 0 {
                continue;
            }
            config.fleet.state_dir = Some("/usr".into());
            assert_eq!(prepare(&mut config).is_ok(), is_default);
            assert_eq!(config.fleet.state_dir.is_none(), is_default);
        }
    }

    #[test]
    fn configured_directory_has_to_be_usable() {
        let (dir, mut config) = config("[state]\ndir = \"state\"\n");
        fs::write(dir.path().join("state"), "").unwrap();
        let error = prepare(&mut config).unwrap_err();
        assert!(matches!(error.downcast_ref(), Some(FolderError::NotAFolder(_))), "{error:#}");
    }

    #[test]
    fn directory_that_others_can_write_to_is_rejected() {
        for state in ["", "[state]\ndir = \"state\"\n"] {
            let (dir, mut config) = config(state);
            prepare(&mut config).unwrap();
            let folder = dir.path().join("state");
            assert_eq!(config.fleet.state_dir.as_ref(), Some(&folder));
            fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)).unwrap();
            let error = prepare(&mut config).unwrap_err();
            assert!(matches!(error.downcast_ref(), Some(FolderError::Writable { .. })));
        }
    }
}
