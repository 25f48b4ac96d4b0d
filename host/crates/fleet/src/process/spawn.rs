//! How a state directory has an engine started: by the keeper, or by the host itself if there is
//! none.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use tokio::process::Command;

use super::command::StartPlan;
use super::leader::{KeptLeader, Leader};
use super::proc::{self, Id};
use super::record::Record;
use super::state_dir::StateDir;
use crate::launch::Launch;

/// The maximum time for the keeper to start a process, which is a matter of milliseconds.
const START_TIMEOUT: Duration = Duration::from_secs(10);

/// The reason why the first process of an engine was not started.
#[derive(Debug, thiserror::Error)]
pub(super) enum SpawnError {
    /// The program cannot be run.
    #[error(transparent)]
    Refused(io::Error),
    /// The keeper has ended, or does not answer; it may have started the process.
    #[error(transparent)]
    Unknown(io::Error),
}

impl StateDir {
    /// Starts the first process of an engine, with these ends of its pipes.
    pub(super) async fn spawn(
        &self,
        launch: &Launch,
        record: &Record,
        write: [OwnedFd; 2],
        read: &[OwnedFd],
    ) -> Result<(Leader, Option<Id>), SpawnError> {
        let plan = StartPlan::new(launch, record, self.dies_with_keeper());
        let copies = write.each_ref().map(OwnedFd::try_clone);
        let [stdout, stderr] = copies;
        let copies = [stdout.map_err(SpawnError::Refused)?, stderr.map_err(SpawnError::Refused)?];
        if let Some(keeper) = self.keeper()
            && let Some(started) = keeper.start(record, plan.clone(), copies, read)
        {
            drop(write);
            let lost = |why: &str| SpawnError::Unknown(io::Error::other(why.to_owned()));
            let started = tokio::time::timeout(START_TIMEOUT, started).await;
            let id = started
                .map_err(|_| lost("the keeper does not answer"))?
                .map_err(|_| lost("the keeper ended while it started the engine"))?
                .map_err(SpawnError::Refused)?;
            let held = keeper.watch(&record.marker).ok_or_else(|| lost("the engine is unknown"))?;
            return Ok((Leader::Kept(KeptLeader::new(Some(id), held.ended)), Some(id)));
        }
        let mut command = Command::from(plan.dying_with_parent().command(write));
        let child = command.kill_on_drop(true).spawn().map_err(SpawnError::Refused)?;
        // Not reaped yet, so /proc has an entry even if the process has already ended.
        let id = child.id().and_then(proc::snapshot).map(|process| process.id);
        Ok((Leader::Direct(Box::new(child)), id))
    }
}
