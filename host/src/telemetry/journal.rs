//! Writes the log to the journal of systemd with its native protocol, in which an event has fields:
//! `journalctl POINTSMAN_LANE=coder` shows the events of a lane.
//!
//! ```text
//!   event ──> entry: a JSON object on one line ──> the log's buffer and thread ──> datagram
//!                                       larger than a datagram ──> memfd, sealed ──┘
//! ```
//!
//! Only the log's thread waits for the journal, so that one that stalls delays no request. What
//! cannot be sent is written to standard error, with its priority, as without this protocol.

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::mem::MaybeUninit;
use std::os::fd::AsFd as _;
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::io::Errno;
use rustix::net::{
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, sendmsg_addr,
};
use serde_json::{Map, Value};

use super::fields::CUT_MARK;
use super::format::entry::{MESSAGE, PRIORITY, field_name};

/// The socket of the journal.
pub(super) const SOCKET: &str = "/run/systemd/journal/socket";
/// How long one attempt to send waits for a journal whose queue is full.
const SEND_TIMEOUT: Duration = Duration::from_millis(500);
/// Maximum length in bytes of the message of an entry that cannot be sent as a whole.
const MAX_CUT_MESSAGE: usize = 2048;

const IDENTIFIER: (&str, &str) = ("SYSLOG_IDENTIFIER", "pointsman");
const INFO: &str = "6";

/// Sends each line that is written, an entry or a line of the access log, to the journal.
#[derive(Debug)]
pub(super) struct JournalWriter<F> {
    socket: UnixDatagram,
    path: PathBuf,
    /// Where entries are written that cannot be sent.
    fallback: F,
}

impl<F: Write> JournalWriter<F> {
    /// Creates a writer for the journal's socket; returns the fallback if there is none.
    pub(super) fn new(path: &Path, fallback: F) -> Result<Self, F> {
        let is_socket = path.metadata().is_ok_and(|meta| meta.file_type().is_socket());
        let open = || {
            let socket = UnixDatagram::unbound()?;
            socket.set_write_timeout(Some(SEND_TIMEOUT))?;
            io::Result::Ok(socket)
        };
        match is_socket.then(open) {
            Some(Ok(socket)) => Ok(Self { socket, path: path.to_owned(), fallback }),
            Some(Err(_)) | None => Err(fallback),
        }
    }

    fn send(&self, entry: &Map<String, Value>) -> io::Result<()> {
        let send = |datagram: &[u8]| self.socket.send_to(datagram, &self.path).map(|_| ());
        // Not connected: a journal that restarts may have another socket at this path.
        let whole = datagram(entry);
        match send(&whole) {
            Err(error) if is_too_large(&error) => match self.send_file(&whole) {
                Err(error) if error.kind() != ErrorKind::WouldBlock => {
                    send(&datagram(&without_fields(entry)))
                }
                other => other,
            },
            other => other,
        }
    }

    /// Sends an entry as a file in memory that cannot be changed any more: a datagram with nothing
    /// but its descriptor.
    fn send_file(&self, entry: &[u8]) -> io::Result<()> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let mut file = File::from(memfd_create("pointsman-journal-entry", flags)?);
        file.write_all(entry)?;
        // The journal does not read a file of which one of these is missing.
        fcntl_add_seals(
            &file,
            SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL,
        )?;
        let (descriptors, address) = ([file.as_fd()], SocketAddrUnix::new(&self.path)?);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        // The space is for one descriptor.
        control.push(SendAncillaryMessage::ScmRights(&descriptors));
        sendmsg_addr(&self.socket, &address, &[], &mut control, SendFlags::empty())?;
        Ok(())
    }
}

impl<F: Write> Write for JournalWriter<F> {
    /// Writes the first of the lines.
    fn write(&mut self, lines: &[u8]) -> io::Result<usize> {
        let end = lines.iter().position(|byte| *byte == b'\n').map_or(lines.len(), |end| end + 1);
        let entry = parse(&lines[..end]);
        match self.send(&entry) {
            Ok(()) => Ok(end),
            // Its queue is full: the log's thread calls again, and its buffer is bounded.
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) =>
            {
                Err(error)
            }
            Err(_) => {
                let text = |name: &str| entry.get(name).and_then(Value::as_str).unwrap_or_default();
                let line = format!("<{}>{}\n", text(PRIORITY), text(MESSAGE));
                // Not a reason to call again: a part of it may have been written.
                let written = self.fallback.write_all(line.as_bytes());
                written.map(|()| end).map_err(|_| ErrorKind::BrokenPipe.into())
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.fallback.flush()
    }
}

/// Reads a line. One of the access log becomes an entry whose message is the line.
fn parse(line: &[u8]) -> Map<String, Value> {
    let parsed = serde_json::from_slice::<Map<String, Value>>(line).unwrap_or_default();
    if parsed.contains_key(MESSAGE) {
        return parsed;
    }
    let mut entry: Map<String, Value> =
        parsed.into_iter().map(|(name, value)| (field_name(&name), value)).collect();
    entry.insert(field_name("log"), "access".into());
    entry.insert(PRIORITY.to_owned(), INFO.into());
    entry.insert(MESSAGE.to_owned(), String::from_utf8_lossy(line).trim_end().into());
    entry
}

fn is_too_large(error: &io::Error) -> bool {
    let too_large = [Errno::MSGSIZE, Errno::NOBUFS].map(Errno::raw_os_error);
    error.raw_os_error().is_some_and(|code| too_large.contains(&code))
}

/// Returns what is sent of an entry that is too large, where files in memory are not allowed.
/// Values are cut before, so that this only happens where the buffers of sockets are smaller than
/// usual.
fn without_fields(entry: &Map<String, Value>) -> Map<String, Value> {
    let mut small = entry.clone();
    small.retain(|name, _| [MESSAGE, PRIORITY].contains(&name.as_str()));
    if let Some(Value::String(message)) = small.get_mut(MESSAGE) {
        message.truncate(message.floor_char_boundary(MAX_CUT_MESSAGE));
        message.push_str(CUT_MARK);
    }
    small
}

/// Returns an entry in the native protocol.
fn datagram(entry: &Map<String, Value>) -> Vec<u8> {
    let mut datagram = Vec::with_capacity(1024);
    push_field(&mut datagram, IDENTIFIER.0, IDENTIFIER.1);
    for (name, value) in entry {
        match value {
            Value::String(text) => push_field(&mut datagram, name, text),
            other => push_field(&mut datagram, name, &other.to_string()),
        }
    }
    datagram
}

/// Appends a field. A value with a line break has its length in front, so that no part of it is
/// taken for another field.
fn push_field(datagram: &mut Vec<u8>, name: &str, value: &str) {
    datagram.extend_from_slice(name.as_bytes());
    if value.contains('\n') {
        datagram.push(b'\n');
        datagram.extend_from_slice(&(value.len() as u64).to_le_bytes());
    } else {
        datagram.push(b'=');
    }
    datagram.extend_from_slice(value.as_bytes());
    datagram.push(b'\n');
}

#[cfg(test)]
mod tests;
