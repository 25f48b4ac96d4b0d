//! Named shared memory in `/dev/shm`. It remains when all processes that use it are killed, and
//! holds memory until it is removed.
//!
//! Only files that an engine created count as its own: files directly in that directory that are
//! not older than the engine, are owned by the host's user, and that a process of the engine can
//! write to. A model that was put there for several engines is older, or only read.
//!
//! `/proc/<pid>/maps` is parsed here and not by `procfs-core`, which gives up at the first line
//! that is not UTF-8, as the path of any mapped file may be.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};

/// The directory in which the C library keeps named shared memory and semaphores.
const DIR: &str = "/dev/shm";
/// The maximum time to inspect the processes of one engine.
const INSPECT_TIMEOUT: Duration = Duration::from_secs(1);
/// The maximum time to inspect all processes.
const SCAN_TIMEOUT: Duration = Duration::from_secs(3);
/// Tolerance for the coarse clock of file systems, with which a file can seem older than its
/// creator.
const CLOCK_SLACK: Duration = Duration::from_secs(1);

/// Device and inode, which identify a file while it exists.
type Key = (u64, u64);

/// A file in [`DIR`].
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Shared {
    /// The name, without a directory.
    name: String,
    key: Key,
}

impl Shared {
    pub(super) fn to_json(&self) -> Value {
        json!([self.name, self.key.0, self.key.1])
    }

    pub(super) fn parse(value: &Value) -> Option<Self> {
        let name = value.get(0)?.as_str()?.to_owned();
        let plain = !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\0']);
        plain.then_some(Self { name, key: (value.get(1)?.as_u64()?, value.get(2)?.as_u64()?) })
    }

    fn path(&self) -> PathBuf {
        Path::new(DIR).join(&self.name)
    }

    /// Returns true if the name still refers to this file.
    fn is_there(&self) -> bool {
        fs::symlink_metadata(self.path()).is_ok_and(|meta| is_ours(&meta) && key(&meta) == self.key)
    }
}

fn key(meta: &Metadata) -> Key {
    (meta.dev(), meta.ino())
}

fn is_ours(meta: &Metadata) -> bool {
    meta.is_file() && meta.uid() == rustix::process::geteuid().as_raw()
}

/// Returns the files that these processes of an engine are seen to have created since `started`.
pub(super) fn created_by(pids: Vec<u32>, started: SystemTime) -> BTreeSet<Shared> {
    let files = created_since(started);
    if files.is_empty() {
        return BTreeSet::new();
    }
    // A partial result is good enough: what is missed here stays until the machine restarts.
    let (found, _complete) = within(INSPECT_TIMEOUT, move |results| {
        let held = pids.into_iter().flat_map(|pid| held(pid, &files, true));
        held.filter_map(|key| files.get(&key).cloned())
            .try_for_each(|file| results.send(file).ok());
    });
    found.into_iter().collect()
}

/// Removes these files of an engine that has ended, except those that another process uses.
pub(super) fn remove(files: &BTreeSet<Shared>) {
    let left: BTreeMap<Key, Shared> =
        files.iter().filter(|file| file.is_there()).map(|file| (file.key, file.clone())).collect();
    if left.is_empty() {
        return;
    }
    let sought = left.clone();
    let (used, complete) = within(SCAN_TIMEOUT, move |results| {
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        pids.flat_map(|pid| held(pid, &sought, false)).try_for_each(|key| results.send(key).ok());
    });
    for file in left.values() {
        let path = file.path();
        let file_path = path.display();
        if !complete {
            tracing::warn!(file = %file_path, "keeping shared memory: failed to check for users");
        } else if used.contains(&file.key) {
            tracing::debug!(file = %file_path, "keeping shared memory: another process uses it");
        } else if file.is_there() {
            match fs::remove_file(&path) {
                Ok(()) => tracing::debug!(file = %file_path, "removed shared memory of the engine"),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    tracing::warn!(file = %file_path, error = %error, "failed to remove shared \
                        memory");
                }
            }
        }
    }
}

/// Returns the files of the host's user that were created since `started`. The directory is listed
/// instead of taking names from `/proc`, because a semaphore is created under one name, which is
/// removed, and kept under another.
fn created_since(started: SystemTime) -> BTreeMap<Key, Shared> {
    let files = fs::read_dir(DIR).into_iter().flatten().flatten().filter_map(|entry| {
        // The metadata of the entry itself, not of a link's target.
        let meta = entry.metadata().ok().filter(is_ours)?;
        let name = entry.file_name().into_string().ok()?;
        let recent = created(&meta)? + CLOCK_SLACK >= started;
        recent.then(|| (key(&meta), Shared { name, key: key(&meta) }))
    });
    files.collect()
}

/// Returns when a file was created or, where the file system does not know, last changed.
fn created(meta: &Metadata) -> Option<SystemTime> {
    let changed =
        || Some(SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(meta.ctime()).ok()?));
    meta.created().ok().or_else(changed)
}

/// Returns which of these files a process has mapped or open; if `written`, only those that it can
/// write to such that other processes see it.
fn held(pid: u32, files: &BTreeMap<Key, Shared>, written: bool) -> BTreeSet<Key> {
    let maps = fs::read(format!("/proc/{pid}/maps")).unwrap_or_default();
    let mut held: BTreeSet<Key> = mapped(&String::from_utf8_lossy(&maps), written).collect();
    for fd in
        fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten().map(|fd| fd.path())
    {
        // No other file is asked for its inode: a file on an unreachable server would block. The
        // name is compared too, because a process in a container may have the directory at another
        // path.
        let named = |link: &str| {
            link.starts_with(DIR) || files.values().any(|file| link.contains(&file.name))
        };
        let likely = fs::read_link(&fd).is_ok_and(|link| named(&link.to_string_lossy()));
        // The permissions of the link are those that the file was opened with.
        if likely
            && (!written || fs::symlink_metadata(&fd).is_ok_and(|link| link.mode() & 0o200 != 0))
        {
            held.extend(fs::metadata(&fd).ok().as_ref().map(key));
        }
    }
    held.retain(|key| files.contains_key(key));
    held
}

/// Returns the files in the text of `/proc/<pid>/maps`; format: proc_pid_maps(5).
fn mapped(maps: &str, written: bool) -> impl Iterator<Item = Key> {
    maps.lines().filter_map(move |line| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let (rights, device, inode) = (fields.next()?, fields.nth(1)?, fields.next()?);
        let (major, minor) = device.split_once(':')?;
        let number = |hex: &str| u32::from_str_radix(hex, 16).ok();
        let device = rustix::fs::makedev(number(major)?, number(minor)?);
        let inode = inode.parse().ok().filter(|inode| *inode != 0)?;
        (!written || (rights.contains('w') && rights.contains('s'))).then_some((device, inode))
    })
}

/// Returns the results that `work` sends within `timeout`, and whether the work was complete.
/// Reading the mappings of a process that is stuck in a device driver can block, and must not delay
/// the end of this engine and of others.
fn within<T: Send + 'static>(
    timeout: Duration,
    work: impl FnOnce(&Sender<T>) + Send + 'static,
) -> (Vec<T>, bool) {
    let deadline = Instant::now() + timeout;
    let (sender, results) = channel();
    let Ok(thread) =
        std::thread::Builder::new().name("engine-shm".into()).spawn(move || work(&sender))
    else {
        return (Vec::new(), false);
    };
    let mut found = Vec::new();
    loop {
        match results.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(result) => found.push(result),
            Err(RecvTimeoutError::Disconnected) => return (found, thread.join().is_ok()),
            Err(RecvTimeoutError::Timeout) => return (found, false),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_are_parsed() {
        let maps = "\
            7f1-7f2 rw-s 00000000 00:1a 42 /dev/shm/psm_1\n\
            7f2-7f3 r--s 00000000 00:1a 43 /dev/shm/a model\n\
            7f3-7f4 rw-p 00000000 fe:00 44 /lib/x.so\n\
            7f4-7f5 rw-s 00000000 00:1a 45                 /dev/shm/sem.Ab12 (deleted)\n\
            7f5-7f6 rw-p 00000000 00:00 0  [heap]\n\
            7f6-7f7 rw-p 00000000 00:00 0\n\
            ?\n";
        let shm = rustix::fs::makedev(0, 0x1a);
        assert_eq!(mapped(maps, true).collect::<Vec<_>>(), [(shm, 42), (shm, 45)]);
        let all = [(shm, 42), (shm, 43), (rustix::fs::makedev(0xfe, 0), 44), (shm, 45)];
        assert_eq!(mapped(maps, false).collect::<Vec<_>>(), all);
    }

    #[test]
    fn only_plain_names_are_parsed() {
        let file = Shared { name: "psm_1".into(), key: (1, 2) };
        assert_eq!(Shared::parse(&file.to_json()), Some(file));
        for name in ["", ".", "..", "../x", "a/b", "/x", "a\0"] {
            assert_eq!(Shared::parse(&json!([name, 1, 2])), None, "{name}");
        }
        assert_eq!(Shared::parse(&json!(["a", 1])), None);
        assert_eq!(Shared::parse(&json!("a")), None);
    }

    #[test]
    fn slow_work_times_out() {
        let (release, wait) = channel::<()>();
        let (found, complete) = within(Duration::from_millis(20), move |results| {
            results.send(1).unwrap();
            wait.recv().unwrap_err();
        });
        assert_eq!((found, complete), (vec![1], false));
        drop(release);
        assert_eq!(within(SCAN_TIMEOUT, |results| results.send(2).unwrap()), (vec![2], true));
        assert_eq!(within(SCAN_TIMEOUT, |_: &Sender<u8>| panic!("on purpose")), (vec![], false));
    }
}
