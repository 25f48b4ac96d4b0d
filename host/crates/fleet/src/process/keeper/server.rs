//! The keeper process: one thread, which waits for hosts, for the ends of engines and, while no
//! host is attached, for the engines' output.

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::SocketFlags;
use serde_json::Value;
use tokio::signal::unix::SignalKind;

use super::connection::{Connection, set_nonblocking};
use super::end::end_all;
use super::engine::KeptEngine;
use super::message::{PROTOCOL, Refusal, Report, Request};
use crate::process::command::StartPlan;
use crate::process::marker::Marker;
use crate::process::record::Record;

/// Maximum number of connections of hosts that have not said hello, and their maximum age.
const MAX_NEWCOMERS: usize = 8;
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the keeper waits for its first host.
const FIRST_HOST_TIMEOUT: Duration = Duration::from_secs(30);
/// The interval of looks at engines whose end the kernel does not report.
const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// Maximum number of listening sockets that are kept.
const MAX_LISTENERS: usize = 64;

/// Runs the keeper on its standard input, which is either a listening socket or a connection to the
/// only host. Returns when no host needs it any more, and none of the engines' processes is left.
/// The state directory is only named in messages.
pub fn keeper_main(socket: impl AsFd, state_dir: Option<&Path>) -> ExitCode {
    let runtime = ignore_termination_signals();
    let survivors = Keeper::new(socket.as_fd()).map(Keeper::run);
    if let Ok(runtime) = runtime {
        // Dropping a runtime within another one panics.
        runtime.shutdown_background();
    }
    let problem = match survivors {
        Ok(survivors) if survivors.is_empty() => return ExitCode::SUCCESS,
        Ok(survivors) => format!("processes still alive after SIGKILL: {}", survivors.join(", ")),
        Err(error) => error.to_string(),
    };
    let name = state_dir.map(|dir| format!(" of {}", dir.display())).unwrap_or_default();
    // The terminal may be gone with the host, and there is no other place to report this.
    writeln!(io::stderr(), "keeper{name}: {problem}").ok();
    ExitCode::FAILURE
}

/// Ignores the signals that tell the host to stop: stopping its engines may take a while, and the
/// keeper has to be there until then. A handler of tokio stays installed when its listener is
/// dropped, and unlike an ignored signal, it is not inherited by engines.
fn ignore_termination_signals() -> io::Result<tokio::runtime::Runtime> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let entered = runtime.enter();
    for kind in [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()] {
        drop(tokio::signal::unix::signal(kind));
    }
    drop(entered);
    Ok(runtime)
}

#[derive(Debug)]
struct Keeper {
    /// `None` if the keeper has one host only.
    listener: Option<OwnedFd>,
    newcomers: Vec<Connection>,
    owner: Option<Connection>,
    /// The process id of the host that may replace the owner.
    successor: Option<u32>,
    grace: Duration,
    /// When the engines are ended, while no host is attached.
    deadline: Option<Instant>,
    had_owner: bool,
    /// The owner has announced that it stops.
    farewell: bool,
    engines: BTreeMap<Marker, KeptEngine>,
    listeners: BTreeMap<String, OwnedFd>,
}

impl Keeper {
    fn new(socket: BorrowedFd<'_>) -> io::Result<Self> {
        let socket = socket.try_clone_to_owned()?;
        let (listener, newcomers) = match rustix::net::sockopt::socket_acceptconn(&socket)? {
            true => {
                set_nonblocking(&socket)?;
                (Some(socket), Vec::new())
            }
            false => (None, vec![Connection::new(socket)?]),
        };
        Ok(Self {
            listener,
            newcomers,
            owner: None,
            successor: None,
            grace: Duration::ZERO,
            deadline: Some(Instant::now() + FIRST_HOST_TIMEOUT),
            had_owner: false,
            farewell: false,
            engines: BTreeMap::new(),
            listeners: BTreeMap::new(),
        })
    }

    /// Runs until no host needs the keeper, ends the engines that are left, and returns the
    /// processes that survived.
    fn run(mut self) -> Vec<String> {
        while !self.is_done() {
            self.wait();
            self.serve_owner();
            self.greet_newcomers();
            self.look_at_engines();
        }
        end_all(self.engines.into_values().map(|engine| engine.record).collect())
    }

    fn is_done(&self) -> bool {
        if self.owner.is_some() || !self.newcomers.is_empty() {
            return false;
        }
        let runs = |engine: &KeptEngine| engine.ended().is_none();
        let is_needed =
            !self.had_owner || self.engines.values().any(runs) || !self.listeners.is_empty();
        let has_time = self.deadline.is_some_and(|deadline| Instant::now() < deadline);
        self.listener.is_none() || !is_needed || !has_time
    }

    /// Waits until there is something to do.
    fn wait(&self) {
        let readable = PollFlags::IN;
        let mut sources = Vec::new();
        sources.extend(self.listener.as_ref().map(|listener| (listener.as_fd(), readable)));
        sources.extend(self.newcomers.iter().map(|newcomer| (newcomer.socket(), readable)));
        sources.extend(self.owner.iter().map(|owner| {
            let sending = if owner.is_sending() { PollFlags::OUT } else { PollFlags::empty() };
            (owner.socket(), readable | sending)
        }));
        sources
            .extend(self.engines.values().filter_map(|engine| Some((engine.pidfd()?, readable))));
        if self.owner.is_none() {
            let pipes = self.engines.values().flat_map(KeptEngine::pipes);
            sources.extend(pipes.map(|pipe| (pipe, readable)));
        }
        let mut sources: Vec<PollFd<'_>> =
            sources.iter().map(|(file, flags)| PollFd::from_borrowed_fd(*file, *flags)).collect();
        let timeout = self.timeout().and_then(|timeout| Timespec::try_from(timeout).ok());
        // An interruption by a signal is a reason to look again, too.
        rustix::event::poll(&mut sources, timeout.as_ref()).ok();
    }

    fn timeout(&self) -> Option<Duration> {
        let now = Instant::now();
        let hello = self.newcomers.iter().map(|newcomer| newcomer.since + HELLO_TIMEOUT);
        let deadline = self.deadline.filter(|_| self.owner.is_none());
        let due = hello.chain(deadline).map(|due| due.saturating_duration_since(now));
        let polled = self.engines.values().any(KeptEngine::needs_polling).then_some(POLL_INTERVAL);
        due.chain(polled).min()
    }

    /// Accepts connections, and attaches or refuses those that have said hello.
    fn greet_newcomers(&mut self) {
        while let Some(listener) = &self.listener
            && let Ok(socket) = rustix::net::accept_with(listener, SocketFlags::CLOEXEC)
        {
            // One of another user, or that is gone already, is dropped.
            self.newcomers.extend(Connection::new(socket));
        }
        let excess = self.newcomers.len().saturating_sub(MAX_NEWCOMERS);
        self.newcomers.drain(..excess);
        for mut newcomer in std::mem::take(&mut self.newcomers) {
            let (mut received, open) = newcomer.receive(true);
            match received.pop() {
                Some(Ok((Request::Hello { protocol, grace_ms }, _))) => {
                    self.attach(newcomer, protocol, Duration::from_millis(grace_ms));
                }
                Some(_) => refuse(newcomer, Refusal::Invalid, None),
                None if open && newcomer.since.elapsed() < HELLO_TIMEOUT => {
                    self.newcomers.push(newcomer);
                }
                None => {}
            }
        }
    }

    /// Makes a host the owner and tells it what the keeper has, or refuses it.
    fn attach(&mut self, mut host: Connection, protocol: u32, grace: Duration) {
        if protocol != PROTOCOL {
            return refuse(host, Refusal::Protocol, None);
        }
        if let Some(owner) = &self.owner
            && self.successor != Some(host.pid)
        {
            return refuse(host, Refusal::InUse, Some(owner.pid));
        }
        let mut reports = Vec::new();
        for engine in self.engines.values_mut() {
            let (pipes, output) = engine.share_outputs();
            let (record, ended) = (engine.record.to_json(), engine.ended());
            reports.push((Report::Engine { record, output, ended }, pipes));
        }
        for (name, listener) in &self.listeners {
            let listener = listener.try_clone().into_iter().collect();
            reports.push((Report::Listener { name: name.clone() }, listener));
        }
        reports.push((Report::Attached { pid: std::process::id() }, Vec::new()));
        let is_sent = reports.into_iter().all(|(report, files)| host.send(&report, files));
        // Engines stay with the last owner if this one is gone already.
        if !is_sent && self.owner.is_some() {
            return;
        }
        (self.grace, self.deadline, self.successor) = (grace, None, None);
        (self.had_owner, self.farewell) = (true, false);
        self.owner = Some(host);
        // What it sent together with its hello has been read already. It counts even if the host is
        // gone: the engines that it had are kept for the next one.
        self.serve_owner();
    }

    fn serve_owner(&mut self) {
        let Some(mut owner) = self.owner.take() else { return };
        let (_, is_open) = self.serve_received(&mut owner);
        if is_open && owner.flush() {
            self.owner = Some(owner);
            return;
        }
        // What a host that is gone has sent last still counts, such as its farewell.
        while self.serve_received(&mut owner).0 > 0 {}
        self.lose_owner();
    }

    /// Serves what has arrived. Returns the number of requests, and false if the connection has to
    /// end.
    fn serve_received(&mut self, owner: &mut Connection) -> (usize, bool) {
        let (received, mut is_open) = owner.receive(false);
        let mut count = 0;
        for request in received {
            let Ok((request, files)) = request else { return (0, false) };
            is_open &= self.serve(request, files, owner);
            count += 1;
        }
        (count, is_open)
    }

    /// Decides what becomes of the engines after the connection to the owner has ended.
    fn lose_owner(&mut self) {
        self.owner = None;
        let grace = if self.farewell { Duration::ZERO } else { self.grace };
        self.deadline = Some(Instant::now() + grace);
    }

    /// Serves one request of the owner. Returns false if the connection has to end.
    fn serve(&mut self, request: Request, files: Vec<OwnedFd>, owner: &mut Connection) -> bool {
        match request {
            Request::Hello { .. } => return false,
            Request::Start { id, record, plan } => {
                let report = self.start(id, &record, &plan, files);
                return owner.send(&report, Vec::new());
            }
            Request::Adopt { record } => {
                let Some(record) = Record::from_json(&record) else { return false };
                let marker = record.marker.clone();
                let adopted = || KeptEngine::new(record.clone(), files);
                self.engines.entry(marker).or_insert_with(adopted).record = record.clone();
            }
            Request::Update { record } => {
                let Some(record) = Record::from_json(&record) else { return false };
                if let Some(engine) = self.engines.get_mut(&record.marker) {
                    engine.record = record;
                }
            }
            Request::Forget { marker } => {
                let forgotten = Marker::parse(&marker).and_then(|key| self.engines.remove(&key));
                forgotten.iter().for_each(KeptEngine::reap);
            }
            Request::Deposit { name } => {
                let is_known = self.listeners.contains_key(&name);
                if let Some(file) = files.into_iter().next()
                    && (is_known || self.listeners.len() < MAX_LISTENERS)
                {
                    self.listeners.insert(name, file);
                }
            }
            Request::Withdraw { name } => drop(self.listeners.remove(&name)),
            Request::HandOver { pid } => self.successor = pid,
            Request::Farewell => self.farewell = true,
        }
        true
    }

    fn start(&mut self, id: u64, record: &Value, plan: &StartPlan, files: Vec<OwnedFd>) -> Report {
        let Some(record) = Record::from_json(record) else {
            return Report::NotStarted { id, errno: None, error: "invalid record".to_owned() };
        };
        match KeptEngine::start(record, plan, files) {
            Ok(engine) => {
                let leader = engine.record.leader;
                self.engines.insert(engine.record.marker.clone(), engine);
                let (pid, start) = leader.map_or((0, 0), |leader| (leader.pid, leader.start));
                Report::Started { id, pid, start }
            }
            Err(error) => {
                let errno = error.raw_os_error();
                Report::NotStarted { id, errno, error: error.to_string() }
            }
        }
    }

    /// Reports engines that have ended, and reads the output of the others if no host does.
    fn look_at_engines(&mut self) {
        let mut open = true;
        for (marker, engine) in &mut self.engines {
            if let Some(ended) = engine.look()
                && let Some(owner) = &mut self.owner
            {
                let report = Report::Ended { marker: marker.to_string(), ended };
                open &= owner.send(&report, Vec::new());
            }
            if self.owner.is_none() {
                engine.read_outputs();
            }
        }
        if !open {
            self.lose_owner();
        }
    }
}

fn refuse(mut host: Connection, code: Refusal, owner: Option<u32>) {
    // A host that does not read its refusal finds the connection closed.
    host.send(&Report::Refused { code, protocol: PROTOCOL, owner }, Vec::new());
}
