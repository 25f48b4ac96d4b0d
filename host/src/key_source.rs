//! Where the keys of clients come from: `[[keys]]`, and the keys file of `[access]`. A set of keys
//! stays in force until a valid one replaces it, also if the file is deleted: an error never lets
//! more requests in.

use std::path::{Path, PathBuf};

use pointsman_access::{ApiKey, Definitions, KeySet, Keys, UnknownGroup};
use pointsman_config::{Access, Config, ConfigError, Peer};
use pointsman_settings::{Code, Location};

use crate::stamp::{Stamp, stamp};

/// The keys, and where they come from.
#[derive(Debug)]
pub(crate) struct KeySource {
    keys: Keys,
    /// The configuration.
    file: PathBuf,
    access: Access,
    own: Vec<pointsman_config::ApiKey>,
    peers: Vec<Peer>,
    /// The group of tokens without one, and where it is.
    token_group: Option<(String, Location)>,
    /// Of the keys file, before it was read.
    stamp: Stamp,
    error: Option<String>,
    /// The keys that are gone since this was asked last.
    removed: Vec<(String, String)>,
}

/// The valid keys of a changed configuration, which are not in force yet.
#[derive(Debug)]
pub(crate) struct PreparedKeys {
    access: Access,
    own: Vec<pointsman_config::ApiKey>,
    peers: Vec<Peer>,
    token_group: Option<(String, Location)>,
    set: KeySet,
    stamp: Stamp,
}

impl KeySource {
    /// Reads the keys of a configuration.
    ///
    /// # Errors
    /// All errors in the keys file, or groups that do not exist.
    pub(crate) fn load(file: &Path, config: &Config) -> Result<Self, ConfigError> {
        let PreparedKeys { access, own, peers, token_group, set, stamp } = prepare(file, config)?;
        let keys = Keys::default();
        keys.replace(set);
        let file = file.to_owned();
        let (error, removed) = Default::default();
        Ok(Self { keys, file, access, own, peers, token_group, stamp, error, removed })
    }

    /// Returns the keys, which change with their source.
    pub(crate) fn keys(&self) -> Keys {
        self.keys.clone()
    }

    /// Returns the keys file.
    pub(crate) fn keys_file(&self) -> Option<&Path> {
        self.access.keys.as_deref()
    }

    /// Returns why what is in the files now is not in force.
    pub(crate) fn error(&self) -> Option<&str> {
        self.error.as_deref()
    }

    /// Returns the keys that are gone since the last call, each as its tenant and its name.
    pub(crate) fn take_removed(&mut self) -> Vec<(String, String)> {
        std::mem::take(&mut self.removed)
    }

    /// Reads the keys of a changed configuration.
    ///
    /// # Errors
    /// All errors in the keys file, or groups that do not exist.
    pub(crate) fn prepare(&self, config: &Config) -> Result<PreparedKeys, ConfigError> {
        prepare(&self.file, config)
    }

    /// Applies the keys of a changed configuration.
    pub(crate) fn apply(&mut self, prepared: PreparedKeys) {
        let PreparedKeys { access, own, peers, token_group, set, stamp } = prepared;
        (self.access, self.own, self.stamp) = (access, own, stamp);
        (self.peers, self.token_group) = (peers, token_group);
        self.install(set);
    }

    /// Applies the keys file if it has changed, or could not be applied: reading it may have failed
    /// for a cause that has passed.
    pub(crate) fn look(&mut self) {
        let has_changed = |file: &Path| stamp(file) != self.stamp;
        if self.keys_file().is_some_and(|file| self.error.is_some() || has_changed(file)) {
            self.reload();
        }
    }

    fn reload(&mut self) {
        // Before it is read: a change meanwhile is found by the next look.
        self.stamp = self.keys_file().and_then(stamp);
        let own = (self.own.as_slice(), self.peers.as_slice());
        match read(&self.file, &self.access, own, self.token_group.as_ref()) {
            Ok(set) => self.install(set),
            Err(error) => self.note(error.to_string()),
        }
    }

    fn install(&mut self, mut set: KeySet) {
        if set.is_open() && !self.keys.is_open() {
            // The file may be half written, or the last key be revoked: no client gets in by that.
            set.close();
            self.keys.replace(set);
            let error = "all keys were removed; the host does not become open before a restart";
            self.note(error.to_owned());
            return;
        }
        let secrets = set.count();
        self.removed.extend(self.keys.replace(set));
        self.error = None;
        tracing::info!(event = "keys_reloaded", secrets, "keys reloaded");
    }

    /// Keeps why the files are not in force as they are, and logs it once.
    fn note(&mut self, error: String) {
        if self.error.as_ref() == Some(&error) {
            return;
        }
        tracing::error!(
            event = "keys_reload_failed",
            error,
            "the keys are not in force as they are in the files"
        );
        self.error = Some(error);
    }
}

fn prepare(file: &Path, config: &Config) -> Result<PreparedKeys, ConfigError> {
    let (access, own, peers) = (config.access.clone(), config.keys.clone(), config.peers.clone());
    let token_group = token_group(config);
    // Before it is read: a change meanwhile is found by the next look.
    let stamp = access.keys.as_deref().and_then(stamp);
    let set = read(file, &access, (&own, &peers), token_group.as_ref())?;
    Ok(PreparedKeys { access, own, peers, token_group, set, stamp })
}

/// Reads the keys. `file` is the configuration, for errors.
fn read(
    file: &Path,
    access: &Access,
    (own, peers): (&[pointsman_config::ApiKey], &[Peer]),
    token_group: Option<&(String, Location)>,
) -> Result<KeySet, ConfigError> {
    let mut set = match &access.keys {
        None => KeySet::default(),
        Some(file) => KeySet::from_definitions(&Definitions::load(file)?),
    };
    let mut unknown = Vec::new();
    let mut report = |location: &Location, result: Result<(), UnknownGroup>| {
        let problem = |error: UnknownGroup| {
            Code::UnknownName.with(format!("{error}; groups are defined in the keys file"))
        };
        unknown.extend(result.err().map(|error| location.error(problem(error))));
    };
    for key in own {
        report(&key.group_location, set.add(api_key(key)));
    }
    if let Some(group) = &access.anonymous {
        report(&access.anonymous_location, set.accept_anonymous(group));
    }
    if let Some((group, location)) = token_group {
        report(location, set.check_group(group));
    }
    peers.iter().for_each(|peer| set.add_peer(&peer.name, peer.key.reveal()));
    set.set_query_key(access.query_key);
    match unknown.is_empty() {
        true => Ok(set),
        false => Err(ConfigError::new(file, unknown)),
    }
}

fn token_group(config: &Config) -> Option<(String, Location)> {
    let tokens = config.tokens.as_ref()?;
    let group = tokens.settings.default_group.clone()?;
    Some((group, tokens.default_group_location.clone()))
}

fn api_key(key: &pointsman_config::ApiKey) -> ApiKey {
    ApiKey {
        secret: key.secret.reveal().to_owned(),
        tenant: key.tenant.clone(),
        group: key.group.clone(),
        engine_admin: key.engine_admin,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use http::HeaderMap;
    use http::header::AUTHORIZATION;

    use super::*;

    const LANE: &str = "[[lanes]]\nname = \"a\"\n[lanes.engine]\ndriver = \"external\"\nurl = \
                        \"http://127.0.0.1:1\"\n";

    fn config(file: &Path, more: &str) -> Config {
        fs::write(file, format!("{more}\n{LANE}")).unwrap();
        Config::load(file).unwrap()
    }

    fn accepts(keys: &Keys, secret: &str) -> bool {
        let value = format!("Bearer {secret}").parse().unwrap();
        keys.identity(&HeaderMap::from_iter([(AUTHORIZATION, value)])).is_ok()
    }

    #[test]
    fn errors_keep_the_keys_that_are_in_force() {
        let dir = tempfile::tempdir().unwrap();
        let [file, path] = ["p.toml", "keys.toml"].map(|name| dir.path().join(name));
        let key = |secret| {
            let hash = pointsman_access::SecretHash::of_secret(secret);
            format!("[[keys]]\nid = \"k\"\ntenant = \"t\"\nhash = \"{hash}\"\n")
        };
        fs::write(&path, key("one")).unwrap();
        let with_file = config(&file, "[access]\nkeys = \"keys.toml\"");
        let mut source = KeySource::load(&file, &with_file).unwrap();
        let keys = source.keys();
        assert!(accepts(&keys, "one") && !accepts(&keys, "two"));
        fs::write(&path, key("two")).unwrap();
        source.look();
        assert!(!accepts(&keys, "one") && accepts(&keys, "two") && source.error().is_none());
        for content in [Some("x"), None] {
            match content {
                Some(content) => fs::write(&path, content).unwrap(),
                None => fs::remove_file(&path).unwrap(),
            }
            source.look();
            assert!(accepts(&keys, "two") && source.error().is_some(), "{content:?}");
        }
        // A file that could not be read is read again, also if it has not changed.
        fs::write(&path, key("two")).unwrap();
        source.look();
        source.error = Some("too many open files".to_owned());
        source.look();
        assert_eq!(source.error(), None);
        fs::write(&path, "").unwrap();
        source.look();
        assert!(!accepts(&keys, "two") && source.error().is_none());
        assert!(keys.identity(&HeaderMap::new()).is_err());
        let tokens = "[access]\nkeys = \"keys.toml\"\n[access.tokens]\nissuer = \
                      \"https://a.example\"\naudience = [\"a\"]\ndefault-group = \"g\"";
        for (text, place) in [
            ("[access]\nkeys = \"keys.toml\"\nanonymous = \"g\"", "p.toml:3: access.anonymous: "),
            (tokens, "p.toml:6: access.tokens.default-group: "),
        ] {
            let error = source.prepare(&config(&file, text)).unwrap_err().to_string();
            assert!(error.contains(place), "{error}");
        }
        assert!(keys.identity(&HeaderMap::new()).is_err());
        let apply = |source: &mut KeySource, config: &Config| {
            let prepared = source.prepare(config).unwrap();
            source.apply(prepared);
        };
        apply(&mut source, &config(&file, ""));
        assert!(keys.identity(&HeaderMap::new()).is_err() && source.error().is_some());
        assert!(!accepts(&keys, "two"));
        apply(&mut source, &with_file);
        assert!(keys.identity(&HeaderMap::new()).is_err() && source.error().is_none());
    }
}
