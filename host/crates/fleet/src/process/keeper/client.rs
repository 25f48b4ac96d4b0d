//! The host's handle to the keeper. A thread receives the keeper's messages, notices at once when
//! the keeper has ended, and starts another one, which takes the engines over.

use std::collections::BTreeMap;
use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};

use super::end::KILL_TIMEOUT;
use super::establish::{KeeperError, KeeperSettings, Link, Reported, establish};
use super::message::{Ended, Report, Request};
use super::wire::{Frame, FrameReceiver};
use crate::process::command::StartPlan;
use crate::process::marker::Marker;
use crate::process::proc::{self, Id};
use crate::process::record::Record;

/// The pauses between attempts to start a keeper.
const MIN_RETRY: Duration = Duration::from_millis(100);
const MAX_RETRY: Duration = Duration::from_secs(30);
/// The interval of checks whether the engines of another host are taken back.
const RELEASED_INTERVAL: Duration = Duration::from_millis(20);
/// The interval of checks whether the keeper has ended.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// The handle to the keeper. Dropping it ends the engines that are left, unless another host has
/// taken them over.
#[derive(Debug)]
pub(in crate::process) struct Keeper(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    settings: KeeperSettings,
    /// `None` while there is no keeper. Locked before the others.
    link: Mutex<Option<Link>>,
    engines: Mutex<BTreeMap<Marker, Entry>>,
    listeners: Mutex<BTreeMap<String, OwnedFd>>,
    starts: Mutex<BTreeMap<u64, oneshot::Sender<io::Result<Id>>>>,
    next_start: AtomicU64,
    /// The host needs no keeper any more.
    closing: AtomicBool,
    /// The host has announced that it stops.
    stopping: AtomicBool,
    /// Another host has been announced.
    handing_over: AtomicBool,
    /// True while another host has the engines.
    released: watch::Sender<bool>,
}

/// An engine that another keeper would take over.
#[derive(Debug)]
struct Entry {
    record: Record,
    pipes: Vec<OwnedFd>,
    ended: watch::Sender<Option<Ended>>,
}

impl Keeper {
    /// Attaches to the keeper of an earlier host, or starts one. Returns the engines that the
    /// earlier host has left. Blocks.
    ///
    /// # Errors
    /// If the keeper works for another host, has another version, or cannot be started.
    pub(in crate::process) fn open(
        settings: KeeperSettings,
    ) -> Result<(Self, Vec<Reported>), KeeperError> {
        let mut link = establish(&settings)?;
        let reported = std::mem::take(&mut link.engines);
        let engines = reported.iter().map(|engine| {
            let pipes = engine.pipes.iter().filter_map(|pipe| pipe.try_clone().ok()).collect();
            let ended = watch::Sender::new(engine.ended);
            (engine.record.marker.clone(), Entry { record: engine.record.clone(), pipes, ended })
        });
        let (engines, listeners) = (engines.collect(), std::mem::take(&mut link.listeners));
        let stream = link.stream.try_clone().map_err(KeeperError::Io)?;
        let receiver = std::mem::take(&mut link.receiver);
        let shared = Arc::new(Shared {
            settings,
            link: Mutex::new(Some(link)),
            engines: Mutex::new(engines),
            listeners: Mutex::new(listeners.into_iter().collect()),
            starts: Mutex::default(),
            next_start: AtomicU64::new(0),
            closing: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            handing_over: AtomicBool::new(false),
            released: watch::Sender::new(false),
        });
        let weak = Arc::downgrade(&shared);
        let thread = std::thread::Builder::new().name("keeper".into());
        thread.spawn(move || receive(&weak, stream, receiver)).map_err(KeeperError::Io)?;
        Ok((Self(shared), reported))
    }

    /// Returns the process id of the keeper, if it is running.
    pub(in crate::process) fn id(&self) -> Option<u32> {
        self.0.link.lock().as_ref().map(|link| link.pid)
    }

    /// Starts an engine; its record and the read ends of its pipes are kept for another keeper.
    /// Returns `None` if there is no keeper.
    pub(in crate::process) fn start(
        &self,
        record: &Record,
        plan: StartPlan,
        write: [OwnedFd; 2],
        read: &[OwnedFd],
    ) -> Option<oneshot::Receiver<io::Result<Id>>> {
        let mut files: Vec<OwnedFd> = write.into();
        files.extend(read.iter().filter_map(|pipe| pipe.try_clone().ok()));
        let link = self.0.link.lock();
        let id = self.0.next_start.fetch_add(1, Ordering::Relaxed);
        let (sender, result) = oneshot::channel();
        self.0.starts.lock().insert(id, sender);
        let request = Request::Start { id, record: record.to_json(), plan };
        let sent = link.as_ref().map(|link| link.send(&request, files));
        if let Some(Ok(())) = sent {
            return Some(result);
        }
        self.0.starts.lock().remove(&id);
        None
    }

    /// Notes an engine that is being started, or that this host has started itself, for the next
    /// keeper.
    pub(in crate::process) fn note(&self, record: &Record, pipes: &[OwnedFd]) {
        let pipes = pipes.iter().filter_map(|pipe| pipe.try_clone().ok()).collect();
        let entry = Entry { record: record.clone(), pipes, ended: watch::Sender::new(None) };
        self.0.engines.lock().insert(record.marker.clone(), entry);
    }

    /// Hands an engine to the keeper that another process has started.
    pub(in crate::process) fn adopt(&self, record: &Record, pipes: &[OwnedFd]) {
        self.note(record, pipes);
        let pipes = pipes.iter().filter_map(|pipe| pipe.try_clone().ok()).collect();
        self.send(&Request::Adopt { record: record.to_json() }, pipes);
    }

    /// Replaces the record of an engine.
    pub(in crate::process) fn update(&self, record: &Record) {
        if let Some(entry) = self.0.engines.lock().get_mut(&record.marker) {
            entry.record.clone_from(record);
        }
        self.send(&Request::Update { record: record.to_json() }, Vec::new());
    }

    /// Forgets an engine of which no process is left.
    pub(in crate::process) fn forget(&self, marker: &Marker) {
        if self.0.engines.lock().remove(marker).is_some() {
            self.send(&Request::Forget { marker: marker.to_string() }, Vec::new());
        }
    }

    /// Forgets all engines but those that `keep` returns true for. No process of the others is
    /// left.
    pub(in crate::process) fn retain(&self, keep: impl Fn(&Marker) -> bool) {
        let all: Vec<Marker> = self.0.engines.lock().keys().cloned().collect();
        all.iter().filter(|marker| !keep(marker)).for_each(|marker| self.forget(marker));
    }

    /// Returns the read ends of an engine's pipes, and what tells the end of its first process.
    pub(in crate::process) fn watch(&self, marker: &Marker) -> Option<Held> {
        let engines = self.0.engines.lock();
        let entry = engines.get(marker)?;
        let pipes = entry.pipes.iter().filter_map(|pipe| pipe.try_clone().ok()).collect();
        Some(Held { pipes, ended: entry.ended.subscribe() })
    }

    /// Keeps a listening socket for the next host.
    pub(in crate::process) fn deposit(&self, name: &str, socket: OwnedFd) -> io::Result<()> {
        let copy = socket.as_fd().try_clone_to_owned()?;
        self.0.listeners.lock().insert(name.to_owned(), copy);
        self.send(&Request::Deposit { name: name.to_owned() }, vec![socket]);
        Ok(())
    }

    /// Closes a listening socket that was kept.
    pub(in crate::process) fn withdraw(&self, name: &str) {
        self.0.listeners.lock().remove(name);
        self.send(&Request::Withdraw { name: name.to_owned() }, Vec::new());
    }

    /// Returns the listening sockets that are kept.
    pub(in crate::process) fn deposited(&self) -> Vec<(String, OwnedFd)> {
        let listeners = self.0.listeners.lock();
        let copy = |(name, file): (&String, &OwnedFd)| Some((name.clone(), file.try_clone().ok()?));
        listeners.iter().filter_map(copy).collect()
    }

    /// Announces that the host with this process id attaches next. When it has attached, the
    /// engines are [released](Keeper::is_released). `None` takes that back: if the other host has
    /// attached and has ended since, this host attaches again.
    pub(in crate::process) fn hand_over(&self, successor: Option<u32>) {
        self.0.handing_over.store(successor.is_some(), Ordering::Release);
        self.send(&Request::HandOver { pid: successor }, Vec::new());
    }

    /// Announces that the host stops: what is left of its engines is ended with its connection.
    pub(in crate::process) fn farewell(&self) {
        self.0.stopping.store(true, Ordering::Release);
        if !self.is_released() {
            self.send(&Request::Farewell, Vec::new());
        }
    }

    /// Returns true if another host has taken the engines over.
    pub(in crate::process) fn is_released(&self) -> bool {
        *self.0.released.borrow()
    }

    /// Returns what tells whether another host has taken the engines over.
    pub(in crate::process) fn released(&self) -> watch::Receiver<bool> {
        self.0.released.subscribe()
    }

    /// Ends the connection as if the host had been killed.
    #[cfg(test)]
    pub(in crate::process) fn cut(&self) {
        self.0.closing.store(true, Ordering::Release);
        self.0.released.send_replace(true);
        self.0.engines.lock().clear();
        if let Some(link) = self.0.link.lock().take() {
            link.stream.shutdown(Shutdown::Both).unwrap();
        }
    }

    /// Fails only if the keeper has ended. The next one is told all that is needed.
    fn send(&self, request: &Request, files: Vec<OwnedFd>) {
        if let Some(link) = &*self.0.link.lock() {
            link.send(request, files).ok();
        }
    }
}

/// What a host needs of an engine that the keeper has.
#[derive(Debug)]
pub(in crate::process) struct Held {
    pub(in crate::process) pipes: Vec<OwnedFd>,
    pub(in crate::process) ended: watch::Receiver<Option<Ended>>,
}

impl Drop for Keeper {
    /// Waits until the keeper has ended the engines that are left, so that a host that is restarted
    /// immediately finds none of the old processes.
    fn drop(&mut self) {
        self.farewell();
        self.0.closing.store(true, Ordering::Release);
        let Some(mut link) = self.0.link.lock().take() else { return };
        // Wakes the thread up. Fails only if the keeper has ended.
        link.stream.shutdown(Shutdown::Both).ok();
        if self.is_released() {
            return;
        }
        let keeper = proc::snapshot(link.pid).map(|process| process.id);
        let runs = |link: &mut Link| match &mut link.child {
            Some(child) => matches!(child.try_wait(), Ok(None)),
            None => keeper.is_some_and(proc::is_running),
        };
        // One second more than the keeper allows itself.
        let deadline = Instant::now() + KILL_TIMEOUT + Duration::from_secs(1);
        while runs(&mut link) && Instant::now() < deadline {
            proc::pause(POLL_INTERVAL);
        }
    }
}

/// Receives the messages of the keeper, and those of the next one after its end, until the host
/// needs none.
fn receive(
    shared: &Weak<Shared>,
    mut stream: std::os::unix::net::UnixStream,
    mut receiver: FrameReceiver,
) {
    loop {
        let open = receiver.receive(&stream).unwrap_or(false);
        let Some(shared) = shared.upgrade() else { return };
        let valid = loop {
            match receiver.next_frame() {
                Ok(Some(frame)) => shared.handle(&frame),
                Ok(None) => break true,
                Err(_) => break false,
            }
        };
        if !open || !valid {
            let Some(next) = shared.restore() else { return };
            (stream, receiver) = (next, FrameReceiver::default());
        }
    }
}

impl Shared {
    fn handle(&self, frame: &Frame) {
        match serde_json::from_slice(&frame.message) {
            Ok(Report::Started { id, pid, start }) => self.answer(id, Ok(Id { pid, start })),
            Ok(Report::NotStarted { id, errno, error }) => {
                let error =
                    errno.map_or_else(|| io::Error::other(error), io::Error::from_raw_os_error);
                self.answer(id, Err(error));
            }
            Ok(Report::Ended { marker, ended }) => {
                let engines = self.engines.lock();
                if let Some(entry) = Marker::parse(&marker).and_then(|key| engines.get(&key)) {
                    entry.ended.send_replace(Some(ended));
                }
            }
            Ok(Report::Refused { code, protocol, .. }) => {
                tracing::error!(%code, protocol, "the keeper refused this host");
            }
            Ok(Report::Engine { .. } | Report::Listener { .. } | Report::Attached { .. }) => {}
            Err(error) => tracing::warn!(%error, "invalid message of the keeper"),
        }
    }

    fn answer(&self, id: u64, result: io::Result<Id>) {
        if let Some(waiting) = self.starts.lock().remove(&id) {
            // Fails only if the start was given up; its guard ends the engine then.
            waiting.send(result).ok();
        }
    }

    /// Gets another keeper after the end of the last one, and hands it the engines. Returns `None`
    /// if the host needs none.
    fn restore(&self) -> Option<std::os::unix::net::UnixStream> {
        let mut pause = MIN_RETRY;
        loop {
            if self.closing.load(Ordering::Acquire) {
                return None;
            }
            if self.handing_over.load(Ordering::Acquire) {
                // The keeper has closed the connection because the other host has attached.
                self.released.send_if_modified(|released| !std::mem::replace(released, true));
                proc::pause(RELEASED_INTERVAL);
                continue;
            }
            let mut link = self.link.lock();
            if let Some(Link { child: Some(mut child), .. }) = link.take() {
                // It has closed its connection, which it does at its end.
                reap(&mut child);
            }
            // What was being started is ended by its guard.
            self.starts.lock().clear();
            match establish(&self.settings).and_then(|new| {
                let stream = new.stream.try_clone()?;
                self.hand_in(&new)?;
                Ok((new, stream))
            }) {
                Ok((new, stream)) => {
                    tracing::warn!(
                        event = "keeper_restarted",
                        pid = new.pid,
                        "restarted the \
                        keeper, which had ended"
                    );
                    *link = Some(new);
                    self.released.send_if_modified(|released| std::mem::replace(released, false));
                    return Some(stream);
                }
                Err(error) => {
                    tracing::error!(%error, retry_s = pause.as_secs_f32(), "failed to restart the \
                        keeper; if the host is killed now, its engines are ended by the next one");
                }
            }
            drop(link);
            proc::pause(pause);
            pause = (pause * 2).min(MAX_RETRY);
        }
    }

    /// Tells a new keeper what the last one knew.
    fn hand_in(&self, link: &Link) -> io::Result<()> {
        let engines = self.engines.lock();
        for engine in &link.engines {
            if let (Some(entry), Some(ended)) = (engines.get(&engine.record.marker), engine.ended) {
                entry.ended.send_replace(Some(ended));
            }
        }
        for entry in engines.values().filter(|entry| entry.ended.borrow().is_none()) {
            let pipes = entry.pipes.iter().filter_map(|pipe| pipe.try_clone().ok()).collect();
            link.send(&Request::Adopt { record: entry.record.to_json() }, pipes)?;
        }
        drop(engines);
        if self.stopping.load(Ordering::Acquire) {
            link.send(&Request::Farewell, Vec::new())?;
        }
        for (name, listener) in &*self.listeners.lock() {
            let listener = vec![listener.try_clone()?];
            link.send(&Request::Deposit { name: name.clone() }, listener)?;
        }
        Ok(())
    }
}

/// Waits a moment for the end of a keeper.
fn reap(keeper: &mut std::process::Child) {
    let deadline = Instant::now() + Duration::from_secs(1);
    while matches!(keeper.try_wait(), Ok(None)) && Instant::now() < deadline {
        proc::pause(POLL_INTERVAL);
    }
}
