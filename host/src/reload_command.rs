//! `pointsman reload`, and `pointsman check --against`: what a configuration changes in a running
//! host.

use std::path::Path;

use anyhow::{Context as _, Result};
use http::Method;
use serde_json::Value;

use crate::cli::Check;
use crate::cli::policy::{HostAddress, HostOptions, HostTarget};
use crate::cli::reload::Reload;
use crate::output;
use crate::policy::{ClientError, HostClient, aligned};

/// The reason why a host rejected a configuration.
#[derive(Debug, thiserror::Error)]
#[error("the host rejected the configuration, and nothing has changed:\n{0}")]
pub(crate) struct RejectedConfig(String);

/// Reloads the configuration of a running host, or shows what that would change.
///
/// # Errors
/// If the host is not reachable, or rejects the configuration.
pub(crate) fn reload(options: &Reload) -> Result<()> {
    let path = if options.dry_run { "/reload?dry-run=true" } else { "/reload" };
    show(&call(&options.host, path, String::new())?, options.host.json)
}

/// Shows what the configuration that is checked would change in a running host.
///
/// # Errors
/// If the host is not reachable, or would reject the configuration.
pub(crate) fn against(check: &Check, running: &str) -> Result<()> {
    let text = pointsman_config::Config::source(&check.config)?;
    let address = address(running, &check.config);
    let target = HostTarget { address, token_env: check.token_env.clone() };
    let host = HostOptions { target, json: check.json };
    show(&call(&host, "/reload?check=true", text)?, check.json)
}

/// Returns the address of a running host: that of the configuration if none is given, a URL, a
/// socket, or that of another configuration.
fn address(running: &str, config: &Path) -> HostAddress {
    use std::os::unix::fs::FileTypeExt as _;
    let is_socket =
        |path: &str| std::fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket());
    let nothing = HostAddress { config: None, socket: None, url: None };
    match running {
        "" => HostAddress { config: Some(config.to_owned()), ..nothing },
        url if url.starts_with("http://") => HostAddress { url: url.parse().ok(), ..nothing },
        path if is_socket(path) => HostAddress { socket: Some(path.into()), ..nothing },
        file => HostAddress { config: Some(file.into()), ..nothing },
    }
}

fn call(host: &HostOptions, path: &str, body: String) -> Result<Value> {
    let client = HostClient::new(&host.target)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("failed to start the async runtime")?;
    let text = runtime.block_on(client.call_text(Method::POST, path, body))?;
    let value = serde_json::from_str(&text);
    value.map_err(|_| ClientError::UnexpectedResponse(http::StatusCode::OK).into())
}

/// Prints a result of the host.
fn show(outcome: &Value, json: bool) -> Result<()> {
    let rejected = outcome["error"].as_str().or_else(|| outcome["keys_error"].as_str());
    if json {
        output::print(&format!("{outcome:#}\n"))?;
    } else if rejected.is_none() {
        output::print(&text(outcome))?;
    }
    match rejected {
        Some(error) => Err(RejectedConfig(error.to_owned()).into()),
        None => Ok(()),
    }
}

/// Returns a result for people: a line for each change.
fn text(outcome: &Value) -> String {
    const LISTS: [(&str, &str); 5] = [
        ("added", "added"),
        ("changed", "changed"),
        ("removed", "removed"),
        ("handover", "needs `pointsman upgrade`"),
        ("restart", "needs a restart"),
    ];
    let plan = &outcome["plan"];
    let strings = |value: &Value| -> Vec<String> {
        let items = value.as_array().into_iter().flatten();
        items.filter_map(|item| item.as_str().map(str::to_owned)).collect()
    };
    let mut rows: Vec<[String; 2]> = Vec::new();
    for (key, what) in LISTS {
        rows.extend(strings(&plan[key]).into_iter().map(|path| [what.to_owned(), path]));
    }
    for lane in plan["restarted"].as_array().into_iter().flatten() {
        let name = lane["lane"].as_str().unwrap_or_default();
        let keys = strings(&lane["keys"]).join(", ");
        rows.push(["restarted".to_owned(), format!("lanes.{name} ({keys})")]);
    }
    for change in outcome["policy_changes"].as_array().into_iter().flatten() {
        let part = |index: usize| change[index].as_str().unwrap_or_default();
        let row = format!("policies.{}: {}", part(0), part(1));
        rows.push(["policy".to_owned(), row]);
    }
    let (result, generation) = (outcome["result"].as_str(), &outcome["generation"]);
    let result = result.unwrap_or("stopping");
    let mut text = if rows.is_empty() { String::new() } else { aligned(&rows) };
    text.push_str(&format!("{result}: generation {generation} is in force\n"));
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn plan_is_shown_line_by_line() {
        let outcome = json!({
            "result": "planned",
            "generation": 3,
            "plan": {
                "added": ["lanes.c"],
                "changed": ["server.max-body"],
                "restarted": [{ "lane": "a", "keys": ["engine", "memory"] }],
                "removed": [],
                "handover": ["admin.listen"],
                "restart": ["state.dir"],
            },
            "policy_changes": [["p", "removed from the chain"]],
        });
        let text = text(&outcome);
        let lines: Vec<Vec<&str>> =
            text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines.len(), 7, "{text}");
        assert_eq!(lines[0], ["added", "lanes.c"]);
        assert_eq!(lines[4], ["restarted", "lanes.a", "(engine,", "memory)"]);
        assert!(show(&json!({ "error": "x" }), false).is_err());
    }

    #[test]
    fn host_is_found_by_url_socket_or_configuration() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let config = Path::new("new.toml");
        assert_eq!(address("", config).config.as_deref(), Some(config));
        assert!(address("http://127.0.0.1:1", config).url.is_some());
        assert_eq!(address(socket.to_str().unwrap(), config).socket.as_ref(), Some(&socket));
        assert_eq!(address("old.toml", config).config.as_deref(), Some(Path::new("old.toml")));
    }
}
