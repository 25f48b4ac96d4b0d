//! The old host's side: it starts its successor and hands over, or goes on if that fails.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pointsman_domain::LaneState;
use pointsman_fleet::PausedFleet;
use tokio::process::{Child, Command};
use tokio::sync::mpsc::UnboundedReceiver;

use super::channel::{self, Received, Sender, SenderThread};
use super::message::{Handed, NewMessage, OldMessage, PROTOCOL};
use super::{Inheritance, TAKE_OVER, UpgradeRequest};
use crate::running::Running;

/// The maximum time for engines that are being stopped to end. Nothing is dispatched after that.
const PAUSE_TIMEOUT: Duration = Duration::from_secs(60);
/// The maximum time for the new host to take over. Requests wait for it.
const TAKE_OVER_TIMEOUT: Duration = Duration::from_secs(30);
/// The maximum time for the exit of a new host that has closed the connection.
const EXIT_TIMEOUT: Duration = Duration::from_secs(5);

/// The reason why the host has not handed over, and goes on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UpgradeError {
    /// Engines would end with this host.
    #[error("an upgrade needs a state directory (`state.dir`) and a keeper")]
    NoKeeper,
    /// The end of this process ends all others of its container.
    #[error(
        "the host is the first process of its container (PID 1), which ends with it; start the \
         container with an init process, for example `docker run --init`, or replace it"
    )]
    FirstProcess,
    /// The configuration is not valid.
    #[error("{0}")]
    Rejected(String),
    /// The program cannot be run.
    #[error("failed to start {program}: {source}")]
    NotStarted { program: String, source: std::io::Error },
    /// The new host reported an error.
    #[error("the new host failed: {0}")]
    Failed(String),
    /// The new host has ended.
    #[error("the new host ended ({0}); its log says why")]
    Ended(String),
    /// The new host takes too long.
    #[error("the new host was not {what} within {} s", .timeout.as_secs())]
    TimedOut { what: &'static str, timeout: Duration },
    /// An engine is being stopped, or has to be restarted, or the dispatcher has ended.
    #[error("engines were being stopped for {} s; try again", PAUSE_TIMEOUT.as_secs())]
    Busy,
    /// The new host speaks another protocol.
    #[error("unexpected message of the new host [protocol]")]
    Protocol,
}

/// A successor that serves.
#[derive(Debug)]
pub(crate) struct HandedOver {
    /// Goes on after the end of this process.
    pub(super) child: Option<Child>,
    pub(super) sender: Sender<OldMessage>,
    pub(super) thread: SenderThread,
    pub(super) messages: UnboundedReceiver<Received<NewMessage>>,
    pub(super) paused: PausedFleet,
    /// How long nothing was dispatched.
    pub(super) pause: Duration,
}

impl HandedOver {
    /// Returns the process id of the successor.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.child.as_ref()?.id()
    }

    /// Returns how long nothing was dispatched.
    pub(crate) fn pause(&self) -> Duration {
        self.pause
    }
}

/// A successor that is prepared. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct Prepared {
    child: KillOnDrop,
    sender: Sender<OldMessage>,
    thread: SenderThread,
    messages: UnboundedReceiver<Received<NewMessage>>,
}

/// A process that is killed when this is dropped.
#[derive(Debug)]
struct KillOnDrop(Option<Child>);

impl KillOnDrop {
    fn id(&self) -> Option<u32> {
        self.0.as_ref().and_then(Child::id)
    }
}

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            // Fails only if it has ended.
            child.start_kill().ok();
        }
    }
}

/// Starts a successor, and waits until it is prepared. This host serves meanwhile.
///
/// # Errors
/// If the successor fails.
pub(crate) async fn prepare(
    running: &Running,
    inheritance: &Inheritance,
    request: &UpgradeRequest,
) -> Result<Prepared, UpgradeError> {
    if std::process::id() == 1 {
        return Err(UpgradeError::FirstProcess);
    }
    if !running.fleet.state_dir().can_hand_over() {
        return Err(UpgradeError::NoKeeper);
    }
    // So that the successor finds its engines as its configuration has them: those that have to
    // restart for it do so here, without cutting a stream.
    let reloader = Arc::clone(&running.reloader);
    let reloaded = tokio::task::spawn_blocking(move || reloader.reload()).await.ok().flatten();
    if let Some(error) = reloaded.and_then(|outcome| outcome.error) {
        return Err(UpgradeError::Rejected(error));
    }
    let program = request.program.as_deref().unwrap_or(inheritance.start.program());
    let mut prepared = Prepared::start(program, inheritance)?;
    tracing::info!(
        event = "handover_begun",
        program = %program.display(),
        pid = prepared.child.id(),
        "starting the next host"
    );
    prepared.expect("prepared", request.timeout, &NewMessage::Prepared).await?;
    Ok(prepared)
}

/// Hands over to a successor. Takes some seconds at most, and must not be cancelled.
///
/// # Errors
/// If that fails. The host goes on as before then.
pub(crate) async fn hand_over(
    running: &Running,
    mut successor: Prepared,
) -> Result<HandedOver, UpgradeError> {
    let paused = tokio::time::timeout(PAUSE_TIMEOUT, running.fleet.pause()).await;
    let begun = Instant::now();
    let mut paused = paused.ok().flatten().ok_or(UpgradeError::Busy)?;
    let requests = std::mem::take(&mut paused.requests);
    running.fleet.flush_conversations().await;
    running.release_store().await;
    let state_dir = running.fleet.state_dir();
    state_dir.hand_over(successor.child.id());
    state_dir.unlock();
    let serving = running.lanes_that(LaneState::serving);
    successor.sender.send(&OldMessage::Go(Handed { requests, serving }));
    match successor.expect("serving", TAKE_OVER_TIMEOUT, &NewMessage::Serving).await {
        Ok(()) => {
            let Prepared { mut child, sender, thread, messages } = successor;
            let (child, pause) = (child.0.take(), begun.elapsed());
            Ok(HandedOver { child, sender, thread, messages, paused, pause })
        }
        Err(error) => {
            running.take_back().await;
            drop(paused);
            Err(error)
        }
    }
}

impl Prepared {
    /// Starts the program with the arguments of this process, and sends it the sockets.
    fn start(program: &Path, inheritance: &Inheritance) -> Result<Self, UpgradeError> {
        let fail =
            |source| UpgradeError::NotStarted { program: program.display().to_string(), source };
        let (stream, input) = UnixStream::pair().map_err(fail)?;
        let mut command = Command::new(program);
        command
            .args(&inheritance.start.arguments)
            .arg(TAKE_OVER)
            // The watchdog watches the new host as soon as it is the main process. The sockets of
            // the service manager are among those that are handed over.
            .env_remove("WATCHDOG_PID")
            .env_remove("LISTEN_PID")
            .env_remove("LISTEN_FDS")
            .env_remove("LISTEN_FDNAMES")
            .stdin(Stdio::from(OwnedFd::from(input)));
        let child = KillOnDrop(Some(command.spawn().map_err(fail)?));
        let (sender, thread, messages) = channel::open(stream).map_err(fail)?;
        let state_dir = inheritance.state_dir.clone();
        sender.send(&OldMessage::Begin { protocol: PROTOCOL, state_dir });
        for (id, copy) in &inheritance.listeners {
            let descriptor = copy.descriptor().map_err(fail)?;
            let (id, is_activated) = (id.clone(), copy.leaves_file());
            sender.send_with(&OldMessage::Listener { id, is_activated }, vec![descriptor]);
        }
        sender.send(&OldMessage::Prepare);
        Ok(Self { child, sender, thread, messages })
    }

    /// Waits for a message. If another one arrives, or none, the new host is killed.
    async fn expect(
        &mut self,
        what: &'static str,
        timeout: Duration,
        expected: &NewMessage,
    ) -> Result<(), UpgradeError> {
        let received = tokio::time::timeout(timeout, self.messages.recv()).await;
        let error = match received.map(|received| received.map(|(message, _)| message)) {
            Ok(Some(message))
                if std::mem::discriminant(&message) == std::mem::discriminant(expected) =>
            {
                return Ok(());
            }
            Ok(Some(NewMessage::Failed(error))) => UpgradeError::Failed(error),
            Ok(Some(_)) => UpgradeError::Protocol,
            Ok(None) => {
                let ended = async { self.child.0.as_mut()?.wait().await.ok() };
                let status = tokio::time::timeout(EXIT_TIMEOUT, ended).await.ok().flatten();
                let status = status.map(|status| status.to_string());
                UpgradeError::Ended(status.unwrap_or_else(|| "it is still running".to_owned()))
            }
            Err(_) => UpgradeError::TimedOut { what, timeout },
        };
        self.kill().await;
        Err(error)
    }

    /// Kills the new host, and waits for its end.
    async fn kill(&mut self) {
        if let Some(child) = &mut self.child.0 {
            // Fails only if it has ended.
            child.kill().await.ok();
        }
    }
}
