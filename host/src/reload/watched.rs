//! The folders that are watched for changes. Without a watcher only polling finds changes.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use notify::event::{AccessKind, AccessMode, ModifyKind};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use parking_lot::Mutex;
use pointsman_settings::folder_of;
use std::sync::Arc;

/// A change in a watched folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FileEvent {
    /// One of the files that count was closed by its writer, or has come into its place: it is
    /// complete, as far as events tell.
    pub(super) is_complete: bool,
}

/// The watched folders.
pub(super) struct Watched {
    watcher: Option<RecommendedWatcher>,
    folders: BTreeSet<PathBuf>,
    /// The files whose completion counts, and the links on the way to them.
    files: Arc<Mutex<BTreeSet<PathBuf>>>,
}

impl Watched {
    /// Creates a watcher that watches nothing yet.
    pub(super) fn new(wake: impl Fn(FileEvent) + Send + 'static) -> Self {
        let files = Arc::<Mutex<BTreeSet<PathBuf>>>::default();
        let known = Arc::clone(&files);
        let changed = move |event: notify::Result<Event>| {
            // An error means that events were lost.
            let event = match &event {
                Ok(event) => classify(event, &known.lock()),
                Err(_) => Some(FileEvent { is_complete: false }),
            };
            event.into_iter().for_each(&wake);
        };
        let watcher = notify::recommended_watcher(changed);
        if let Err(error) = &watcher {
            tracing::warn!(%error, "file watching is unavailable; falling back to polling");
        }
        Self { watcher: watcher.ok(), folders: BTreeSet::new(), files }
    }

    /// Watches the folders of these files, and further folders, in the place of earlier ones.
    pub(super) fn watch(&mut self, files: &[&Path], folders: impl Iterator<Item = PathBuf>) {
        *self.files.lock() = files.iter().flat_map(|file| places(file)).collect();
        let Some(watcher) = &mut self.watcher else { return };
        let mut wanted: BTreeSet<PathBuf> = folders.collect();
        wanted.extend(files.iter().map(|file| folder_of(file).to_owned()));
        for folder in self.folders.difference(&wanted) {
            watcher.unwatch(folder).ok(); // Fails if the folder was removed.
        }
        self.folders = wanted;
        self.renew();
    }

    /// Watches folders that have appeared since, or have replaced others of the same name, of which
    /// only the old ones are watched.
    pub(super) fn renew(&mut self) {
        let Some(watcher) = &mut self.watcher else { return };
        for folder in &self.folders {
            if let Err(error) = watcher.watch(folder, RecursiveMode::NonRecursive) {
                let folder = folder.display();
                tracing::trace!(%folder, %error, "cannot watch the folder; polling it");
            }
        }
    }
}

/// Returns what an event means; `None` for one that is not a change.
fn classify(event: &Event, files: &BTreeSet<PathBuf>) -> Option<FileEvent> {
    let concerns_file = || event.paths.iter().any(|path| files.contains(path));
    match event.kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write))
        | EventKind::Modify(ModifyKind::Name(_)) => {
            Some(FileEvent { is_complete: concerns_file() })
        }
        // Reads are not changes: reading a policy would trigger the next scan, endlessly.
        EventKind::Access(_) => None,
        EventKind::Any
        | EventKind::Create(_)
        | EventKind::Modify(_)
        | EventKind::Remove(_)
        | EventKind::Other => Some(FileEvent { is_complete: false }),
    }
}

/// Returns the paths in the file's folder whose renaming replaces the file: its own, and those that
/// its link leads through, such as `..data` in a volume of Kubernetes.
fn places(file: &Path) -> Vec<PathBuf> {
    let folder = folder_of(file);
    let own = file.file_name().map(|name| folder.join(name));
    let through = std::fs::read_link(file).ok();
    let first = through.as_deref().filter(|target| target.is_relative()).and_then(|target| {
        let name =
            target.components().find(|part| !matches!(part, std::path::Component::CurDir))?;
        Some(folder.join(name))
    });
    own.into_iter().chain(first).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use notify::event::{CreateKind, DataChange, RenameMode};

    use super::*;

    #[test]
    fn folder_that_appears_or_is_replaced_is_watched() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("policy");
        let file = folder.join("policy.toml");
        let (send, events) = channel();
        let mut watched = Watched::new(move |event| {
            send.send(event).ok(); // Fails when the test ends.
        });
        watched.watch(&[&file], std::iter::once(dir.path().to_owned()));
        let next = || events.recv_timeout(Duration::from_secs(60)).unwrap();
        for replaced in ["first", "second"] {
            fs::create_dir(&folder).unwrap();
            next();
            watched.renew();
            fs::write(&file, "name").unwrap();
            while !next().is_complete {}
            fs::rename(&folder, dir.path().join(replaced)).unwrap();
        }
    }

    #[test]
    fn completion_of_the_file_is_told_from_other_changes() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("p.toml");
        std::os::unix::fs::symlink("..data/p.toml", &file).unwrap();
        let files: BTreeSet<PathBuf> = places(&file).into_iter().collect();
        let classify = |kind: EventKind, name: &str| {
            classify(&Event::new(kind).add_path(dir.path().join(name)), &files)
        };
        let closed = EventKind::Access(AccessKind::Close(AccessMode::Write));
        let renamed = EventKind::Modify(ModifyKind::Name(RenameMode::To));
        let written = EventKind::Modify(ModifyKind::Data(DataChange::Any));
        for (kind, name, expected) in [
            (closed, "p.toml", Some(true)),
            (closed, "other", Some(false)),
            (renamed, "p.toml", Some(true)),
            (renamed, "..data", Some(true)),
            (renamed, "other", Some(false)),
            (written, "p.toml", Some(false)),
            (EventKind::Create(CreateKind::File), "p.toml", Some(false)),
            (EventKind::Access(AccessKind::Open(AccessMode::Read)), "p.toml", None),
        ] {
            let found = classify(kind, name).map(|event| event.is_complete);
            assert_eq!(found, expected, "{kind:?} {name}");
        }
    }
}
