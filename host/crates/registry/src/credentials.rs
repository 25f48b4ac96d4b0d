//! The credentials that `docker login` and similar tools have stored.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use pointsman_files::read_regular_text;
use pointsman_spec::RegistryCredentials;
use serde::Deserialize;

use crate::error::RegistryError;

/// Maximum size of the file in bytes.
const MAX_FILE: u64 = 1 << 20;
/// The key of Docker Hub in the file.
const DOCKER_HUB: &str = "https://index.docker.io/v1/";

/// The credentials in the configuration of Docker, by registry. Credential helpers are not run: a
/// host does not start programs that a file names.
#[derive(Debug, Clone, Default)]
pub struct DockerConfig(BTreeMap<String, RegistryCredentials>);

#[derive(Deserialize)]
struct ConfigJson {
    #[serde(default)]
    auths: BTreeMap<String, AuthJson>,
}

#[derive(Deserialize)]
struct AuthJson {
    auth: Option<String>,
}

impl DockerConfig {
    /// Reads `config.json` in the folder `DOCKER_CONFIG`, or else `.docker` of the user. A missing
    /// file has no credentials.
    ///
    /// # Errors
    /// If there is a file and it cannot be read. The error does not contain any of its content.
    pub fn load() -> Result<Self, RegistryError> {
        let folder = std::env::var_os("DOCKER_CONFIG").map(PathBuf::from);
        let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".docker"));
        match folder.or_else(home) {
            Some(folder) => Self::read(&folder.join("config.json")),
            None => Ok(Self::default()),
        }
    }

    /// Reads a file.
    pub(crate) fn read(file: &Path) -> Result<Self, RegistryError> {
        match read_regular_text(file, MAX_FILE) {
            Ok(text) => Self::parse(&text).ok_or_else(|| {
                // The error of the parser would show a part of the text.
                let file = file.display();
                RegistryError::Credentials(format!("{file}: not the configuration of Docker"))
            }),
            Err(error) if error.is_not_found() => Ok(Self::default()),
            Err(error) => Err(RegistryError::Credentials(error.to_string())),
        }
    }

    /// Parses the text of a file.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let ConfigJson { auths } = serde_json::from_str(text).ok()?;
        let credentials = auths.into_iter().filter_map(|(registry, AuthJson { auth })| {
            let decoded = STANDARD.decode(auth?).ok()?;
            let text = String::from_utf8(decoded).ok()?;
            let (username, password) = text.split_once(':')?;
            let (username, password) = (username.to_owned(), password.to_owned());
            Some((host_of(&registry), RegistryCredentials { username, password }))
        });
        Some(Self(credentials.collect()))
    }

    /// Returns the credentials for a registry, by its host in references.
    pub(crate) fn credentials(&self, host: &str) -> Option<&RegistryCredentials> {
        self.0.get(host)
    }
}

/// Returns the host of a key, which may be a URL.
fn host_of(key: &str) -> String {
    if key == DOCKER_HUB {
        return "docker.io".to_owned();
    }
    let host = key.trim_start_matches("https://").trim_start_matches("http://");
    host.trim_end_matches('/').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_belong_to_exactly_one_host() {
        let text = r#"{"auths": {
            "r.example.org": {"auth": "dTpwOnE="},
            "https://s.example.org/": {"auth": "djp3"},
            "https://index.docker.io/v1/": {"auth": "ZDpl"},
            "t.example.org/team": {"auth": "eDp5"},
            "broken": {"auth": "%"}, "no-colon": {"auth": "dQ=="}, "helper": {}
        }, "credsStore": "desktop", "HttpHeaders": {}}"#;
        let config = DockerConfig::parse(text).unwrap();
        for (host, expected) in [
            ("r.example.org", Some(("u", "p:q"))),
            ("s.example.org", Some(("v", "w"))),
            ("docker.io", Some(("d", "e"))),
            ("example.org", None),
            ("x.r.example.org", None),
            ("r.example.org:5000", None),
            ("t.example.org", None),
            ("broken", None),
            ("no-colon", None),
            ("helper", None),
        ] {
            let found = config.credentials(host);
            let found = found.map(|found| (found.username.as_str(), found.password.as_str()));
            assert_eq!(found, expected, "{host}");
        }
    }

    #[test]
    fn missing_file_has_none_and_an_invalid_one_is_an_error_without_its_content() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.json");
        assert!(DockerConfig::read(&file).unwrap().0.is_empty());
        std::fs::write(&file, "{\"auths\": secret-word").unwrap();
        let error = DockerConfig::read(&file).unwrap_err();
        assert_eq!(error.code(), "registry_credentials_invalid");
        assert!(!error.to_string().contains("secret-word"));
    }
}
