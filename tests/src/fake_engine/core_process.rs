//! The core process, as vLLM has one beside its API server: it outlives a killed server, and the
//! server exits when the core dies.

use std::os::unix::process::CommandExt as _;
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::process::{Child, Command};

const NAME: &str = "VLLM::EngineCor";

/// Starts the core process, and waits until it has its name.
pub(super) async fn start() -> Result<Child> {
    let mut command = std::process::Command::new(std::env::current_exe()?);
    // Without `kill_on_drop`: the core must outlive a killed server.
    command.arg0("VLLM::EngineCore").arg("core").stdin(std::process::Stdio::null());
    command.env_remove("FAKE_ENGINE");
    let child = Command::from(command).spawn().context("failed to start the core process")?;
    let comm = format!("/proc/{}/comm", child.id().unwrap_or_default());
    while std::fs::read_to_string(&comm).context("the core process has exited")?.trim() != NAME {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Ok(child)
}

/// Runs as the core process until the process is killed.
pub(super) async fn run() -> Result<()> {
    // Equivalent to `prctl(PR_SET_NAME)`; the kernel keeps 15 bytes.
    std::fs::write("/proc/self/comm", NAME)?;
    // Longer than any test; a core that a test has leaked does not stay indefinitely.
    tokio::time::sleep(Duration::from_secs(1000)).await;
    Ok(())
}
