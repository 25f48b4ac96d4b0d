//! The pipes of an engine's standard output and standard error.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};

use rustix::fs::OFlags;

use super::proc;
use super::record::Record;

/// New pipes for an engine.
#[derive(Debug)]
pub(super) struct Pipes {
    /// For the host and the keeper.
    pub(super) read: Vec<OwnedFd>,
    /// For the engine.
    pub(super) write: [OwnedFd; 2],
    /// The inodes, which are the same at both ends.
    pub(super) inodes: Vec<u64>,
}

impl Pipes {
    /// Creates pipes. The engine can write to pipes that are `kept_open` even if the processes that
    /// read them have ended: its own end can be read, too. Once such a pipe is full, the engine
    /// waits until it is read, where it would get SIGPIPE otherwise.
    pub(super) fn new(kept_open: bool) -> io::Result<Self> {
        let ((out, stdout), (err, stderr)) = (pipe(kept_open)?, pipe(kept_open)?);
        let inodes = [&out, &err].into_iter().filter_map(inode).collect();
        Ok(Self { read: vec![out, err], write: [stdout, stderr], inodes })
    }
}

/// Returns both ends of a new pipe.
fn pipe(kept_open: bool) -> io::Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = io::pipe()?;
    let (reader, writer): (OwnedFd, OwnedFd) = (reader.into(), writer.into());
    if !kept_open {
        return Ok((reader, writer));
    }
    let path = format!("/proc/self/fd/{}", writer.as_raw_fd());
    let both = OpenOptions::new().read(true).write(true).open(path)?;
    Ok((reader, both.into()))
}

/// Opens the read ends of the pipes of an engine whose host and keeper have ended. Returns none if
/// its first process does not write to both pipes any more.
pub(super) fn reopen(record: &Record) -> Vec<OwnedFd> {
    let Some(leader) = record.leader.filter(|leader| proc::is_running(*leader)) else {
        return Vec::new();
    };
    let open = |(number, inode): (u32, &u64)| {
        let nonblocking = i32::try_from(OFlags::NONBLOCK.bits()).ok()?;
        let path = format!("/proc/{}/fd/{number}", leader.pid);
        let file = OpenOptions::new().read(true).custom_flags(nonblocking).open(path).ok()?;
        let file: OwnedFd = file.into();
        (self::inode(&file) == Some(*inode)).then_some(file)
    };
    let opened: Vec<OwnedFd> = (1..).zip(&record.pipes).filter_map(open).collect();
    if opened.len() == record.pipes.len() { opened } else { Vec::new() }
}

/// Returns the inode of a pipe.
fn inode(pipe: &impl AsFd) -> Option<u64> {
    let pipe = pipe.as_fd().try_clone_to_owned().ok()?;
    File::from(pipe).metadata().ok().map(|meta| meta.ino())
}
