//! One engine process and everything that it starts: a process group of its own, ended as a whole.

use std::collections::VecDeque;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::process::{Pid, Signal};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};
use tokio::task::JoinSet;

use crate::driver::HOST;
use crate::spec::ProcessSpec;

/// How many of an engine's last lines are kept for messages about its failure.
const LAST_LINES: usize = 20;
/// Longest line kept whole; longer ones are cut into pieces.
const LONGEST_LINE: usize = 4096;
/// How long the kernel may take to end a group after SIGKILL. A process that is deep in a driver ends when that lets it.
const KILL_LIMIT: Duration = Duration::from_secs(10);
/// How often to look whether a group is gone; the kernel has no way to wait for one.
const GONE_POLL: Duration = Duration::from_millis(10);

/// A running engine.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    group: Pid,
    lines: LastLines,
    readers: JoinSet<()>,
}

/// The last lines that an engine wrote.
#[derive(Debug, Clone, Default)]
pub(crate) struct LastLines(Arc<Mutex<VecDeque<String>>>);

impl LastLines {
    fn push(&self, line: &str) {
        let mut lines = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if lines.len() == LAST_LINES {
            lines.pop_front();
        }
        lines.push_back(line.to_owned());
    }

    /// The last line that says something.
    pub(crate) fn last(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).back().cloned()
    }
}

impl Process {
    /// Start a lane's engine on `port`. Has to be called on a thread that lives as long as the host, such as a worker of the
    /// runtime: the kernel ends the engine when the thread that started it ends.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub(crate) fn start(lane: &str, spec: &ProcessSpec, port: u16) -> io::Result<Self> {
        let fill = |word: &String| {
            word.replace("{port}", &port.to_string()).replace("{host}", HOST).replace("{lane}", lane)
        };
        let mut words = spec.command.iter().map(fill);
        let program = words
            .next()
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the command is empty"))?;
        let mut command = Command::new(program);
        command
            .args(words)
            .envs(spec.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true);
        if let Some(directory) = &spec.directory {
            command.current_dir(directory);
        }
        die_with_parent(&mut command);
        let mut child = command.spawn()?;
        let id = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        let group =
            id.ok_or_else(|| io::Error::other("the process ended before it could be looked after"))?;
        let lines = LastLines::default();
        let mut readers = JoinSet::new();
        if let Some(out) = child.stdout.take() {
            readers.spawn(read_lines(lane.to_owned(), out, lines.clone()));
        }
        if let Some(err) = child.stderr.take() {
            readers.spawn(read_lines(lane.to_owned(), err, lines.clone()));
        }
        Ok(Self { child, group, lines, readers })
    }

    /// Id of the process, and of its group.
    pub(crate) fn id(&self) -> u32 {
        self.group.as_raw_nonzero().get().unsigned_abs()
    }

    /// What it wrote last.
    pub(crate) fn lines(&self) -> &LastLines {
        &self.lines
    }

    /// Wait until the process ends. Can be dropped and called again.
    pub(crate) async fn ended(&mut self) -> io::Result<ExitStatus> {
        self.child.wait().await
    }

    /// End the whole group: SIGTERM, after `grace` SIGKILL, and wait until nothing of it is left.
    pub(crate) async fn stop(mut self, grace: Duration) {
        self.signal(Signal::TERM);
        let ended = tokio::time::timeout(grace, async {
            // A failing wait means that there is nothing to wait for.
            drop(self.child.wait().await);
            self.gone().await;
        });
        if ended.await.is_err() {
            tracing::warn!(
                pid = self.id(),
                "the engine did not end within {} s of SIGTERM",
                grace.as_secs_f32()
            );
        }
        self.kill().await;
    }

    /// End what is left of the group at once, and wait until nothing of it is left.
    pub(crate) async fn kill(mut self) {
        self.signal(Signal::KILL);
        let ended = tokio::time::timeout(KILL_LIMIT, async {
            drop(self.child.wait().await);
            self.gone().await;
        });
        if ended.await.is_err() {
            tracing::error!(
                pid = self.id(),
                "processes of the engine are still there {} s after SIGKILL",
                KILL_LIMIT.as_secs()
            );
        }
        self.readers.shutdown().await;
    }

    fn signal(&self, signal: Signal) {
        // The group may be gone, which is what we want.
        let _gone = rustix::process::kill_process_group(self.group, signal);
    }

    async fn gone(&self) {
        while rustix::process::test_kill_process_group(self.group).is_ok() {
            tokio::time::sleep(GONE_POLL).await;
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
    }
}

/// Let the kernel end the child when we are gone, however that came about.
#[expect(
    unsafe_code,
    reason = "code between fork and exec is unsafe by nature; there is no other way to say this"
)]
fn die_with_parent(command: &mut Command) {
    // SAFETY: between fork and exec only functions that are async-signal-safe may run. This makes one prctl system call,
    // takes no lock and allocates nothing.
    unsafe {
        command.pre_exec(|| {
            rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).map_err(io::Error::from)
        });
    }
}

/// Carry an engine's lines into our log. Progress bars end their lines with a carriage return.
async fn read_lines(lane: String, mut pipe: impl AsyncRead + Unpin, lines: LastLines) {
    let mut chunk = vec![0; 8192];
    let mut line: Vec<u8> = Vec::new();
    let emit = |line: &mut Vec<u8>| {
        let text = String::from_utf8_lossy(line);
        let text = text.trim_end();
        if !text.is_empty() {
            let shown: String =
                text.chars().map(|c| if c.is_control() && c != '\t' { ' ' } else { c }).collect();
            tracing::info!(target: "engine", lane, "{shown}");
            lines.push(&shown);
        }
        line.clear();
    };
    while let Ok(count) = pipe.read(&mut chunk).await {
        if count == 0 {
            break;
        }
        for byte in &chunk[..count] {
            if matches!(byte, b'\n' | b'\r') || line.len() == LONGEST_LINE {
                emit(&mut line);
            }
            if !matches!(byte, b'\n' | b'\r') {
                line.push(*byte);
            }
        }
    }
    emit(&mut line);
}

/// How a process ended, as a sentence and as a word for a metric.
pub(crate) fn explain(status: ExitStatus) -> (String, String) {
    let signal = status.signal().or_else(|| status.code().filter(|code| *code > 128).map(|code| code - 128));
    match (status.code(), signal) {
        (_, Some(4)) => ("illegal instruction: the binary was built for another CPU".into(), "SIGILL".into()),
        (_, Some(6)) => {
            ("aborted: the engine found a fault of its own, see its last lines".into(), "SIGABRT".into())
        }
        (_, Some(9)) => {
            ("killed by SIGKILL: by hand, or by the kernel because memory ran out".into(), "SIGKILL".into())
        }
        (_, Some(11)) => ("segmentation fault: a fault in the engine or its driver".into(), "SIGSEGV".into()),
        (_, Some(15)) => ("ended by SIGTERM, which did not come from us".into(), "SIGTERM".into()),
        (None, Some(signal)) => (format!("ended by signal {signal}"), format!("signal-{signal}")),
        (Some(0), _) => ("ended by itself without an error".into(), "exit-0".into()),
        (Some(2), _) => ("exit code 2, often a wrong argument: see its last lines".into(), "exit-2".into()),
        (Some(code), _) => (format!("exit code {code}"), format!("exit-{code}")),
        (None, None) => ("ended in an unknown way".into(), "unknown".into()),
    }
}

/// A free port on our loopback address. Free a moment ago, that is: should another process be quicker, the engine fails to
/// start and is started again on another one.
pub(crate) fn free_port() -> io::Result<u16> {
    Ok(std::net::TcpListener::bind((HOST, 0))?.local_addr()?.port())
}

#[cfg(test)]
mod tests;
