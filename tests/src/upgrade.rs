//! Upgrades of the host under test: each is replaced by another process.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output};

use rustix::process::Signal;
use serde_json::Value;

use crate::host::{Host, is_alive, send_signal};
use crate::wait_until;

/// A host, and the process that serves now. Dropping it kills that process, too.
#[derive(Debug)]
pub struct UpgradedHost {
    pub host: Host,
    program: PathBuf,
    /// The process ids of the successors, the last one of which serves.
    successors: Vec<u32>,
}

impl UpgradedHost {
    /// Takes a host that serves, which runs this program.
    pub fn new(host: Host, program: &Path) -> Self {
        Self { host, program: program.to_owned(), successors: Vec::new() }
    }

    /// Runs `pointsman upgrade`.
    pub fn run(&self, arguments: &[&str]) -> Output {
        let socket = self.host.admin_socket().unwrap();
        let mut command = Command::new(&self.program);
        command.arg("upgrade").arg("--json").arg("--socket").arg(socket).args(arguments);
        command.output().unwrap()
    }

    /// Upgrades the host, and returns what the command has printed.
    ///
    /// # Panics
    /// If that fails.
    pub fn upgrade(&mut self) -> Value {
        let output = self.run(&[]);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{error}\n{}", self.host.log_text());
        let result: Value = serde_json::from_slice(&output.stdout).unwrap();
        self.successors.push(result["pid"].as_u64().unwrap().try_into().unwrap());
        result
    }

    /// Returns the error of an upgrade that fails.
    ///
    /// # Panics
    /// If it does not fail.
    pub fn failed_upgrade(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(!output.status.success(), "{}", self.host.log_text());
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    /// Notes a process that serves now.
    pub fn note_successor(&mut self, pid: u32) {
        self.successors.push(pid);
    }

    /// Returns the process that serves.
    pub fn pid(&self) -> u32 {
        self.successors.last().copied().unwrap_or_else(|| self.host.pid())
    }

    /// Waits for the end of the first process, and returns its status.
    pub fn wait_for_first(&mut self) -> ExitStatus {
        self.host.wait_for_exit()
    }

    /// Waits until only the last process is left.
    pub fn wait_for_earlier(&self) {
        let earlier = self.successors.split_last().map_or(&[][..], |(_, earlier)| earlier);
        wait_until("earlier hosts have ended", || earlier.iter().all(|pid| !is_alive(*pid)));
    }

    /// Stops the host with SIGTERM, and waits for its end.
    pub fn stop(&self) {
        let pid = self.pid();
        send_signal(pid, Signal::TERM);
        wait_until("the host has ended", || !is_alive(pid));
    }
}

impl Drop for UpgradedHost {
    fn drop(&mut self) {
        for pid in self.successors.iter().filter(|pid| is_alive(**pid)) {
            send_signal(*pid, Signal::KILL);
        }
    }
}
