//! `pointsman upgrade`: replaces a running host by a new process.

use anyhow::{Context as _, Result};
use http::Method;
use serde_json::{Value, json};

use crate::cli::upgrade::Upgrade;
use crate::output;
use crate::policy::HostClient;

/// Replaces a running host, and prints the process id of its successor.
///
/// # Errors
/// If the host is not reachable, or the new process fails. The host goes on then.
pub(crate) fn upgrade(options: &Upgrade) -> Result<()> {
    let mut body = serde_json::Map::new();
    if let Some(program) = &options.program {
        // The host has another working directory.
        let path = std::path::absolute(program).context("failed to find the program")?;
        body.insert("program".to_owned(), json!(path));
    }
    if let Some(seconds) = options.timeout {
        body.insert("timeout_s".to_owned(), json!(seconds));
    }
    let client = HostClient::new(&options.host.target)?;
    let client = client.with_timeout(std::time::Duration::from_secs(2 * 3600));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("failed to start the async runtime")?;
    let body = Value::Object(body).to_string();
    let text = runtime.block_on(client.call_text(Method::POST, "/upgrade", body))?;
    let result: Value = serde_json::from_str(&text).context("unexpected response of the host")?;
    if options.host.json {
        return output::print(&format!("{result:#}\n"));
    }
    let (pid, pause) = (&result["pid"], &result["pause_ms"]);
    output::print(&format!("process {pid} serves; requests waited for at most {pause} ms\n"))
}
