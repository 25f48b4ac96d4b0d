//! Reaps orphans that the host has adopted: processes that an engine has left without a parent
//! become children of the host, which is their subreaper, or the init process of its container.
//! Without this they would be zombies until their engine ends, and each holds a process id.

use std::collections::HashSet;
use std::io;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

use super::proc::{self, Id};
use super::state_dir::StateDir;

/// The minimum interval between two scans of all processes.
const SCAN_INTERVAL: Duration = Duration::from_millis(500);

/// Reaps orphans as they end. Never returns, except with an error.
///
/// # Errors
/// If the host cannot be notified of the end of its children.
pub(crate) async fn reap_orphans(state_dir: StateDir) -> io::Result<()> {
    let mut ended = signal(SignalKind::child())?;
    let mut suspects = HashSet::new();
    loop {
        // A suspect is looked at once more, even if no other child ends.
        match suspects.is_empty() {
            true => drop(ended.recv().await),
            false => drop(tokio::time::timeout(SCAN_INTERVAL, ended.recv()).await),
        }
        let state_dir = state_dir.clone();
        let seen = std::mem::take(&mut suspects);
        let scan = tokio::task::spawn_blocking(move || reap(&state_dir, &seen));
        // Fails only if the runtime ends.
        suspects = scan.await.unwrap_or_default();
        tokio::time::sleep(SCAN_INTERVAL).await;
    }
}

/// Reaps the orphans that have ended. Returns the ended children that may be orphans or processes
/// that the host has just started; those are reaped if they were `seen` before.
fn reap(state_dir: &StateDir, seen: &HashSet<Id>) -> HashSet<Id> {
    let me = std::process::id();
    let session = proc::snapshot(me).map_or(0, |host| host.session);
    let children = proc::all().into_iter().filter(|process| process.parent == me && process.dead);
    // After the scan, so that a process that was started during it is known.
    let own = state_dir.children();
    let mut suspects = HashSet::new();
    for process in children {
        let Id { pid, .. } = process.id;
        // The host waits for engines and the keeper itself, and for its other children, which
        // stay in its session.
        if process.session == session || own.contains(&pid) {
            continue;
        }
        // The host's own children lead their sessions, and are known a moment after their start.
        if process.session == pid && !seen.contains(&process.id) {
            suspects.insert(process.id);
        } else {
            proc::reap(pid);
        }
    }
    suspects
}

#[cfg(test)]
mod tests {
    use super::super::tests::{start, until, without_dir};
    use super::*;

    #[tokio::test]
    async fn orphans_are_reaped_while_their_engine_runs() {
        let state_dir = without_dir();
        // Dropped at the end, which aborts it.
        let mut reaper = tokio::task::JoinSet::new();
        reaper.spawn(reap_orphans(state_dir.clone()));
        // The shell in the middle ends at once, and leaves its child to the host.
        let script = "(sh -c 'echo $$; exec sleep 0.2' & ); \
                      (setsid sh -c 'echo $$; exec sleep 0.2' & ); exec sleep 1000";
        let process = start("a", script, &state_dir).await;
        while process.log_tail().tail(2).len() < 2 {
            tokio::task::yield_now().await;
        }
        for pid in process.log_tail().tail(2) {
            let pid: u32 = pid.parse().unwrap();
            while proc::snapshot(pid).is_some() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        let id = process.id();
        until("the engine runs", || proc::snapshot(id).filter(|engine| !engine.dead));
        process.kill().await.unwrap();
    }
}
