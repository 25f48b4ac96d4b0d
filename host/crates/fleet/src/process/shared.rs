//! Shared memory with a name, in `/dev/shm`: it stays when all who use it are killed, and is memory that nobody frees.
//!
//! Only what an engine made counts as its own: a file directly in that folder that is not older than the engine, is owned by
//! our user, and that a process of the engine can write to. A model that somebody put there is older, or only read.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};

/// Where the C library keeps shared memory and semaphores that have names.
const DIR: &str = "/dev/shm";
/// How long a look at the processes of one engine may take.
const LOOK_LIMIT: Duration = Duration::from_secs(1);
/// How long a look at all processes may take.
const SCAN_LIMIT: Duration = Duration::from_secs(3);
/// Clocks of files are coarse, so that one can seem to be made before what made it.
const SLACK: Duration = Duration::from_secs(1);

/// What no two files have in common while both are there: device and inode.
type Key = (u64, u64);

/// A file in [`DIR`].
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Shared {
    /// Name, without a folder.
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

    /// Whether the name still leads to this file.
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

/// The files that these processes of an engine that was started at that time have made, as far as can be seen.
pub(super) fn made_by(pids: Vec<u32>, started: SystemTime) -> BTreeSet<Shared> {
    let files = made_since(started);
    if files.is_empty() {
        return BTreeSet::new();
    }
    let (found, _whole) = within(LOOK_LIMIT, move |tell| {
        let held = pids.into_iter().flat_map(|pid| held(pid, &files, true));
        held.filter_map(|key| files.get(&key).cloned()).try_for_each(|file| tell.send(file).ok());
    });
    found.into_iter().collect()
}

/// Remove these files of an engine of which nothing is left, except those that somebody else uses.
pub(super) fn remove(files: &BTreeSet<Shared>, lane: &str) {
    let left: BTreeMap<Key, Shared> =
        files.iter().filter(|file| file.is_there()).map(|file| (file.key, file.clone())).collect();
    if left.is_empty() {
        return;
    }
    let sought = left.clone();
    let (used, whole) = within(SCAN_LIMIT, move |tell| {
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        pids.flat_map(|pid| held(pid, &sought, false)).try_for_each(|key| tell.send(key).ok());
    });
    for file in left.values() {
        let path = file.path();
        let path = path.display();
        if !whole {
            tracing::warn!(
                lane,
                "{path} of the engine is kept: it cannot be seen whether somebody uses it"
            );
        } else if used.contains(&file.key) {
            tracing::debug!(lane, "{path} of the engine is kept: somebody else uses it");
        } else if file.is_there() {
            match fs::remove_file(file.path()) {
                Ok(()) => tracing::debug!(lane, "{path} of the engine was removed"),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    tracing::warn!(lane, "{path} of the engine cannot be removed: {error}")
                }
            }
        }
    }
}

/// Our files that were made at that time or later. Found in the folder and not by the names that `/proc` shows, because a
/// semaphore is made under one name, which is removed, and kept under another.
fn made_since(started: SystemTime) -> BTreeMap<Key, Shared> {
    let files = fs::read_dir(DIR).into_iter().flatten().flatten().filter_map(|entry| {
        // Of the entry itself, not of what a link leads to.
        let meta = entry.metadata().ok().filter(is_ours)?;
        let name = entry.file_name().into_string().ok()?;
        let young = made(&meta)? + SLACK >= started;
        young.then(|| (key(&meta), Shared { name, key: key(&meta) }))
    });
    files.collect()
}

/// When a file was made; where nobody knows, when it was changed.
fn made(meta: &Metadata) -> Option<SystemTime> {
    let changed =
        || Some(SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(meta.ctime()).ok()?));
    meta.created().ok().or_else(changed)
}

/// Which of these files a process has mapped or open; `written`: so that it can write to them and others see it.
fn held(pid: u32, files: &BTreeMap<Key, Shared>, written: bool) -> BTreeSet<Key> {
    let maps = fs::read(format!("/proc/{pid}/maps")).unwrap_or_default();
    let mut held: BTreeSet<Key> = mapped(&String::from_utf8_lossy(&maps), written).collect();
    for fd in
        fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten().map(|fd| fd.path())
    {
        // Nothing else is asked for its inode: a file on a server that is away would not answer. In a container of its own,
        // a process may know the folder by another name.
        let named =
            |link: &str| link.starts_with(DIR) || files.values().any(|it| link.contains(&it.name));
        let likely = fs::read_link(&fd).is_ok_and(|link| named(&link.to_string_lossy()));
        // The rights of the link are what the file was opened for.
        if likely
            && (!written || fs::symlink_metadata(&fd).is_ok_and(|link| link.mode() & 0o200 != 0))
        {
            held.extend(fs::metadata(&fd).ok().as_ref().map(key));
        }
    }
    held.retain(|key| files.contains_key(key));
    held
}

/// Files in the text of `/proc/<pid>/maps`; format: proc_pid_maps(5).
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

/// What `work` tells within `limit`, and whether that was all. A process that is stuck in a driver can hold up whoever reads
/// what it has mapped, and must not hold up its own end and that of others.
fn within<T: Send + 'static>(
    limit: Duration,
    work: impl FnOnce(&Sender<T>) + Send + 'static,
) -> (Vec<T>, bool) {
    let until = Instant::now() + limit;
    let (tell, told) = channel();
    let Ok(thread) =
        std::thread::Builder::new().name("engine-shm".into()).spawn(move || work(&tell))
    else {
        return (Vec::new(), false);
    };
    let mut found = Vec::new();
    loop {
        match told.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(it) => found.push(it),
            Err(RecvTimeoutError::Disconnected) => return (found, thread.join().is_ok()),
            Err(RecvTimeoutError::Timeout) => return (found, false),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_are_read() {
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
    fn only_plain_names_are_read() {
        let file = Shared { name: "psm_1".into(), key: (1, 2) };
        assert_eq!(Shared::parse(&file.to_json()), Some(file));
        for name in ["", ".", "..", "../x", "a/b", "/x", "a\0"] {
            assert_eq!(Shared::parse(&json!([name, 1, 2])), None, "{name}");
        }
        assert_eq!(Shared::parse(&json!(["a", 1])), None);
        assert_eq!(Shared::parse(&json!("a")), None);
    }

    #[test]
    fn what_takes_too_long_is_not_waited_for() {
        let (go, wait) = channel::<()>();
        let (found, whole) = within(Duration::from_millis(20), move |tell| {
            tell.send(1).unwrap();
            wait.recv().unwrap_err();
        });
        assert_eq!((found, whole), (vec![1], false));
        drop(go);
        assert_eq!(within(SCAN_LIMIT, |tell| tell.send(2).unwrap()), (vec![2], true));
        assert_eq!(within(SCAN_LIMIT, |_: &Sender<u8>| panic!("on purpose")), (vec![], false));
    }
}
