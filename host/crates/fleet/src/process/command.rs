//! The command that starts an engine.

use std::fs::File;
use std::io;
use std::process::Stdio;

use rustix::process::Signal;
use tokio::process::Command;

use super::cgroup::Cgroup;
use super::marker::VARIABLE;
use super::record::Record;
use super::scratch;
use crate::launch::Launch;

/// Returns the variables to set to the engine's scratch directory: those that the operator has not
/// set.
pub(super) fn folder_variables(launch: &Launch) -> Vec<&'static str> {
    let is_set = |name: &str| launch.env.iter().any(|(set, _)| set == name);
    scratch::VARIABLES.into_iter().filter(|name| !is_set(name)).collect()
}

/// Returns the command that starts an engine, with everything that ties its processes to `record`.
pub(super) fn command(launch: &Launch, record: &Record, cgroup: Option<&Cgroup>) -> Command {
    let (program, arguments) =
        launch.command.split_first().map_or(("", &[][..]), |(first, rest)| (first, rest));
    let mut command = Command::new(program);
    command.args(arguments);
    launch.remove_env.iter().for_each(|name| {
        command.env_remove(name);
    });
    command
        .envs(launch.env.iter().map(|(name, value)| (name, value)))
        // Last, so that the operator's environment cannot replace the marker.
        .env(VARIABLE, record.marker.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    if let Some(folder) = &record.folder {
        command.envs(folder_variables(launch).into_iter().map(|name| (name, folder)));
    }
    if let Some(directory) = &launch.directory {
        command.current_dir(directory);
    }
    configure_child(&mut command, cgroup.and_then(|cgroup| cgroup.open_procs().ok()));
    command
}

/// Makes the child a session leader, which `setproctitle` cannot hide, has the kernel kill it when
/// the host ends for any reason, and moves it into the control group of `cgroup_procs`.
#[expect(
    unsafe_code,
    reason = "`pre_exec` is unsafe; the closure only calls async-signal-safe functions"
)]
fn configure_child(command: &mut Command, cgroup_procs: Option<File>) {
    let host = rustix::process::getpid();
    // SAFETY: only async-signal-safe functions may run between fork and exec. The closure makes the
    // system calls setsid, prctl, getppid and write; it takes no lock and does not allocate,
    // because errors are built from their numbers.
    unsafe {
        command.pre_exec(move || {
            rustix::process::setsid()?;
            rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
            if rustix::process::getppid() != Some(host) {
                // The host ended before the death signal was set, so it will never be sent.
                return Err(io::Error::from(rustix::io::Errno::SRCH));
            }
            if let Some(procs) = &cgroup_procs {
                // Without a control group, the tracker's other criteria still apply.
                rustix::io::write(procs, b"0").ok();
            }
            Ok(())
        });
    }
}
