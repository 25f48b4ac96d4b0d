//! Asks a store once whether it can be used, for operators. Changes nothing.

use std::collections::HashMap;
use std::time::Duration;

use redis::{ErrorKind, RedisError, Value};

use crate::connection::{Connection, StoreError};
use crate::contribution::{Contributor, contributors, hosts_command};
use crate::presence;
use crate::settings::Settings;

/// What a store says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreProbe {
    /// What the servers do when their memory is full (`maxmemory-policy`): one for a single server,
    /// and one for each server of a cluster. Empty if the user may not read it.
    pub eviction: Vec<String>,
    /// Number of processes that have used the store with the same prefix in the last 15 seconds.
    pub replicas: u64,
    /// Names that several hosts have which have contributed their usage in the last 15 seconds, in
    /// their order. Empty if the user may not read them.
    pub shared_names: Vec<String>,
}

/// Time after which a host counts as gone that does not contribute any more.
const GONE_AFTER: Duration = Duration::from_secs(15);

/// Why a store cannot be used. Contains no credentials.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProbeError {
    /// It cannot be connected to, or does not reply in time.
    #[error("{0}")]
    Unreachable(String),
    /// It does not accept the user or the password, or the user may not run the scripts.
    #[error("{0}")]
    Refused(String),
}

impl From<StoreError> for ProbeError {
    fn from(error: StoreError) -> Self {
        let is_refused = match &error {
            StoreError::Failed(error) => is_refused(error),
            StoreError::Timeout(_) | StoreError::Reply => false,
        };
        let message = error.to_string();
        if is_refused { Self::Refused(message) } else { Self::Unreachable(message) }
    }
}

/// Returns true if the server works, and does not want this user.
fn is_refused(error: &RedisError) -> bool {
    match error.kind() {
        ErrorKind::AuthenticationFailed => true,
        _ => error.code().is_some_and(|code| !matches!(code, "LOADING" | "BUSY" | "MASTERDOWN")),
    }
}

/// Asks a store once, with settings that were validated. Takes some seconds at most.
///
/// # Errors
/// If it cannot be used.
pub async fn probe(settings: &Settings) -> Result<StoreProbe, ProbeError> {
    let connection = Connection::open(settings).await?;
    let counted = connection.limited_query(&presence::count_command(&settings.prefix)).await?;
    let Value::Int(replicas) = counted else { return Err(StoreError::Reply.into()) };
    // A user need not have the right to read it, or the hosts.
    let info = connection.limited_query(redis::cmd("INFO").arg("memory")).await;
    let mut eviction = Vec::new();
    if let Ok(info) = info {
        find_policies(&info, &mut eviction);
    }
    let replicas = u64::try_from(replicas).unwrap_or(0);
    let hosts = connection.limited_query(&hosts_command(&settings.prefix)).await;
    let shared_names =
        hosts.map_or_else(|_| Vec::new(), |hosts| shared_names(&contributors(&hosts)));
    Ok(StoreProbe { eviction, replicas, shared_names })
}

/// Returns the names of several hosts that are running.
fn shared_names(hosts: &[Contributor]) -> Vec<String> {
    let mut counts: HashMap<&str, u32> = HashMap::new();
    for host in hosts.iter().filter(|host| host.age < GONE_AFTER) {
        *counts.entry(&host.name).or_default() += 1;
    }
    let shared = counts.into_iter().filter(|(_, count)| *count > 1);
    let mut names: Vec<String> = shared.map(|(name, _)| name.to_owned()).collect();
    names.sort_unstable();
    names
}

/// Adds what each server in a reply to `INFO` does when its memory is full.
fn find_policies(info: &Value, found: &mut Vec<String>) {
    let text = match info {
        Value::BulkString(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        Value::VerbatimString { text, .. } | Value::SimpleString(text) => text.clone(),
        // One for each server of a cluster.
        Value::Map(servers) => {
            return servers.iter().for_each(|(_, info)| find_policies(info, found));
        }
        Value::Array(servers) => {
            return servers.iter().for_each(|info| find_policies(info, found));
        }
        _ => return,
    };
    let policies = text.lines().filter_map(|line| line.strip_prefix("maxmemory_policy:"));
    found.extend(policies.map(|policy| policy.trim().to_owned()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_read_of_one_server_and_of_a_cluster() {
        let text = |policy: &str| {
            let text = format!("# Memory\r\nused_memory:1\r\nmaxmemory_policy:{policy}\r\n");
            Value::BulkString(text.into_bytes())
        };
        let policies = |info: &Value| {
            let mut found = Vec::new();
            find_policies(info, &mut found);
            found
        };
        assert_eq!(policies(&text("noeviction")), ["noeviction"]);
        let servers = ["allkeys-lru", "noeviction"].map(|policy| (Value::Nil, text(policy)));
        assert_eq!(policies(&Value::Map(servers.into())), ["allkeys-lru", "noeviction"]);
        assert!(policies(&Value::Nil).is_empty());
    }

    #[test]
    fn names_of_several_hosts_that_are_running_are_found() {
        let host = |id, name: &str, age| {
            let age = Duration::from_secs(age);
            Contributor { id, name: name.to_owned(), age }
        };
        let hosts = [host(1, "b", 1), host(2, "a", 2), host(3, "b", 3), host(4, "a", 16)];
        assert_eq!(shared_names(&hosts), ["b"]);
    }
}
