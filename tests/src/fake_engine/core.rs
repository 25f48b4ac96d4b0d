//! The process that does the work, as vLLM has one beside its server: it outlives the server, and the server ends
//! without it.

use std::os::unix::process::CommandExt as _;
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::process::{Child, Command};

const NAME: &str = "VLLM::EngineCor";

/// Start it, and wait until it has its name.
pub(super) async fn start() -> Result<Child> {
    let mut command = std::process::Command::new(std::env::current_exe()?);
    // Nothing kills it when we go: that is the point.
    command.arg0("VLLM::EngineCore").arg("core").stdin(std::process::Stdio::null());
    command.env_remove("FAKE_ENGINE");
    let child = Command::from(command).spawn().context("the core cannot be started")?;
    let comm = format!("/proc/{}/comm", child.id().unwrap_or_default());
    while std::fs::read_to_string(&comm).context("the core is gone")?.trim() != NAME {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Ok(child)
}

/// Be it: hold on until somebody ends it.
pub(super) async fn run() -> Result<()> {
    // What `prctl(PR_SET_NAME)` does; the kernel keeps 15 bytes.
    std::fs::write("/proc/self/comm", NAME)?;
    // No test takes that long; if one left it behind, it does not stay for ever.
    tokio::time::sleep(Duration::from_secs(1000)).await;
    Ok(())
}
