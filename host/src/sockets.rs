//! Listening sockets that this process has from another one: from the host that it replaces, or
//! from the service manager (`sd_listen_fds(3)`).

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// A listener, as the configuration names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ListenerId {
    /// The listener for clients with this configured address, whose port may be 0.
    Clients(String),
    /// The socket of the admin API.
    AdminSocket(PathBuf),
    /// The port of the admin API.
    AdminPort(String),
    /// The port for a proxy, of `pointsman pick`.
    Picks(String),
}

impl ListenerId {
    /// Returns the address as the configuration writes it.
    pub(crate) fn address(&self) -> String {
        match self {
            Self::Clients(address) | Self::AdminPort(address) | Self::Picks(address) => {
                address.clone()
            }
            Self::AdminSocket(path) => format!("unix:{}", path.display()),
        }
    }
}

/// Listening sockets of another process.
#[derive(Debug, Default)]
pub(crate) struct Sockets {
    /// Those of the host before.
    inherited: Vec<(ListenerId, Socket)>,
    /// Those of the service manager, by the addresses at which they listen.
    activated: Vec<(String, OwnedFd)>,
}

/// A socket that another process has.
#[derive(Debug)]
pub(crate) struct Socket {
    pub(crate) descriptor: OwnedFd,
    /// The service manager has it, and its file.
    pub(crate) is_activated: bool,
}

impl Sockets {
    /// Returns those of the host before.
    pub(crate) fn inherited(inherited: Vec<(ListenerId, Socket)>) -> Self {
        Self { inherited, activated: Vec::new() }
    }

    /// Returns those of the service manager. Must be called once, before other files are opened.
    pub(crate) fn activated() -> Self {
        let activated = passed().into_iter().filter_map(|socket| {
            let address = address_of(&socket);
            if address.is_none() {
                tracing::warn!("the service manager has passed a socket that is not a listener");
            }
            Some((address?, socket))
        });
        Self { inherited: Vec::new(), activated: activated.collect() }
    }

    /// Takes the socket of a listener.
    pub(crate) fn take(&mut self, id: &ListenerId) -> Option<Socket> {
        if let Some(index) = self.inherited.iter().position(|(known, _)| known == id) {
            return Some(self.inherited.swap_remove(index).1);
        }
        let address = id.address();
        let index = self.activated.iter().position(|(known, _)| *known == address)?;
        let (_, descriptor) = self.activated.swap_remove(index);
        Some(Socket { descriptor, is_activated: true })
    }

    /// Closes those that the configuration does not have.
    pub(crate) fn close(self) {
        for (address, _) in self.activated {
            tracing::warn!(
                event = "socket_unused",
                address,
                "the service manager has passed a socket that the configuration does not have"
            );
        }
    }
}

/// Returns the sockets that the service manager has passed to this process.
fn passed() -> Vec<OwnedFd> {
    /// The number of the first one.
    const FIRST: i32 = 3;
    /// Maximum number of sockets.
    const MAX: i32 = 256;
    let number = |name: &str| std::env::var(name).ok()?.parse::<i32>().ok();
    let is_own = number("LISTEN_PID").map(i32::cast_unsigned) == Some(std::process::id());
    let count = number("LISTEN_FDS").filter(|_| is_own).unwrap_or_default();
    (FIRST..FIRST + count.clamp(0, MAX)).filter_map(own).collect()
}

/// Takes a descriptor, which engines must not inherit.
#[expect(unsafe_code, reason = "the service manager passes descriptors by number")]
fn own(number: i32) -> Option<OwnedFd> {
    use std::os::fd::FromRawFd as _;
    // SAFETY: asks for the flags of a descriptor, which may be closed.
    if unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return None;
    }
    // SAFETY: the descriptor is open, and the service manager has passed it to this process, in
    // which nothing else knows its number: this is called once at the start.
    Some(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Returns the address at which a socket listens, as the configuration writes it.
fn address_of(socket: &OwnedFd) -> Option<String> {
    let copy = || socket.try_clone().ok();
    if let Ok(address) = std::net::TcpListener::from(copy()?).local_addr() {
        return Some(address.to_string());
    }
    let address = std::os::unix::net::UnixListener::from(copy()?).local_addr().ok()?;
    Some(format!("unix:{}", address.as_pathname()?.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_are_found_by_id_or_address() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = tcp.local_addr().unwrap().to_string();
        let unix = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let (tcp, unix) = (OwnedFd::from(tcp), OwnedFd::from(unix));
        let activated =
            [&tcp, &unix].map(|socket| (address_of(socket).unwrap(), socket.try_clone().unwrap()));
        let id = ListenerId::Clients("127.0.0.1:0".to_owned());
        let socket = Socket { descriptor: tcp, is_activated: false };
        let mut sockets =
            Sockets { inherited: vec![(id.clone(), socket)], activated: activated.into() };
        assert!(sockets.take(&id).is_some_and(|socket| !socket.is_activated));
        assert!(sockets.take(&id).is_none());
        let port = ListenerId::AdminPort(port);
        assert!(sockets.take(&port).is_some_and(|socket| socket.is_activated));
        assert!(sockets.take(&ListenerId::AdminSocket(path)).is_some());
        assert!(sockets.activated.is_empty());
    }
}
