//! The keeper's end of a connection to a host. It never blocks.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use rustix::fs::OFlags;

use super::message::{Refusal, Report, Request};
use super::wire::{FrameReceiver, OutgoingFrame};

/// Maximum number of bytes that wait for a host to read them.
const MAX_UNSENT: usize = 32 << 20;

/// A connection to a host.
#[derive(Debug)]
pub(super) struct Connection {
    socket: OwnedFd,
    receiver: FrameReceiver,
    outgoing: VecDeque<OutgoingFrame>,
    unsent: usize,
    /// The process id of the host.
    pub(super) pid: u32,
    pub(super) since: Instant,
}

/// A request with its descriptors, or the reason why the message was not one.
pub(super) type Received = Result<(Request, Vec<OwnedFd>), Refusal>;

impl Connection {
    /// Takes a connection from a process of the keeper's own user.
    pub(super) fn new(socket: OwnedFd) -> io::Result<Self> {
        set_nonblocking(&socket)?;
        let peer = rustix::net::sockopt::socket_peercred(&socket)?;
        if peer.uid != rustix::process::geteuid() {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let pid = u32::try_from(peer.pid.as_raw_nonzero().get()).unwrap_or_default();
        let (receiver, outgoing, since) =
            (FrameReceiver::default(), VecDeque::new(), Instant::now());
        Ok(Self { socket, receiver, outgoing, unsent: 0, pid, since })
    }

    pub(super) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Returns true if there is something to send.
    pub(super) fn is_sending(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Returns the messages that have arrived, at most one if `first_only`, and whether the
    /// connection is open.
    pub(super) fn receive(&mut self, first_only: bool) -> (Vec<Received>, bool) {
        let open = match self.receiver.receive(&self.socket) {
            Ok(open) => open,
            Err(error) => error.kind() == io::ErrorKind::WouldBlock,
        };
        let mut received = Vec::new();
        loop {
            match self.receiver.next_frame() {
                Ok(Some(frame)) => {
                    let request = serde_json::from_slice(&frame.message);
                    let request = request.map_err(|_| Refusal::Invalid);
                    received.push(request.map(|request| (request, frame.descriptors)));
                    if first_only {
                        return (received, open);
                    }
                }
                Ok(None) => return (received, open),
                Err(_) => return (received, false),
            }
        }
    }

    /// Queues a message and sends what the socket takes. Returns false if the connection has to be
    /// closed: the host does not read, or is gone.
    pub(super) fn send(&mut self, report: &Report, descriptors: Vec<OwnedFd>) -> bool {
        let Ok(message) = serde_json::to_vec(report) else { return false };
        let outgoing = OutgoingFrame::new(&message, descriptors);
        self.unsent += outgoing.left();
        self.outgoing.push_back(outgoing);
        self.flush() && self.unsent <= MAX_UNSENT
    }

    /// Sends what the socket takes. Returns false if the host is gone.
    pub(super) fn flush(&mut self) -> bool {
        while let Some(first) = self.outgoing.front_mut() {
            let before = first.left();
            let sent = first.send(&self.socket);
            self.unsent -= before - first.left();
            match sent {
                Ok(true) => drop(self.outgoing.pop_front()),
                Ok(false) => return true,
                Err(_) => return false,
            }
        }
        true
    }
}

pub(super) fn set_nonblocking(file: impl AsFd) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(&file)?;
    Ok(rustix::fs::fcntl_setfl(&file, flags | OFlags::NONBLOCK)?)
}
