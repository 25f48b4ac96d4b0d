//! The command that starts an engine.

use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::process::{Resource, Rlimit, Signal};
use serde::{Deserialize, Serialize};

use super::cgroup::Cgroup;
use super::marker::VARIABLE;
use super::record::Record;
use super::scratch;
use crate::launch::Launch;

/// What a process needs to know to start an engine as its child: the keeper, or the host itself.
/// Contains secrets of the engine's environment, so it is neither logged nor written to a file.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct StartPlan {
    command: Vec<String>,
    /// The whole environment; of several entries with the same name, the last one counts.
    env: Vec<(OsString, OsString)>,
    directory: Option<PathBuf>,
    cgroup: Option<PathBuf>,
    /// The kernel kills the engine when its parent ends.
    dies_with_parent: bool,
    /// The limits of open files of the host: the keeper was started with other ones.
    open_files: (Option<u64>, Option<u64>),
}

impl fmt::Debug for StartPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let program = self.command.first();
        f.debug_struct("StartPlan").field("program", &program).finish_non_exhaustive()
    }
}

/// Returns the variables to set to the engine's scratch directory: those that the operator has not
/// set.
pub(super) fn folder_variables(launch: &Launch) -> Vec<&'static str> {
    let is_set = |name: &str| launch.env.iter().any(|(set, _)| set == name);
    scratch::VARIABLES.into_iter().filter(|name| !is_set(name)).collect()
}

impl StartPlan {
    /// Returns the plan of a start, with everything that ties the engine's processes to `record`.
    pub(super) fn new(launch: &Launch, record: &Record, dies_with_parent: bool) -> Self {
        let is_removed =
            |name: &OsString| launch.remove_env.iter().any(|removed| name == &**removed);
        let mut env: Vec<(OsString, OsString)> =
            std::env::vars_os().filter(|(name, _)| !is_removed(name)).collect();
        env.extend(launch.env.iter().map(|(name, value)| (name.into(), value.into())));
        if let Some(folder) = &record.folder {
            let variables = folder_variables(launch).into_iter();
            env.extend(variables.map(|name| (name.into(), folder.clone().into_os_string())));
        }
        // Last, so that the operator's environment cannot replace the marker.
        env.push((VARIABLE.into(), record.marker.to_string().into()));
        let limit = rustix::process::getrlimit(Resource::Nofile);
        Self {
            command: launch.command.clone(),
            env,
            // A keeper has the working directory of the host that started it.
            directory: launch.directory.clone().or_else(|| std::env::current_dir().ok()),
            cgroup: record.cgroup.clone(),
            dies_with_parent,
            open_files: (limit.current, limit.maximum),
        }
    }

    /// Has the kernel kill the engine when its parent ends.
    pub(super) fn dying_with_parent(mut self) -> Self {
        self.dies_with_parent = true;
        self
    }

    /// Returns the command that starts the engine as a child of this process.
    pub(super) fn command(&self, [stdout, stderr]: [OwnedFd; 2]) -> Command {
        let (program, arguments) =
            self.command.split_first().map_or(("", &[][..]), |(first, rest)| (first, rest));
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env_clear()
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(stderr);
        if let Some(directory) = &self.directory {
            command.current_dir(directory);
        }
        self.configure_child(&mut command);
        command
    }

    /// Makes the child a session leader, which `setproctitle` cannot hide, and moves it into its
    /// control group.
    #[expect(
        unsafe_code,
        reason = "`pre_exec` is unsafe; the closure only calls async-signal-safe functions"
    )]
    fn configure_child(&self, command: &mut Command) {
        let parent = rustix::process::getpid();
        let cgroup = self.cgroup.as_deref().map(Path::to_owned).map(Cgroup::from_dir);
        let procs: Option<File> = cgroup.and_then(|cgroup| cgroup.open_procs().ok());
        let (current, maximum) = self.open_files;
        let dies_with_parent = self.dies_with_parent;
        // SAFETY: only async-signal-safe functions may run between fork and exec. The closure makes
        // the system calls setsid, setrlimit, prctl, getppid and write; it takes no lock and does
        // not allocate, because errors are built from their numbers.
        unsafe {
            command.pre_exec(move || {
                rustix::process::setsid()?;
                // Fails if the limit of the keeper is lower; the engine has that one then.
                rustix::process::setrlimit(Resource::Nofile, Rlimit { current, maximum }).ok();
                if dies_with_parent {
                    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
                }
                if rustix::process::getppid() != Some(parent) {
                    // The parent ended before the death signal was set, so it will never be sent,
                    // and nothing knows the engine.
                    return Err(io::Error::from(rustix::io::Errno::SRCH));
                }
                if let Some(procs) = &procs {
                    // Without a control group, the tracker's other criteria still apply.
                    rustix::io::write(procs, b"0").ok();
                }
                Ok(())
            });
        }
    }
}
