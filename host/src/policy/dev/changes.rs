//! Notices changes of the files of a policy. Events of the file system only trigger a look at the
//! files, and there is a look from time to time without them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant, SystemTime};

use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};

/// Time between looks at the files without an event.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// Changes that are closer together than this are one change: editors write in steps.
const QUIET_PERIOD: Duration = Duration::from_millis(50);
/// Maximum delay while changes keep arriving.
const MAX_DEBOUNCE: Duration = Duration::from_secs(1);
/// Maximum number of files that are looked at.
const MAX_FILES: usize = 5000;
/// Folders that tools write.
const OTHER_FOLDERS: [&str; 3] = ["target", "node_modules", "__pycache__"];

/// Size and time of a change, by path.
type Snapshot = BTreeMap<PathBuf, (u64, Option<SystemTime>)>;

/// The changes of a folder since the last look.
pub(super) struct Changes {
    folder: PathBuf,
    seen: Snapshot,
    events: Receiver<()>,
    /// `None` if the file system has no events.
    watcher: Option<RecommendedWatcher>,
}

impl Changes {
    /// Begins to watch the folder.
    pub(super) fn new(folder: &Path) -> Self {
        let (send, events) = channel();
        let on_event = move |_: notify::Result<notify::Event>| {
            send.send(()).ok(); // Fails if the program ends.
        };
        let watcher = notify::recommended_watcher(on_event).ok();
        let mut changes =
            Self { folder: folder.to_owned(), seen: Snapshot::new(), events, watcher };
        changes.take();
        changes
    }

    /// Takes note of the files as they are, and watches new folders. Returns true if a file has
    /// changed.
    pub(super) fn take(&mut self) -> bool {
        let (seen, folders) = look(&self.folder);
        if let Some(watcher) = &mut self.watcher {
            for folder in folders {
                // A folder that cannot be watched is looked at from time to time.
                watcher.watch(&folder, RecursiveMode::NonRecursive).ok();
            }
        }
        let has_changed = seen != self.seen;
        self.seen = seen;
        has_changed
    }

    /// Waits until a file has changed, and for the end of the changes.
    pub(super) fn wait(&mut self) {
        loop {
            let is_event = self.events.recv_timeout(POLL_INTERVAL).is_ok();
            let start = Instant::now();
            while is_event
                && start.elapsed() < MAX_DEBOUNCE
                && self.events.recv_timeout(QUIET_PERIOD).is_ok()
            {}
            if self.take() {
                return;
            }
        }
    }
}

/// Returns the files of the folder, and the folders that contain them. The component is none of
/// them: a build writes it.
fn look(folder: &Path) -> (Snapshot, Vec<PathBuf>) {
    let (mut found, mut folders) = (Snapshot::new(), vec![folder.to_owned()]);
    let mut next = 0;
    while let Some(folder) = folders.get(next).cloned() {
        next += 1;
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for entry in entries.filter_map(Result::ok) {
            let (name, path) = (entry.file_name(), entry.path());
            let name = name.to_string_lossy();
            let Ok(meta) = entry.metadata() else { continue };
            let is_hidden = name.starts_with('.');
            if meta.is_dir() && !is_hidden && !OTHER_FOLDERS.contains(&&*name) {
                folders.push(path);
            } else if meta.is_file()
                && !is_hidden
                && !name.ends_with(".wasm")
                && found.len() < MAX_FILES
            {
                found.insert(path, (meta.len(), meta.modified().ok()));
            }
        }
    }
    (found, folders)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_of_the_author_are_changes() {
        let dir = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("src/policy.js", "1");
        let mut changes = Changes::new(dir.path());
        assert!(!changes.take());
        for path in ["policy.wasm", "target/x", ".build/x", "node_modules/a/b.js"] {
            write(path, "1");
        }
        assert!(!changes.take());
        write("src/new/rules.js", "1");
        assert!(changes.take() && !changes.take());
        write("cases.jsonl", "12");
        changes.wait();
        assert!(!changes.take());
    }
}
