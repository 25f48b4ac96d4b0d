//! What is known of an engine, for those who have to end it without having started it: the keeper, and the next host.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use std::{fs, io};

use serde_json::{Value, json};

use super::marker::Marker;
use super::proc::Id;
use super::shared::Shared;

/// How many files of shared memory are written down at most.
const MOST_SHARED: usize = 64;

/// One engine, as it is written down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record {
    /// Inherited by all its processes.
    pub(super) marker: Marker,
    /// Its first process, whose number is also that of its group and its session; not known while it is being started.
    pub(super) leader: Option<Id>,
    /// The machine's run that `leader` belongs to.
    pub(super) boot: String,
    /// What its command says after `--port`. For readers only.
    pub(super) port: Option<u16>,
    /// Name of the program, without its directory. For readers only.
    pub(super) program: String,
    /// Inodes of the pipes to us that all its processes inherit as their output.
    pub(super) pipes: Vec<u64>,
    /// Its control group, where it has one.
    pub(super) cgroup: Option<PathBuf>,
    /// When it was started, if known; in whole milliseconds.
    pub(super) started: Option<SystemTime>,
    /// Its folder for temporary files, which nobody else uses.
    pub(super) folder: Option<PathBuf>,
    /// Shared memory that it was seen to have made.
    pub(super) shared: BTreeSet<Shared>,
}

impl Record {
    /// An engine of which only this is known yet, in the run of the machine that has this id.
    pub(super) fn new(marker: Marker, boot: &str) -> Self {
        Self {
            marker,
            leader: None,
            boot: boot.to_owned(),
            port: None,
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
        json!({
            "lane": self.marker.lane,
            "home": self.marker.home,
            "nonce": self.marker.nonce,
            "pid": self.leader.map(|leader| leader.pid),
            "start_ticks": self.leader.map(|leader| leader.start),
            "boot_id": self.boot,
            "port": self.port,
            "program": self.program,
            "pipes": self.pipes,
            "cgroup": self.cgroup.as_ref().and_then(|path| path.to_str()),
            "started_ms": started,
            "folder": self.folder.as_ref().and_then(|path| path.to_str()),
            "shared_memory": self.shared.iter().take(MOST_SHARED).map(Shared::to_json).collect::<Vec<_>>(),
        })
    }

    pub(super) fn parse(text: &[u8]) -> Option<Self> {
        let value: Value = serde_json::from_slice(text).ok()?;
        let text = |name: &str| Some(value.get(name)?.as_str()?.to_owned());
        let number = |name: &str| value.get(name)?.as_u64();
        let pid = number("pid").and_then(|pid| u32::try_from(pid).ok());
        let shared = value.get("shared_memory").and_then(Value::as_array).into_iter().flatten();
        let since = |number| SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(number));
        Some(Self {
            marker: Marker { home: text("home")?, lane: text("lane")?, nonce: text("nonce")? },
            leader: pid.zip(number("start_ticks")).map(|(pid, start)| Id { pid, start }),
            boot: text("boot_id")?,
            port: number("port").and_then(|port| u16::try_from(port).ok()),
            program: text("program")?,
            pipes: value.get("pipes")?.as_array()?.iter().filter_map(Value::as_u64).collect(),
            cgroup: text("cgroup").map(PathBuf::from),
            started: number("started_ms").and_then(since),
            folder: text("folder").map(PathBuf::from),
            shared: shared.take(MOST_SHARED).filter_map(Shared::parse).collect(),
        })
    }

    /// Write it so that a reader finds all of it or nothing. Not synced to the disk: after a crash of the machine there is
    /// no engine left that it could be needed for.
    pub(super) fn write(&self, file: &Path) -> io::Result<()> {
        let new = file.with_extension("new");
        fs::write(&new, format!("{:#}\n", self.to_json())).and_then(|()| fs::rename(&new, file))
    }
}

/// The value of `--port` in a command. vLLM and llama.cpp both call it that.
pub(super) fn port_in(words: &[String]) -> Option<u16> {
    let spaced = words.iter().zip(words.iter().skip(1)).find(|(name, _)| *name == "--port");
    let value = spaced
        .map(|(_, value)| value.as_str())
        .or_else(|| words.iter().find_map(|word| word.strip_prefix("--port=")));
    value?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let marker = Marker { home: "h".into(), lane: "a lane".into(), nonce: "n".into() };
        let full = Record {
            marker,
            leader: Some(Id { pid: 7, start: 9 }),
            boot: "b".into(),
            port: Some(80),
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
        assert_eq!(many.shared.len(), MOST_SHARED);
        let bare = Record { program: "vllm".into(), ..Record::new(full.marker.clone(), "b") };
        for record in [full, bare] {
            assert_eq!(Record::parse(record.to_json().to_string().as_bytes()), Some(record));
        }
        assert_eq!(Record::parse(b"{\"lane\":\"a\"}"), None);
        assert_eq!(Record::parse(b"{"), None);
    }

    #[test]
    fn ports_are_found_in_commands() {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(port_in(&words("vllm serve m --port 8001 -x")), Some(8001));
        assert_eq!(port_in(&words("llama-server --port=8002")), Some(8002));
        assert_eq!(port_in(&words("sh --port")), None);
    }
}
