//! An engine that the keeper has: its first process, and the read ends of its pipes.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::process::{PidfdFlags, WaitId, WaitIdOptions, WaitIdStatus};

use super::connection::set_nonblocking;
use super::message::Ended;
use crate::process::command::StartPlan;
use crate::process::proc;
use crate::process::record::Record;

/// Bytes that are kept of what each output wrote while no host was attached.
const MAX_KEPT: usize = 64 << 10;
/// Bytes that are read of an output in one turn, so that one engine does not take all turns.
const MAX_TURN: usize = 256 << 10;

/// An engine.
#[derive(Debug)]
pub(super) struct KeptEngine {
    pub(super) record: Record,
    outputs: [Output; 2],
    /// `None` if the kernel does not permit it, or if the process has ended.
    pidfd: Option<OwnedFd>,
    ended: Option<Ended>,
}

/// An output of an engine.
#[derive(Debug, Default)]
struct Output {
    /// `None` if it is not known, or has been read to its end.
    pipe: Option<OwnedFd>,
    kept: Vec<u8>,
}

impl KeptEngine {
    /// Starts an engine. The descriptors are the write ends of its outputs and their read ends.
    pub(super) fn start(
        mut record: Record,
        plan: &StartPlan,
        descriptors: Vec<OwnedFd>,
    ) -> io::Result<Self> {
        let Ok([stdout, stderr, out, err]) = <[OwnedFd; 4]>::try_from(descriptors) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let child = plan.command([stdout, stderr]).spawn()?;
        // Not reaped yet, so /proc has an entry even if the process has already ended.
        record.leader = proc::snapshot(child.id()).map(|process| process.id);
        Ok(Self::new(record, vec![out, err]))
    }

    /// Takes an engine over that another process started.
    pub(super) fn new(record: Record, descriptors: Vec<OwnedFd>) -> Self {
        let mut outputs = [Output::default(), Output::default()];
        for (output, pipe) in outputs.iter_mut().zip(descriptors) {
            // Shared with the host, which sets it too.
            set_nonblocking(&pipe).ok();
            output.pipe = Some(pipe);
        }
        let pid = record.leader.and_then(|leader| proc::to_raw(leader.pid));
        let pidfd = pid.and_then(|pid| rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok());
        Self { record, outputs, pidfd, ended: None }
    }

    /// Returns what becomes readable when the first process ends.
    pub(super) fn pidfd(&self) -> Option<BorrowedFd<'_>> {
        self.pidfd.as_ref().map(AsFd::as_fd)
    }

    /// Returns the outputs that can be read.
    pub(super) fn pipes(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.outputs.iter().filter_map(|output| output.pipe.as_ref()).map(AsFd::as_fd)
    }

    /// Returns how the first process ended, if it has ended.
    pub(super) fn ended(&self) -> Option<Ended> {
        self.ended
    }

    /// Returns true if the end of the first process has to be looked for at intervals.
    pub(super) fn needs_polling(&self) -> bool {
        self.pidfd.is_none() && self.ended.is_none()
    }

    /// Looks whether the first process has ended. Returns how, at the first call after its end. It
    /// is not reaped before [`KeptEngine::reap`], so that its id is not used again.
    pub(super) fn look(&mut self) -> Option<Ended> {
        if self.ended.is_some() {
            return None;
        }
        let leader = self.record.leader;
        let status = leader.and_then(|leader| proc::to_raw(leader.pid)).and_then(|pid| {
            let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
            rustix::process::waitid(WaitId::Pid(pid), options).ok().flatten()
        });
        let runs = || leader.is_some_and(proc::is_running);
        let ended = match status {
            Some(status) => Ended(Some(raw(&status))),
            None if runs() => return None,
            None => Ended(None),
        };
        self.pidfd = None;
        self.ended = Some(ended);
        Some(ended)
    }

    /// Reads what the outputs have, and keeps the end of it.
    pub(super) fn read_outputs(&mut self) {
        self.outputs.iter_mut().for_each(Output::read);
    }

    /// Returns the read ends of the outputs, and what was kept of them.
    pub(super) fn share_outputs(&mut self) -> (Vec<OwnedFd>, [String; 2]) {
        let share = |output: &Output| match &output.pipe {
            Some(pipe) => pipe.try_clone(),
            // In its place, one that has come to its end.
            None => io::pipe().map(|(reader, _)| reader.into()),
        };
        let pipes = self.outputs.iter().filter_map(|output| share(output).ok()).collect();
        let [out, err] = &mut self.outputs;
        (pipes, [out.take(), err.take()])
    }

    /// Forgets the first process, which has ended.
    pub(super) fn reap(&self) {
        if let Some(leader) = self.record.leader {
            proc::reap(leader.pid);
        }
    }
}

impl Output {
    fn read(&mut self) {
        let Some(pipe) = &self.pipe else { return };
        let mut chunk = vec![0; 16 << 10];
        let mut turn = 0;
        while turn < MAX_TURN {
            match rustix::io::read(pipe, &mut chunk) {
                Ok(0) => {
                    self.pipe = None;
                    break;
                }
                Ok(count) => {
                    turn += count;
                    self.kept.extend_from_slice(chunk.get(..count).unwrap_or_default());
                    let excess = self.kept.len().saturating_sub(MAX_KEPT);
                    self.kept.drain(..excess);
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => break,
            }
        }
    }

    /// Returns what was kept, which begins with a whole line unless that is longer than the limit.
    fn take(&mut self) -> String {
        let kept = std::mem::take(&mut self.kept);
        let begin = match kept.len() {
            MAX_KEPT => kept.iter().position(|byte| *byte == b'\n').map_or(0, |at| at + 1),
            _ => 0,
        };
        String::from_utf8_lossy(kept.get(begin..).unwrap_or_default()).into_owned()
    }
}

/// Returns the wait status in the form of `waitpid`.
fn raw(status: &WaitIdStatus) -> i32 {
    /// Set if the process has dumped its memory.
    const DUMPED: i32 = 0x80;
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => (code & 0xff) << 8,
        (None, Some(signal)) if status.dumped() => signal | DUMPED,
        (None, Some(signal)) => signal,
        (None, None) => 0,
    }
}
