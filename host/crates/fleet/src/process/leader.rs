//! The first process of an engine: a child of the keeper, or of the host itself.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;
use std::time::Duration;

use rustix::process::{PidfdFlags, WaitOptions};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::process::Child;
use tokio::sync::watch;

use super::keeper::Ended;
use super::proc::{self, Id};

/// The maximum time for the keeper to report an end that the kernel has reported. It needs longer
/// only if it has ended itself, and a new one is being started.
const REPORT_TIMEOUT: Duration = Duration::from_secs(2);

/// The first process of an engine.
#[derive(Debug)]
pub(super) enum Leader {
    /// A child of the host.
    Direct(Box<Child>),
    /// A child of the keeper, or of an earlier one.
    Kept(KeptLeader),
}

/// The first process of an engine that the keeper has.
#[derive(Debug)]
pub(super) struct KeptLeader {
    id: Option<Id>,
    ended: watch::Receiver<Option<Ended>>,
    /// Becomes readable at the end of the process; `None` if the kernel does not permit it.
    pidfd: Option<AsyncFd<OwnedFd>>,
}

impl Leader {
    /// Waits until the process ends. Cancel-safe.
    pub(super) async fn ended(&mut self) -> io::Result<ExitStatus> {
        match self {
            Self::Direct(child) => child.wait().await,
            Self::Kept(leader) => leader.ended().await,
        }
    }

    /// Forgets the process, which has ended.
    pub(super) async fn reap(&mut self) {
        match self {
            // An error means that there is nothing to reap.
            Self::Direct(child) => drop(child.wait().await),
            Self::Kept(leader) => drop(leader.own_status()),
        }
    }
}

impl KeptLeader {
    /// Must be called within a runtime.
    pub(super) fn new(id: Option<Id>, ended: watch::Receiver<Option<Ended>>) -> Self {
        let pidfd = id.and_then(|id| {
            let pidfd =
                rustix::process::pidfd_open(proc::to_raw(id.pid)?, PidfdFlags::NONBLOCK).ok()?;
            // Another process may have the id by now.
            proc::snapshot(id.pid).filter(|process| process.id == id)?;
            watched(pidfd)
        });
        Self { id, ended, pidfd }
    }

    async fn ended(&mut self) -> io::Result<ExitStatus> {
        let reported = tokio::select! {
            reported = reported(&mut self.ended) => Some(reported),
            () = readable(self.pidfd.as_ref()) => {
                let reported = reported(&mut self.ended);
                tokio::time::timeout(REPORT_TIMEOUT, reported).await.ok()
            }
        };
        let status = reported.and_then(|Ended(status)| status).map(ExitStatus::from_raw);
        status.or_else(|| self.own_status()).ok_or_else(|| {
            io::Error::other("its exit status is unknown, because its parent has ended")
        })
    }

    /// Returns the exit status if the host is the parent of the process, as after the end of a
    /// keeper, and reaps it.
    fn own_status(&self) -> Option<ExitStatus> {
        let id = self.id?;
        let process = proc::snapshot(id.pid).filter(|process| process.id == id)?;
        if process.parent != std::process::id() {
            return None;
        }
        let waited = rustix::process::waitpid(proc::to_raw(id.pid), WaitOptions::NOHANG);
        waited.ok().flatten().map(|(_, status)| ExitStatus::from_raw(status.as_raw()))
    }
}

/// Waits for the report of the keeper, or of the next one.
async fn reported(ended: &mut watch::Receiver<Option<Ended>>) -> Ended {
    let found = match ended.wait_for(Option::is_some).await {
        Ok(found) => *found,
        // The keeper was dropped with the state directory.
        Err(_) => None,
    };
    match found {
        Some(ended) => ended,
        None => std::future::pending().await,
    }
}

#[expect(unsafe_code, reason = "tokio registers descriptors only unsafely")]
fn watched(pidfd: OwnedFd) -> Option<AsyncFd<OwnedFd>> {
    // SAFETY: the descriptor is open and owned, and is not exchanged before `AsyncFd` closes it.
    unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) }.ok()
}

async fn readable(pidfd: Option<&AsyncFd<OwnedFd>>) {
    match pidfd {
        // The process has ended, or cannot be watched any more.
        Some(pidfd) => drop(pidfd.readable().await),
        None => std::future::pending().await,
    }
}
