//! Where the store is, and how it is used.

use std::time::Duration;

use pointsman_spec::SharedAddress;
use redis::{ConnectionAddr, IntoConnectionInfo as _};

/// Settings of a replicator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Where the store is.
    pub address: SharedAddress,
    /// Certificates in PEM format that sign those of the store; `None` for those of the system.
    pub ca: Option<Vec<u8>>,
    /// Prefix of all keys in the store, without braces. Hosts with the same prefix share.
    pub prefix: String,
    /// Time between two rounds.
    pub interval: Duration,
    /// Maximum number of keys of a namespace that are kept in memory, and so of changes that are
    /// kept while the store is not available.
    pub max_keys: usize,
}

/// Settings with which no connection is possible.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// A URL cannot be read. It is not part of the message, because it may contain a password.
    #[error(
        "invalid URL of the shared store: expected for example redis://127.0.0.1:6379 or \
         rediss://user:password@redis.example.org:6380/0"
    )]
    Url,
    /// There is not a single URL.
    #[error("no URL of the shared store")]
    Missing,
}

impl Settings {
    /// Validates the URLs. Resolves no names.
    ///
    /// # Errors
    /// If no connection is possible with them.
    pub fn validate(&self) -> Result<(), SettingsError> {
        let urls: Vec<&String> = match &self.address {
            SharedAddress::Single(url) => vec![url],
            SharedAddress::Sentinel { sentinels, node, .. } => {
                if sentinels.is_empty() {
                    return Err(SettingsError::Missing);
                }
                sentinels.iter().chain(node).collect()
            }
            SharedAddress::Cluster(urls) => urls.iter().collect(),
        };
        if urls.is_empty() {
            return Err(SettingsError::Missing);
        }
        let is_valid = |url: &&String| {
            let info = url.as_str().into_connection_info();
            info.is_ok_and(|info| ConnectionAddr::is_supported(info.addr()))
        };
        if urls.iter().all(is_valid) { Ok(()) } else { Err(SettingsError::Url) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(address: SharedAddress) -> Settings {
        Settings {
            address,
            ca: None,
            prefix: "p".to_owned(),
            interval: Duration::from_millis(50),
            max_keys: 10,
        }
    }

    #[test]
    fn passwords_are_in_neither_debug_output_nor_errors() {
        let settings = settings(SharedAddress::Single("redis//:hunter2@host".to_owned()));
        assert!(!format!("{settings:?}").contains("hunter2"));
        let error = settings.validate().unwrap_err();
        assert!(matches!(error, SettingsError::Url));
        assert!(!format!("{error} {error:?}").contains("hunter2"));
    }

    #[test]
    fn valid_and_missing_urls() {
        let urls = |urls: &[&str]| urls.iter().map(ToString::to_string).collect();
        settings(SharedAddress::Single("rediss://:p@host:1/2".to_owned())).validate().unwrap();
        settings(SharedAddress::Cluster(urls(&["redis://a:1", "redis://b:1"]))).validate().unwrap();
        let none = settings(SharedAddress::Cluster(Vec::new())).validate();
        assert!(matches!(none, Err(SettingsError::Missing)));
        let sentinels = urls(&["redis://a:1", "file:///x"]);
        let address = SharedAddress::Sentinel { sentinels, master: "m".to_owned(), node: None };
        assert!(matches!(settings(address).validate(), Err(SettingsError::Url)));
    }
}
