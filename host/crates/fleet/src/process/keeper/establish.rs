//! How a host gets a connection to its keeper: to the one that an earlier host has left, or to a
//! new one.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::end::KILL_TIMEOUT;
use super::message::{Ended, PROTOCOL, Refusal, Report, Request};
use super::wire::{Frame, FrameReceiver, OutgoingFrame};
use crate::process::proc;
use crate::process::record::Record;

/// The argument that makes the host's program the keeper.
const SUBCOMMAND: &str = "keeper";
/// The name of the socket in the state directory.
const SOCKET: &str = "keeper.sock";
/// The maximum time for a keeper to answer: one that is ending engines does not before its end.
const ATTACH_TIMEOUT: Duration = Duration::from_secs(KILL_TIMEOUT.as_secs() + 2);
/// The maximum time for the kernel to close the connections of an earlier host that was killed.
const IN_USE_TIMEOUT: Duration = Duration::from_secs(1);
const IN_USE_INTERVAL: Duration = Duration::from_millis(20);
/// The maximum time for a keeper to read a message.
const SEND_TIMEOUT: Duration = Duration::from_secs(5);

/// How a keeper is found and started.
#[derive(Debug, Clone)]
pub(in crate::process) struct KeeperSettings {
    /// The host's program.
    pub(in crate::process) program: PathBuf,
    /// The state directory; `None` for a keeper that only this host can use.
    pub(in crate::process) dir: Option<PathBuf>,
    /// How long engines are kept if the host is killed.
    pub(in crate::process) grace: Duration,
}

/// The reason why a host cannot use a keeper.
#[derive(Debug, thiserror::Error)]
pub(in crate::process) enum KeeperError {
    /// The keeper works for another host.
    #[error("the keeper is in use [in_use]")]
    InUse(Option<u32>),
    /// The keeper is of another version.
    #[error("the keeper has version {theirs} of the protocol, expected {PROTOCOL} [protocol]")]
    Protocol {
        /// The version of the keeper.
        theirs: u32,
    },
    /// The keeper cannot be started, or does not answer.
    #[error("failed to start the keeper or to connect to it: {0}")]
    Io(#[from] io::Error),
}

/// An engine that a keeper has.
#[derive(Debug)]
pub(in crate::process) struct Reported {
    pub(in crate::process) record: Record,
    /// What it wrote to its outputs while no host was attached.
    pub(in crate::process) output: [String; 2],
    /// Set if its first process has ended.
    pub(in crate::process) ended: Option<Ended>,
    /// The read ends of its outputs, or none.
    pub(super) pipes: Vec<OwnedFd>,
}

/// A connection to a keeper.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) stream: UnixStream,
    /// The process, if this host has started it.
    pub(super) child: Option<Child>,
    pub(super) pid: u32,
    /// What has been received.
    pub(super) receiver: FrameReceiver,
    /// What an earlier host has left.
    pub(super) engines: Vec<Reported>,
    pub(super) listeners: Vec<(String, OwnedFd)>,
}

impl Link {
    fn new(stream: UnixStream, pid: u32, child: Option<Child>) -> Self {
        let (receiver, engines, listeners) = (FrameReceiver::default(), Vec::new(), Vec::new());
        Self { stream, child, pid, receiver, engines, listeners }
    }

    /// Sends a message; waits for the keeper to read it for some seconds at most.
    pub(super) fn send(&self, request: &Request, descriptors: Vec<OwnedFd>) -> io::Result<()> {
        let message = serde_json::to_vec(request)?;
        match OutgoingFrame::new(&message, descriptors).send(&self.stream)? {
            true => Ok(()),
            false => {
                // A part of the message may have been sent, so no other one can follow.
                self.stream.shutdown(std::net::Shutdown::Both)?;
                Err(io::ErrorKind::TimedOut.into())
            }
        }
    }
}

/// Attaches to the keeper that an earlier host has left, or starts one.
pub(super) fn establish(settings: &KeeperSettings) -> Result<Link, KeeperError> {
    if let Some(dir) = &settings.dir
        && let Some(link) = attach(dir, settings.grace)?
    {
        return Ok(link);
    }
    let link = start(settings)?;
    link.send(&hello(settings.grace), Vec::new())?;
    Ok(link)
}

fn hello(grace: Duration) -> Request {
    let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
    Request::Hello { protocol: PROTOCOL, grace_ms }
}

/// Attaches to a keeper that is running; `None` if there is none, or if it is just ending.
fn attach(dir: &Path, grace: Duration) -> Result<Option<Link>, KeeperError> {
    let deadline = Instant::now() + IN_USE_TIMEOUT;
    loop {
        let folder = File::open(dir)?;
        let stream = match UnixStream::connect(socket_path(&folder)) {
            Ok(stream) => stream,
            Err(error) if is_gone(&error) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        stream.set_write_timeout(Some(SEND_TIMEOUT))?;
        let peer = rustix::net::sockopt::socket_peercred(&stream).map_err(io::Error::from)?;
        if peer.uid != rustix::process::geteuid() {
            return Err(io::Error::from(io::ErrorKind::PermissionDenied).into());
        }
        // The keeper says which process it is.
        let mut link = Link::new(stream, 0, None);
        match link.send(&hello(grace), Vec::new()).map_err(KeeperError::from).and_then(|()| {
            link.stream.set_read_timeout(Some(ATTACH_TIMEOUT))?;
            read_attachment(&mut link)?;
            Ok(link.stream.set_read_timeout(None)?)
        }) {
            Ok(()) => return Ok(Some(link)),
            Err(KeeperError::InUse(_)) if Instant::now() < deadline => proc::pause(IN_USE_INTERVAL),
            Err(KeeperError::Io(error)) if is_gone(&error) => return Ok(None),
            Err(error) => return Err(error),
        }
    }
}

fn is_gone(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::UnexpectedEof
    )
}

/// Reads what the keeper has.
fn read_attachment(link: &mut Link) -> Result<(), KeeperError> {
    loop {
        while let Some(Frame { message, descriptors }) = link.receiver.next_frame()? {
            let report = serde_json::from_slice(&message).map_err(io::Error::from)?;
            match report {
                Report::Refused { code: Refusal::InUse, owner, .. } => {
                    return Err(KeeperError::InUse(owner));
                }
                Report::Refused { protocol: theirs, .. } => {
                    return Err(KeeperError::Protocol { theirs });
                }
                Report::Engine { record, output, ended } => {
                    if let Some(record) = Record::from_json(&record) {
                        link.engines.push(Reported { record, output, ended, pipes: descriptors });
                    }
                }
                Report::Listener { name } => {
                    link.listeners.extend(descriptors.into_iter().map(|file| (name.clone(), file)));
                }
                Report::Attached { pid } => {
                    link.pid = pid;
                    return Ok(());
                }
                Report::Started { .. } | Report::NotStarted { .. } | Report::Ended { .. } => {}
            }
        }
        if !link.receiver.receive(&link.stream)? {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
    }
}

/// Starts a keeper.
fn start(settings: &KeeperSettings) -> io::Result<Link> {
    let (stream, input) = match &settings.dir {
        Some(dir) => listen(dir)?,
        None => {
            let (stream, input) = UnixStream::pair()?;
            (stream, input.into())
        }
    };
    stream.set_write_timeout(Some(SEND_TIMEOUT))?;
    let mut command = Command::new(&settings.program);
    command
        .arg(SUBCOMMAND)
        // It needs nothing of the host's environment, which may hold secrets. And the keeper of a
        // host that is itself an engine would be taken for one by the marker in it.
        .env_clear()
        .stdin(Stdio::from(input))
        .stdout(Stdio::null());
    // Only to tell keepers apart in lists of processes.
    command.args(&settings.dir);
    let child = own_session(&mut command).spawn()?;
    let pid = child.id();
    Ok(Link::new(stream, pid, Some(child)))
}

/// Replaces the socket of a keeper that has ended, and connects to it.
fn listen(dir: &Path) -> io::Result<(UnixStream, OwnedFd)> {
    let folder = File::open(dir)?;
    let path = socket_path(&folder);
    if let Err(error) = fs::remove_file(&path)
        && error.kind() != io::ErrorKind::NotFound
    {
        return Err(error);
    }
    let listener = UnixListener::bind(&path)?;
    fs::set_permissions(&path, Permissions::from_mode(0o600))?;
    Ok((UnixStream::connect(&path)?, listener.into()))
}

/// Returns a path of the socket that is short enough for an address, wherever the folder is.
fn socket_path(folder: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{SOCKET}", folder.as_raw_fd()))
}

/// Detaches the keeper from the terminal, whose Ctrl-C is meant for the host.
#[expect(
    unsafe_code,
    reason = "`pre_exec` is unsafe; the closure only calls async-signal-safe functions"
)]
fn own_session(command: &mut Command) -> &mut Command {
    // SAFETY: only async-signal-safe functions may run between fork and exec. The closure makes one
    // setsid system call, takes no lock and does not allocate.
    unsafe { command.pre_exec(|| rustix::process::setsid().map(drop).map_err(io::Error::from)) }
}
