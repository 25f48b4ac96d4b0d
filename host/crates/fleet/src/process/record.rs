//! The record of an engine, from which a process that did not start it can end it: the keeper, and
//! the next host, which can also take it over.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use pointsman_files::{WriteError, write_atomic};
use serde_json::{Value, json};

use super::marker::Marker;
use super::proc::Id;
use super::shared::Shared;

/// Version of the format. Version 1 had no `version` field, and called `state_dir` `home`.
const VERSION: u64 = 2;
/// Maximum number of shared memory files in a record.
const MAX_SHARED: usize = 64;

/// Maximum size of the file of a record in bytes.
pub(super) const MAX_BYTES: u64 = 1 << 20;

/// How far an engine has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Stage {
    /// It has been started, and has not become ready.
    #[default]
    Loading,
    /// It serves.
    Ready,
    /// It has released its memory, and waits to be woken up.
    Asleep,
}

impl Stage {
    fn name(self) -> &'static str {
        match self {
            Self::Loading => "loading",
            Self::Ready => "ready",
            Self::Asleep => "asleep",
        }
    }

    fn parse(name: &str) -> Option<Self> {
        [Self::Loading, Self::Ready, Self::Asleep].into_iter().find(|stage| stage.name() == name)
    }
}

/// What the next host has to know of an engine to take it over.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Note {
    /// Identifies the command, the environment and the driver; see
    /// [`Launch::fingerprint`](crate::launch::Launch::fingerprint). Empty if not known.
    pub(crate) fingerprint: String,
    /// The port, if the host has chosen one.
    pub(crate) port: Option<u16>,
    /// How often the engine of the lane has been started, including this time.
    pub(crate) starts: u64,
    /// How far the engine has come.
    pub(crate) stage: Stage,
    /// What it reported of its memory while it loaded: bytes of the weights and of the key-value
    /// cache, the capacity of that in tokens, and bytes of buffers.
    pub(crate) memory: [Option<u64>; 4],
}

/// The record of one engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record {
    /// The marker that all processes of the engine inherit.
    pub(super) marker: Marker,
    /// The first process, whose id is also that of its group and its session; `None` while the
    /// engine is being started.
    pub(super) leader: Option<Id>,
    /// The boot in which `leader` was started.
    pub(super) boot: String,
    /// What the next host has to know to take the engine over.
    pub(super) note: Note,
    /// The name of the program, without its directory. Informative only.
    pub(super) program: String,
    /// Inodes of the pipes that all processes inherit as their output.
    pub(super) pipes: Vec<u64>,
    /// The control group, if there is one.
    pub(super) cgroup: Option<PathBuf>,
    /// The start time, if known; written in whole milliseconds.
    pub(super) started: Option<SystemTime>,
    /// The scratch directory, which belongs to this engine alone.
    pub(super) folder: Option<PathBuf>,
    /// The shared memory that the engine is known to have created.
    pub(super) shared: BTreeSet<Shared>,
}

impl Record {
    /// Creates a record of an engine of which no more is known yet.
    pub(super) fn new(marker: Marker, boot: &str) -> Self {
        Self {
            marker,
            leader: None,
            boot: boot.to_owned(),
            note: Note::default(),
            program: String::new(),
            pipes: Vec::new(),
            cgroup: None,
            started: None,
            folder: None,
            shared: BTreeSet::new(),
        }
    }

    pub(super) fn to_json(&self) -> Value {
        let since = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).ok();
        let started =
            self.started.and_then(since).and_then(|since| u64::try_from(since.as_millis()).ok());
        let shared: Vec<Value> = self.shared.iter().take(MAX_SHARED).map(Shared::to_json).collect();
        json!({
            "version": VERSION,
            "lane": self.marker.lane,
            "state_dir": self.marker.state_dir,
            "nonce": self.marker.nonce,
            "pid": self.leader.map(|leader| leader.pid),
            "start_ticks": self.leader.map(|leader| leader.start),
            "boot_id": self.boot,
            "port": self.note.port,
            "fingerprint": self.note.fingerprint,
            "starts": self.note.starts,
            "stage": self.note.stage.name(),
            "memory": self.note.memory,
            "program": self.program,
            "pipes": self.pipes,
            "cgroup": self.cgroup.as_ref().and_then(|path| path.to_str()),
            "started_ms": started,
            "folder": self.folder.as_ref().and_then(|path| path.to_str()),
            "shared_memory": shared,
        })
    }

    pub(super) fn parse(text: &[u8]) -> Option<Self> {
        Self::from_json(&serde_json::from_slice(text).ok()?)
    }

    pub(super) fn from_json(value: &Value) -> Option<Self> {
        let text = |name: &str| Some(value.get(name)?.as_str()?.to_owned());
        let number = |name: &str| value.get(name)?.as_u64();
        let pid = number("pid").and_then(|pid| u32::try_from(pid).ok());
        // A record of an earlier version is read too, because the engines of the host that this
        // one replaces have to be found after an upgrade.
        let state_dir = match number("version") {
            None => text("home")?,
            Some(VERSION) => text("state_dir")?,
            Some(_) => return None,
        };
        let shared = value.get("shared_memory").and_then(Value::as_array).into_iter().flatten();
        let since = |number| SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(number));
        Some(Self {
            marker: Marker { state_dir, lane: text("lane")?, nonce: text("nonce")? },
            leader: pid.zip(number("start_ticks")).map(|(pid, start)| Id { pid, start }),
            boot: text("boot_id")?,
            note: Note {
                fingerprint: text("fingerprint").unwrap_or_default(),
                port: number("port").and_then(|port| u16::try_from(port).ok()),
                starts: number("starts").unwrap_or_default(),
                stage: text("stage").and_then(|name| Stage::parse(&name)).unwrap_or_default(),
                memory: [0_usize, 1, 2, 3].map(|index| value["memory"][index].as_u64()),
            },
            program: text("program")?,
            pipes: value.get("pipes")?.as_array()?.iter().filter_map(Value::as_u64).collect(),
            cgroup: text("cgroup").map(PathBuf::from),
            started: number("started_ms").and_then(since),
            folder: text("folder").map(PathBuf::from),
            shared: shared.take(MAX_SHARED).filter_map(Shared::parse).collect(),
        })
    }

    /// Writes the record durably: after a power failure there is no engine left, but its scratch
    /// directory is.
    pub(super) fn write(&self, file: &Path) -> Result<(), WriteError> {
        write_atomic(file, format!("{:#}\n", self.to_json()).as_bytes(), 0o600)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn record_round_trips_through_json() {
        let marker = Marker { state_dir: "h".into(), lane: "a lane".into(), nonce: "n".into() };
        let full = Record {
            marker,
            leader: Some(Id { pid: 7, start: 9 }),
            boot: "b".into(),
            note: Note {
                fingerprint: "f".into(),
                port: Some(80),
                starts: 3,
                stage: Stage::Asleep,
                memory: [Some(1), None, Some(3), Some(4)],
            },
            program: "vllm".into(),
            pipes: vec![1, 2],
            cgroup: Some("/sys/fs/cgroup/x".into()),
            started: Some(SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_123)),
            folder: Some("/tmp/pointsman-x".into()),
            shared: Shared::parse(&json!(["psm_1", 1, 2])).into_iter().collect(),
        };
        let mut many = full.clone();
        many.shared.extend((0..99).filter_map(|inode| Shared::parse(&json!(["x", 0, inode]))));
        let many = Record::parse(many.to_json().to_string().as_bytes()).unwrap();
        assert_eq!(many.shared.len(), MAX_SHARED);
        let bare = Record { program: "vllm".into(), ..Record::new(full.marker.clone(), "b") };
        for record in [full, bare] {
            assert_eq!(Record::parse(record.to_json().to_string().as_bytes()), Some(record));
        }
        assert_eq!(Record::parse(b"{\"lane\":\"a\"}"), None);
        assert_eq!(Record::parse(b"{"), None);
    }

    #[test]
    fn version_1_is_read_and_later_versions_are_not() {
        let marker = Marker { state_dir: "h".into(), lane: "a".into(), nonce: "n".into() };
        let record = Record::new(marker, "b");
        let json = record.to_json();
        assert_eq!(json["version"], VERSION);
        let mut first = json.clone();
        first["home"] = first["state_dir"].take();
        first["version"].take();
        assert_eq!(Record::parse(first.to_string().as_bytes()), Some(record));
        let mut later = json;
        later["version"] = (VERSION + 1).into();
        assert_eq!(Record::parse(later.to_string().as_bytes()), None);
    }
}
