//! Reads `[shared-state]`: the store that several hosts share.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use pointsman_files::read_regular;
use pointsman_settings::{Code, Section, missing, secret};
use pointsman_spec::SharedAddress;

/// Maximum size of `ca-file` in bytes.
const MAX_CA_BYTES: u64 = 1 << 20;

/// The store that several hosts share.
#[derive(Clone, PartialEq, Eq)]
pub struct SharedState {
    /// Where it is.
    pub address: SharedAddress,
    /// Certificates in PEM format that sign those of the store; `None` for those of the system.
    pub ca: Option<Vec<u8>>,
    /// Prefix of all keys in the store.
    pub prefix: String,
    /// Time between two round trips.
    pub interval: Duration,
    /// Maximum number of keys that are kept in memory for each purpose.
    pub max_pending: usize,
    /// How many hosts share it; only for estimates.
    pub replicas: u32,
}

impl fmt::Debug for SharedState {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { prefix, interval, replicas, .. } = self;
        write!(formatter, "SharedState({prefix:?}, {interval:?}, {replicas})")
    }
}

/// Reads the section; `None` without one, or after reporting an error.
pub(super) fn read(root: &Section<'_>, folder: &Path) -> Option<SharedState> {
    let section = root.section("shared-state");
    let url = secret(&section, "url-env", "url-file", folder);
    let plain = section.string("url").map(str::to_owned);
    if plain.as_deref().is_some_and(|url| password_of(url).is_some()) {
        let message = "a URL with a password does not belong in the configuration; use `url-env`";
        section.error_at("url", Code::InvalidValue.with(message));
    }
    if plain.is_some() && url.is_some() {
        section.error_at("url", Code::Conflict.with("conflicts with `url-env`; remove one"));
    }
    let url = url.or(plain);
    let sentinel = section.section("sentinel");
    let cluster = section.strings("cluster");
    let address = read_address(&section, &sentinel, url, cluster);
    let ca = section.string("ca-file").and_then(|file| {
        let read = read_regular(&folder.join(file), MAX_CA_BYTES);
        let failed = |error: &dyn fmt::Display| {
            section.error_at("ca-file", Code::Unavailable.with(error.to_string()));
        };
        read.inspect_err(|error| failed(error)).ok()
    });
    let prefix = section.string("prefix").unwrap_or("pointsman").to_owned();
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte);
    if prefix.is_empty() || prefix.len() > 64 || !prefix.bytes().all(is_plain) {
        let message = "invalid prefix: expected 1 to 64 letters, digits, `-`, `_`, `.` and `:`";
        section.error_at("prefix", Code::InvalidValue.with(message));
    }
    let interval = section.positive_duration("interval", Duration::from_millis(50));
    if !(Duration::from_millis(10)..=Duration::from_secs(10)).contains(&interval) {
        section.error_at("interval", Code::OutOfRange.with("must be between 10ms and 10s"));
    }
    let max_pending = section.integer("max-pending", 100..=10_000_000, 100_000);
    let replicas = section.integer("replicas", 1..=10_000, 1);
    sentinel.report_unknown();
    section.report_unknown();
    Some(SharedState { address: address?, ca, prefix, interval, max_pending, replicas })
}

fn read_address(
    section: &Section<'_>,
    sentinel: &Section<'_>,
    url: Option<String>,
    cluster: Option<Vec<String>>,
) -> Option<SharedAddress> {
    let sentinels = sentinel.strings("urls");
    let master = sentinel.string("master").map(str::to_owned);
    if let Some(url) = &url {
        check_url(section, if section.has("url") { "url" } else { "url-env" }, url);
    }
    cluster.iter().flatten().for_each(|url| check_url(section, "cluster", url));
    sentinels.iter().flatten().for_each(|url| check_url(sentinel, "urls", url));
    match (sentinels, cluster) {
        (Some(_), Some(_)) => {
            let message = "conflicts with `sentinel`; remove one of the two";
            section.error_at("cluster", Code::Conflict.with(message));
            None
        }
        (Some(sentinels), None) => {
            let Some(master) = master else {
                sentinel.error_at("master", missing("`master = \"pointsman\"`"));
                return None;
            };
            Some(SharedAddress::Sentinel { sentinels, master, node: url })
        }
        (None, Some(cluster)) => {
            // The nodes have the credentials of `url`, which is one of them.
            Some(SharedAddress::Cluster(url.into_iter().chain(cluster).collect()))
        }
        (None, None) => {
            if master.is_some() {
                sentinel.error_at("urls", missing("`urls = [\"redis://10.0.0.1:26379\"]`"));
            } else if url.is_none() && !section.keys().is_empty() {
                let example = "`url = \"redis://127.0.0.1:6379\"`";
                let has_secret = section.has("url-env") || section.has("url-file");
                if !has_secret {
                    section.error_at("url", missing(example));
                }
            }
            url.map(SharedAddress::Single)
        }
    }
}

/// Reports a URL that is not one of Redis. The message does not contain it.
fn check_url(section: &Section<'_>, key: &str, url: &str) {
    let is_known = ["redis://", "rediss://", "unix://", "redis+unix://", "placeholder-for-"]
        .iter()
        .any(|scheme| url.starts_with(scheme));
    if !is_known {
        let message = "invalid URL: expected redis://HOST:PORT, rediss://HOST:PORT for TLS, or \
                       unix:///PATH";
        section.error_at(key, Code::InvalidValue.with(message));
    }
}

/// Returns the password in a URL.
fn password_of(url: &str) -> Option<&str> {
    let (_, rest) = url.split_once("://")?;
    let (user, _) = rest.split('/').next()?.rsplit_once('@')?;
    user.split_once(':').map(|(_, password)| password).filter(|password| !password.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_found_in_urls() {
        assert_eq!(password_of("redis://:secret@host:1/0"), Some("secret"));
        assert_eq!(password_of("redis://user:p@ss@host"), Some("p@ss"));
        for url in ["redis://host:1", "redis://user@host", "unix:///a:b@c", "redis://user:@host"] {
            assert_eq!(password_of(url), None, "{url}");
        }
    }
}
