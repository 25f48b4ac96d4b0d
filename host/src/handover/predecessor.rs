//! The new host's side: it takes over from the host that has started it.

use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use pointsman_access::{Accounts, UsageBook};
use pointsman_domain::LaneState;
use pointsman_fleet::{Fleet, SlotMessage};
use pointsman_gateway::Drain;
use pointsman_store::Store;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::channel::{self, Received, Sender, SenderThread};
use super::message::{Handed, NewMessage, OldMessage, PROTOCOL};
use crate::sockets::{ListenerId, Socket, Sockets};

/// The maximum time for lanes that served before to serve again. Requests wait after that.
const LANES_TIMEOUT: Duration = Duration::from_secs(2);

/// The host before, from which this one takes over.
#[derive(Debug)]
pub(crate) struct TakeOver {
    sender: Sender<NewMessage>,
    /// Awaited after a failure, so that the host before learns the reason.
    thread: Option<SenderThread>,
    messages: UnboundedReceiver<Received<OldMessage>>,
    listeners: Vec<(ListenerId, Socket)>,
    state_dir: Option<PathBuf>,
}

/// What serves the requests of both hosts.
#[derive(Debug)]
pub(crate) struct Served {
    pub(crate) fleet: Fleet,
    pub(crate) book: Arc<UsageBook>,
    pub(crate) accounts: Arc<Accounts>,
    pub(crate) store: Store,
    pub(crate) drain: Drain,
}

impl TakeOver {
    /// Receives the sockets from the host that has started this one, on the standard input.
    ///
    /// # Errors
    /// If it is not such a host, or one of another version of the protocol.
    pub(crate) async fn begin() -> Result<Self> {
        let stream = io::stdin().as_fd().try_clone_to_owned().map(UnixStream::from);
        let opened = stream.and_then(channel::open::<NewMessage, OldMessage>);
        let (sender, thread, messages) =
            opened.context("failed to connect to the host that is to be replaced")?;
        let (thread, listeners, state_dir) = (Some(thread), Vec::new(), None);
        let mut take_over = Self { sender, thread, messages, listeners, state_dir };
        match take_over.receive_sockets().await {
            Ok(()) => Ok(take_over),
            Err(error) => {
                take_over.failure()(&error);
                Err(error)
            }
        }
    }

    async fn receive_sockets(&mut self) -> Result<()> {
        loop {
            match self.messages.recv().await {
                Some((OldMessage::Begin { protocol, state_dir: dir }, _)) => {
                    ensure!(
                        protocol == PROTOCOL,
                        "the running host has version {protocol} of the hand-over, expected \
                         {PROTOCOL} [protocol]; stop it and start this one"
                    );
                    self.state_dir = dir;
                }
                Some((OldMessage::Listener { id, is_activated }, descriptors)) => {
                    let socket = |descriptor| (id.clone(), Socket { descriptor, is_activated });
                    self.listeners.extend(descriptors.into_iter().map(socket));
                }
                Some((OldMessage::Prepare, _)) => return Ok(()),
                Some(_) => bail!("unexpected message of the running host [protocol]"),
                None => bail!("`--take-over` is used by `pointsman upgrade` only"),
            }
        }
    }

    /// Checks that both hosts have the same state directory, in which this one finds the engines.
    ///
    /// # Errors
    /// If the configuration has another one.
    pub(crate) fn check_state_dir(&self, state_dir: Option<&Path>) -> Result<()> {
        ensure!(
            self.state_dir.as_deref() == state_dir,
            "another state directory (`state.dir`) needs a stop and a start [state_dir]"
        );
        Ok(())
    }

    /// Takes the sockets that the host before listens on.
    pub(crate) fn take_sockets(&mut self) -> Sockets {
        Sockets::inherited(std::mem::take(&mut self.listeners))
    }

    /// Reports that this host is prepared, and waits until it is to take over.
    ///
    /// # Errors
    /// If the host before has ended, or wants it no more.
    pub(crate) async fn prepared(&mut self) -> Result<Handed> {
        self.sender.send(&NewMessage::Prepared);
        match self.messages.recv().await {
            Some((OldMessage::Go(handed), _)) => Ok(handed),
            Some(_) => bail!("unexpected message of the running host [protocol]"),
            None => bail!("the running host does not hand over"),
        }
    }

    /// Returns what reports why this host cannot take over.
    pub(crate) fn failure(&mut self) -> impl FnOnce(&anyhow::Error) + Send + use<> {
        let (sender, thread) = (self.sender.clone(), self.thread.take());
        move |error| {
            sender.send(&NewMessage::Failed(format!("{error:#}")));
            thread.into_iter().for_each(SenderThread::finish);
        }
    }

    /// Takes over the requests of the host before. To be called before the first connection is
    /// accepted; returns what serves the host before until it ends.
    pub(crate) async fn succeed(
        self,
        handed: Handed,
        served: Served,
    ) -> impl Future<Output = ()> + Send + use<> {
        let Self { sender, mut messages, .. } = self;
        let view = served.fleet.wait_for(|view| {
            let is_settled = |name: &String| {
                let stat = view.topology.find(name).and_then(|lane| view.stat(lane));
                stat.is_none_or(|stat| stat.state != LaneState::Starting)
            };
            handed.serving.iter().all(is_settled)
        });
        tokio::time::timeout(LANES_TIMEOUT, view).await.ok();
        let (replies, mut replied) = unbounded_channel();
        let predecessor = served.fleet.succeed(handed.requests, replies);
        // What the host before is doing counts as requests in flight.
        let hold = served.drain.hold_for_predecessor();
        async move {
            let _hold = hold;
            let (slots, slot_messages) = unbounded_channel();
            let receive = async {
                while let Some((message, _)) = messages.recv().await {
                    take(message, &served, &slots, &sender);
                }
            };
            let reply = async {
                while let Some(reply) = replied.recv().await {
                    sender.send(&NewMessage::Slot(reply));
                }
            };
            let stop = async {
                served.drain.stopping().cancelled().await;
                sender.send(&NewMessage::Stop);
                std::future::pending::<()>().await;
            };
            tokio::select! {
                () = receive => {}
                () = predecessor.serve(slot_messages) => {}
                ((), ()) = futures_util::future::join(reply, stop) => {}
            }
            tracing::info!(event = "predecessor_ended", "the host before has ended");
        }
    }

    /// Returns what reports that this host has taken over.
    pub(crate) fn serving(&self) -> impl FnOnce() + Send + use<> {
        let sender = self.sender.clone();
        move || sender.send(&NewMessage::Serving)
    }
}

/// Takes over what the host before has done.
fn take(
    message: OldMessage,
    served: &Served,
    slots: &UnboundedSender<SlotMessage>,
    sender: &Sender<NewMessage>,
) {
    match message {
        // Fails only if the fleet has ended.
        OldMessage::Slot(message) => drop(slots.send(message)),
        OldMessage::Usage { rows, budgets } => {
            rows.iter().for_each(|row| served.book.add(row));
            served.accounts.add(budgets);
        }
        OldMessage::Store(change) => served.store.apply(change),
        OldMessage::Read { id, namespace, key } => {
            let (store, sender) = (served.store.clone(), sender.clone());
            // Not awaited: the answer is a message.
            drop(tokio::task::spawn_blocking(move || {
                let value = store.read(&namespace, &key).map_err(|error| error.to_string());
                sender.send(&NewMessage::Value { id, value });
            }));
        }
        OldMessage::Begin { .. }
        | OldMessage::Listener { .. }
        | OldMessage::Prepare
        | OldMessage::Go(_) => {}
    }
}
