//! Who is at the other end of a Unix socket.

use tokio::net::UnixStream;

/// The user of the process that has connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PeerUid(pub(crate) u32);

impl PeerUid {
    /// Returns the user at the other end of a connection, as the kernel knows it.
    pub(crate) fn from_stream(stream: &UnixStream) -> Option<Self> {
        stream.peer_cred().ok().map(|credentials| Self(credentials.uid()))
    }
}
