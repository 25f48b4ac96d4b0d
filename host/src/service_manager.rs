//! Tells the service manager about start and stop (`sd_notify(3)`), if it has asked for that with
//! `NOTIFY_SOCKET`.

use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// Reports that the host accepts requests.
pub(crate) fn ready() {
    notify("READY=1");
}

/// Reports that another process is the main one of the service from now on.
pub(crate) fn main_process(pid: u32) {
    notify(&format!("MAINPID={pid}"));
}

/// Reports that the host stops, and asks for this much time, however short the configured timeout
/// of the service (`TimeoutStopSec`) is.
pub(crate) fn stopping(limit: Duration) {
    notify(&stopping_message(limit));
}

fn stopping_message(limit: Duration) -> String {
    format!("STOPPING=1\nEXTEND_TIMEOUT_USEC={}", limit.as_micros())
}

fn notify(message: &str) {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET").filter(|socket| !socket.is_empty()) else {
        return;
    };
    if let Err(error) = send(socket.as_encoded_bytes(), message) {
        tracing::warn!(%error, "failed to notify the service manager");
    }
}

fn send(socket: &[u8], message: &str) -> io::Result<()> {
    let address = match socket.strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => {
            use std::os::unix::ffi::OsStrExt as _;
            SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(socket))?
        }
    };
    let datagram = UnixDatagram::unbound()?;
    // A service manager that does not read must not hold up the host.
    datagram.set_nonblocking(true)?;
    datagram.send_to_addr(message.as_bytes(), &address)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_reach_named_and_abstract_sockets() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let name = format!("pointsman-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let sockets = [
            (UnixDatagram::bind(&path).unwrap(), path.as_os_str().as_encoded_bytes().to_vec()),
            (UnixDatagram::bind_addr(&address).unwrap(), format!("@{name}").into_bytes()),
        ];
        for (socket, address) in sockets {
            send(&address, &stopping_message(Duration::from_secs(90))).unwrap();
            let mut buffer = [0; 100];
            let length = socket.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..length], b"STOPPING=1\nEXTEND_TIMEOUT_USEC=90000000");
        }
        assert!(send(b"/nonexistent/socket", "READY=1").is_err());
    }
}
