//! The page cache of weights. A switch on a machine whose GPU shares the system's memory leaves the
//! weights of the unloaded lane in the page cache. The kernel gives such pages up only when an
//! allocation waits for them: GPU drivers have failed instead, and vLLM counts them as used when it
//! checks the free memory at its start. So they are dropped before a load that needs the room.
//!
//! Pages of files that a loaded lane uses are never dropped, whatever path it knows them by.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use pointsman_files::open_regular;
use rustix::fs::{Advice, fadvise};

/// Maximum number of unloaded models whose files are remembered; the oldest are forgotten.
const MAX_REMEMBERED: usize = 256;

/// The weights that are in use, and those that were.
#[derive(Debug, Clone, Default)]
pub(crate) struct PageCache(Arc<Mutex<Models>>);

#[derive(Debug, Default)]
struct Models {
    next: u64,
    loaded: Vec<(u64, Vec<PathBuf>)>,
    /// The files of each unloaded model, the one that was unloaded first at the front.
    unloaded: Vec<Vec<PathBuf>>,
}

/// The weights of a lane, which count as in use until this is dropped.
#[derive(Debug)]
pub(crate) struct WeightsInUse {
    cache: PageCache,
    id: u64,
}

/// What was dropped from the page cache.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Dropped {
    /// Number of files.
    pub(crate) files: usize,
    /// Their size in bytes, whether all of it was in the page cache or not.
    pub(crate) bytes: u64,
}

impl PageCache {
    /// Marks files as in use, before the engine that reads them is started.
    pub(crate) fn use_files(&self, files: Vec<PathBuf>) -> WeightsInUse {
        let mut models = self.0.lock();
        let id = models.next;
        models.next += 1;
        models.unloaded.retain(|unloaded| *unloaded != files);
        models.loaded.push((id, files));
        WeightsInUse { cache: self.clone(), id }
    }

    /// Drops the pages of unloaded models, the one that was unloaded first before the others, until
    /// `has_room` returns true. Blocks.
    pub(crate) fn make_room(&self, mut has_room: impl FnMut() -> bool) -> Dropped {
        let mut dropped = Dropped::default();
        while !has_room() {
            let (files, in_use) = {
                let mut models = self.0.lock();
                if models.unloaded.is_empty() {
                    break;
                }
                let loaded = models.loaded.iter().flat_map(|(_, files)| files);
                let in_use: Vec<PathBuf> = loaded.cloned().collect();
                (models.unloaded.remove(0), in_use)
            };
            let in_use: BTreeSet<(u64, u64)> =
                in_use.iter().filter_map(|path| identity(&fs::metadata(path).ok()?)).collect();
            for path in &files {
                if let Some(bytes) = drop_pages(path, &in_use) {
                    dropped.files += 1;
                    dropped.bytes = dropped.bytes.saturating_add(bytes);
                }
            }
        }
        dropped
    }
}

impl Drop for WeightsInUse {
    fn drop(&mut self) {
        let mut models = self.cache.0.lock();
        let Some(place) = models.loaded.iter().position(|(id, _)| *id == self.id) else { return };
        let (_, files) = models.loaded.remove(place);
        if files.is_empty() || models.loaded.iter().any(|(_, loaded)| *loaded == files) {
            return;
        }
        models.unloaded.retain(|unloaded| *unloaded != files);
        models.unloaded.push(files);
        if models.unloaded.len() > MAX_REMEMBERED {
            models.unloaded.remove(0);
        }
    }
}

/// Device and inode, which are the same for all links to a file.
fn identity(metadata: &fs::Metadata) -> Option<(u64, u64)> {
    metadata.is_file().then(|| (metadata.dev(), metadata.ino()))
}

/// Drops the pages of a file, unless it is in use. Returns its size.
fn drop_pages(path: &Path, in_use: &BTreeSet<(u64, u64)>) -> Option<u64> {
    let file: File = open_regular(path).ok()?;
    // Of the file that was opened: the path may lead to another one by now.
    let metadata = file.metadata().ok()?;
    if in_use.contains(&identity(&metadata)?) {
        return None;
    }
    // A length of `None` means all of the file. Pages that a process has mapped stay.
    fadvise(&file, 0, None, Advice::DontNeed).ok()?;
    Some(metadata.len())
}

#[cfg(test)]
mod tests;
