//! Files that exited processes leave behind: memory in `/dev/shm`, and sockets among temporary
//! files.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

/// Files of shared memory that no process has mapped, and sockets without a listener.
pub(crate) struct Leftovers {
    memory: BTreeSet<PathBuf>,
    sockets: BTreeSet<PathBuf>,
}

impl Leftovers {
    /// Returns the current leftovers.
    pub(crate) fn now() -> Self {
        let pids = entries(Path::new("/proc")).into_iter().map(|folder| folder.join("maps"));
        let maps: String = pids.filter_map(|maps| fs::read_to_string(maps).ok()).collect();
        let bound = fs::read_to_string("/proc/net/unix").unwrap_or_default();
        let is_dead = |path: &PathBuf, living: &str| !living.contains(&*path.to_string_lossy());
        let is_socket = |path: &PathBuf| {
            fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket())
        };
        let memory = entries(Path::new("/dev/shm")).into_iter().filter(|path| is_dead(path, &maps));
        let sockets = entries(&std::env::temp_dir()).into_iter().filter(is_socket);
        Self {
            memory: memory.collect(),
            sockets: sockets.filter(|path| is_dead(path, &bound)).collect(),
        }
    }

    /// Describes the leftovers that did not exist before.
    pub(crate) fn since(&self, before: &Self) -> String {
        let memory: Vec<_> = self.memory.difference(&before.memory).collect();
        let size = |bytes_of: fn(&fs::Metadata) -> u64| {
            let bytes = memory
                .iter()
                .filter_map(|path| Some(bytes_of(&fs::metadata(path).ok()?)))
                .sum::<u64>();
            bytes >> 20
        };
        format!(
            "{} files in /dev/shm ({} MiB, {} MiB of it filled), {} sockets in {}",
            memory.len(),
            size(fs::Metadata::len),
            size(|metadata| metadata.blocks() * 512),
            self.sockets.difference(&before.sockets).count(),
            std::env::temp_dir().display()
        )
    }
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder).unwrap().filter_map(|entry| Some(entry.ok()?.path())).collect()
}
