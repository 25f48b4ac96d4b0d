//! Who listens on an engine's port. The port is known before the engine binds it, so that any local
//! process can bind it first, and would get the prompts of clients.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use procfs_core::net::{TcpNetEntries, TcpNetEntry, TcpState};
use procfs_core::process::FDTarget;
use procfs_core::{ExplicitSystemInfo, FromReadSI as _};

use super::proc::TICKS_PER_SECOND;

/// Returns true if the sockets that a connection to the loopback address and `port` reaches belong
/// to one of these processes, and false if there is none, or another process holds one of them.
/// Returns `None` if that cannot be read: without `/proc`, or if a process of the engine runs as
/// another user. The kernel may then refuse to list its files, or only to show what each one is.
pub(super) fn is_held_by(pids: &[u32], port: u16) -> Option<bool> {
    let sockets = listening(&entries()?, port);
    if sockets.is_empty() {
        return Some(false);
    }
    let mut held = HashSet::new();
    let mut all_read = true;
    for pid in pids {
        match std::fs::read_dir(format!("/proc/{pid}/fd")) {
            Ok(files) => {
                for file in files.flatten() {
                    match std::fs::read_link(file.path()) {
                        Ok(target) => held.extend(socket(&target)),
                        Err(error) => all_read &= !is_denied(&error),
                    }
                }
            }
            Err(error) => all_read &= !is_denied(&error),
        }
    }
    match sockets.iter().all(|socket| held.contains(socket)) {
        true => Some(true),
        false => all_read.then_some(false),
    }
}

/// Returns the inode of a socket that a link in `/proc/PID/fd` leads to.
fn socket(target: &Path) -> Option<u64> {
    match target.to_str()?.parse() {
        Ok(FDTarget::Socket(inode)) => Some(inode),
        Ok(_) | Err(_) => None,
    }
}

/// Returns true if something of a process exists, and must not be read.
fn is_denied(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::PermissionDenied
}

/// Returns the inodes of the sockets that accept connections to the loopback address and `port`:
/// those of that address, or else those of all addresses.
fn listening(entries: &[TcpNetEntry], port: u16) -> Vec<u64> {
    let on = |wanted: fn(IpAddr) -> bool| -> Vec<u64> {
        let sockets = entries.iter().filter(|entry| {
            let address = entry.local_address;
            entry.state == TcpState::Listen
                && address.port() == port
                && wanted(address.ip().to_canonical())
        });
        sockets.map(|entry| entry.inode).collect()
    };
    match on(|ip| ip == IpAddr::V4(Ipv4Addr::LOCALHOST)) {
        exact if exact.is_empty() => on(|ip| ip.is_unspecified()),
        exact => exact,
    }
}

/// Returns the TCP sockets of the host's network namespace.
fn entries() -> Option<Vec<TcpNetEntry>> {
    let mut entries = parse(File::open("/proc/net/tcp").ok()?)?;
    // Does not exist without IPv6.
    let ipv6 = File::open("/proc/net/tcp6").ok().and_then(parse);
    entries.extend(ipv6.unwrap_or_default());
    Some(entries)
}

/// Parses the text of `/proc/net/tcp`; format: proc_net_tcp(5).
fn parse(text: impl Read) -> Option<Vec<TcpNetEntry>> {
    let system = ExplicitSystemInfo {
        boot_time_secs: 0,
        ticks_per_second: TICKS_PER_SECOND,
        page_size: 0,
        is_little_endian: cfg!(target_endian = "little"),
    };
    Some(TcpNetEntries::from_read(text, &system).ok()?.0)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn listener_is_recognized_by_its_process() {
        let me = std::process::id();
        for address in ["127.0.0.1:0", "0.0.0.0:0", "[::]:0"] {
            let Ok(listener) = TcpListener::bind(address) else { continue };
            let port = listener.local_addr().unwrap().port();
            assert_eq!(is_held_by(&[me], port), Some(true), "{address}");
            assert_eq!(is_held_by(&[], port), Some(false), "{address}");
            drop(listener);
            assert_eq!(is_held_by(&[me], port), Some(false), "{address}");
        }
    }

    #[test]
    fn links_that_must_not_be_read_are_told_from_closed_files() {
        assert_eq!(socket(Path::new("socket:[17]")), Some(17));
        assert_eq!(socket(Path::new("/dev/null")), None);
        assert!(is_denied(&io::ErrorKind::PermissionDenied.into()));
        // The file was closed, or the process has ended, since the folder was read.
        assert!(!is_denied(&io::ErrorKind::NotFound.into()));
    }

    #[test]
    fn more_specific_address_gets_the_connections() {
        const ANY: &str = "00000000:0050";
        const ANY_V6: &str = "00000000000000000000000000000000:0050";
        const LOOPBACK: &str = "0100007F:0050";
        const MAPPED: &str = "0000000000000000FFFF00000100007F:0050";
        const LISTEN: &str = "0A";
        let entries = |sockets: &[(&str, &str)]| {
            let mut text = "header\n".to_owned();
            for (inode, (address, state)) in (1..).zip(sockets) {
                let rest = "00000000:00000000 00:00000000 00000000 0 0";
                text += &format!("0: {address} {ANY} {state} {rest} {inode} 1 0 100 0 0 10 0\n");
            }
            parse(text.as_bytes()).unwrap()
        };
        let others = [
            (ANY, LISTEN),
            (ANY_V6, LISTEN),
            ("0100007F:0051", LISTEN),
            // A connection, and a listener on 192.168.0.1.
            (LOOPBACK, "01"),
            ("0100A8C0:0050", LISTEN),
        ];
        assert_eq!(listening(&entries(&others), 80), [1, 2]);
        let exact: Vec<_> = others.into_iter().chain([(LOOPBACK, LISTEN)]).collect();
        assert_eq!(listening(&entries(&exact), 80), [6]);
        let mapped: Vec<_> = exact.into_iter().chain([(MAPPED, LISTEN)]).collect();
        assert_eq!(listening(&entries(&mapped), 80), [6, 7]);
        assert!(listening(&entries(&mapped), 82).is_empty());
    }
}
