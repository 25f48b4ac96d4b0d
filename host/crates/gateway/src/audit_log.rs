//! What operators have done: each action that changes something, with who, when and how it ended.
//! It is in the log, in memory for the console, and in a bounded file of the state directory.

use std::collections::VecDeque;
use std::fs::{self, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use pointsman_files::{open_private, open_private_with};
use serde_json::Value;
use tokio::runtime::Handle;

/// Name of the file in the state directory.
const FILE: &str = "actions.jsonl";
/// Bytes after which the file is renamed to `actions.jsonl.1`, and a new one begins.
const MAX_FILE: u64 = 1 << 20;
/// Actions in memory.
const MAX_KEPT: usize = 256;

/// The actions of operators. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct AuditLog(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    kept: Mutex<VecDeque<Value>>,
    /// Locked while a line is written, so that lines do not mix with a rotation.
    file: Mutex<Option<PathBuf>>,
}

impl AuditLog {
    /// Opens the log in a state directory, and reads the last actions of earlier hosts; without a
    /// directory, they are kept in memory only. Does blocking work.
    pub fn open(state_dir: Option<&Path>) -> Self {
        let path = state_dir.map(|dir| dir.join(FILE));
        let earlier = path.as_deref().map(last_actions).unwrap_or_default();
        Self(Arc::new(Shared { kept: Mutex::new(earlier), file: Mutex::new(path) }))
    }

    /// Adds an action.
    pub(crate) fn push(&self, action: Value) {
        let line = format!("{action}\n");
        let mut kept = self.0.kept.lock();
        if kept.len() == MAX_KEPT {
            kept.pop_front();
        }
        kept.push_back(action);
        drop(kept);
        match Handle::try_current() {
            // Not awaited: the action is done, and a slow disk must not hold up its response.
            Ok(runtime) => {
                let log = self.clone();
                drop(runtime.spawn_blocking(move || log.write(&line)));
            }
            // The host ends.
            Err(_) => self.write(&line),
        }
    }

    /// Returns the last actions, oldest first.
    pub(crate) fn list(&self) -> Vec<Value> {
        self.0.kept.lock().iter().cloned().collect()
    }

    fn write(&self, line: &str) {
        let file = self.0.file.lock();
        let Some(path) = &*file else { return };
        if let Err(error) = append(path, line) {
            tracing::warn!(event = "audit_file_failed", %error, "failed to write an action");
        }
    }
}

fn append(path: &Path, line: &str) -> io::Result<()> {
    if fs::metadata(path).is_ok_and(|file| file.len() >= MAX_FILE) {
        fs::rename(path, path.with_extension("jsonl.1"))?;
    }
    let file = open_private_with(path, OpenOptions::new().append(true).create(true));
    let mut file = file.map_err(io::Error::other)?;
    file.write_all(line.as_bytes())
}

/// Returns the last actions of the file. What cannot be read is left out.
fn last_actions(path: &Path) -> VecDeque<Value> {
    let mut text = Vec::new();
    let mut read = || -> io::Result<()> {
        let mut file = open_private(path).map_err(io::Error::other)?;
        let begin = file.metadata()?.len().saturating_sub(MAX_FILE);
        file.seek(SeekFrom::Start(begin))?;
        file.take(MAX_FILE).read_to_end(&mut text).map(drop)
    };
    // A first host has no file.
    if read().is_err() {
        return VecDeque::new();
    }
    let lines = text.split(|byte| *byte == b'\n').rev();
    let actions = lines.filter_map(|line| serde_json::from_slice::<Value>(line).ok());
    let mut actions: VecDeque<Value> = actions.take(MAX_KEPT).collect();
    actions.make_contiguous().reverse();
    actions
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn file_is_bounded_and_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let log = AuditLog::open(Some(dir.path()));
        assert!(log.list().is_empty());
        let line =
            |number: usize| format!("{}\n", json!({ "number": number, "text": "x".repeat(5000) }));
        (0..500).for_each(|number| log.write(&line(number)));
        let size = |name: &str| fs::metadata(dir.path().join(name)).unwrap().len();
        assert!(size(FILE) <= MAX_FILE + 5100 && size("actions.jsonl.1") <= MAX_FILE + 5100);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
        fs::write(dir.path().join(FILE), format!("{}torn\n{}", line(1), line(2))).unwrap();
        let numbers = |log: &AuditLog| -> Vec<Value> {
            log.list().into_iter().map(|mut action| action["number"].take()).collect()
        };
        assert_eq!(numbers(&AuditLog::open(Some(dir.path()))), [json!(1), json!(2)]);
    }
}
