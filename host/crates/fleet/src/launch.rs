//! How the process of an engine is started.

use std::path::PathBuf;

use sha2::{Digest as _, Sha256};

/// The address that engines started by the host listen on; they serve the host alone.
pub(crate) const HOST: &str = "127.0.0.1";

/// A program to start, with its arguments and environment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Launch {
    /// Program and arguments, with all placeholders replaced.
    pub(crate) command: Vec<String>,
    /// Variables to add to the host's environment.
    pub(crate) env: Vec<(String, String)>,
    /// Variables to remove from the host's environment.
    pub(crate) remove_env: Vec<String>,
    /// Working directory; the host's if `None`.
    pub(crate) directory: Option<PathBuf>,
}

impl Launch {
    /// Returns a word that identifies the command, the variables and the working directory of an
    /// engine of this driver. The environment that the engine inherits is not part of it.
    pub(crate) fn fingerprint(&self, driver: &str) -> String {
        let Self { command, env, remove_env: _, directory } = self;
        let variables = env.iter().flat_map(|(name, value)| [name.as_bytes(), value.as_bytes()]);
        let directory = directory.iter().map(|path| path.as_os_str().as_encoded_bytes());
        let mut digest = Sha256::new();
        digest.update(driver.as_bytes());
        // With the number and the lengths of all parts, so that none can pass for another.
        digest.update([0].into_iter().chain(command.len().to_le_bytes()).collect::<Vec<u8>>());
        for part in command.iter().map(String::as_bytes).chain(variables).chain(directory) {
            digest.update(part.len().to_le_bytes());
            digest.update(part);
        }
        format!("{:x}", digest.finalize())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fingerprint_depends_on_every_part() {
        let launch = |command: &[&str], env: &[(&str, &str)], directory: Option<&str>| Launch {
            command: command.iter().map(|word| (*word).to_owned()).collect(),
            env: env.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect(),
            remove_env: vec!["SECRET".into()],
            directory: directory.map(PathBuf::from),
        };
        let prints: Vec<String> = [
            launch(&["a", "b"], &[], None),
            launch(&["ab"], &[], None),
            launch(&["a"], &[("b", "")], None),
            launch(&["a", "b"], &[("x", "1")], None),
            launch(&["a", "b"], &[("x", "2")], None),
            launch(&["a", "b"], &[], Some("/")),
        ]
        .iter()
        .map(|launch| launch.fingerprint("command"))
        .collect();
        let distinct: std::collections::BTreeSet<&String> = prints.iter().collect();
        assert_eq!(distinct.len(), prints.len());
        let first = launch(&["a", "b"], &[], None);
        assert_ne!(first.fingerprint("vllm"), prints[0]);
        assert_eq!(Launch { remove_env: vec![], ..first }.fingerprint("command"), prints[0]);
    }
}
