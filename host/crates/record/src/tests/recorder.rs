//! Tests of the path from [`Recorder::record`] to the files.

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pointsman_domain::{ChainInfo, ChainLink, OnConflict, PolicyRef};
use prometheus_client::registry::Registry;
use rustix::fs::{CWD, FileType, Mode as Bits, OFlags, mknodat};
use tempfile::TempDir;

use super::fixtures::{fleet, limits, plain};
use crate::metrics::DropReason;
use crate::*;

const TIMEOUT: Duration = Duration::from_secs(20);

fn settings(dir: &Path) -> Settings {
    Settings {
        dir: dir.join("records"),
        mode: Mode::Decisions,
        sample: Sample::ALL,
        errors: false,
        max_size: 1 << 20,
        keep: 2,
        queue: QueueLimits { records: 10_000, bytes: 64 << 20 },
        redact: Redact::nothing(Key::from_secret("test")),
        host: "0.1.0".to_owned(),
        limits: limits(),
    }
}

struct RecorderHarness {
    dir: TempDir,
    recorder: Recorder,
    writer: Writer,
    metrics: Arc<RecordMetrics>,
}

impl RecorderHarness {
    fn new(change: impl FnOnce(&mut Settings)) -> Self {
        Self::in_dir(tempfile::tempdir().unwrap(), change)
    }

    fn in_dir(dir: TempDir, change: impl FnOnce(&mut Settings)) -> Self {
        let mut settings = settings(dir.path());
        change(&mut settings);
        let metrics = RecordMetrics::register(&mut Registry::default());
        let (recorder, writer) = Recorder::start(settings, Arc::clone(&metrics)).unwrap();
        Self { dir, recorder, writer, metrics }
    }

    fn record(&self, id: &str) {
        self.recorder.record(entry(id, 1));
    }

    fn file(&self) -> std::path::PathBuf {
        self.dir.path().join("records/decisions.jsonl")
    }

    /// Waits until `count` records were written or dropped.
    fn wait_for(&self, count: u64) {
        let started = Instant::now();
        let metrics = &self.metrics;
        while metrics.written.get()
            + metrics.dropped_for(DropReason::Disk)
            + metrics.dropped_for(DropReason::Queue)
            < count
        {
            assert!(started.elapsed() < TIMEOUT, "{metrics:?}");
            #[expect(clippy::disallowed_methods, reason = "polls a condition")]
            std::thread::park_timeout(Duration::from_millis(1));
        }
    }

    fn finish(self) -> (TempDir, Arc<RecordMetrics>) {
        assert!(self.writer.finish(TIMEOUT));
        (self.dir, self.metrics)
    }
}

fn entry(id: &str, generation: u64) -> Entry {
    let decision = DecisionRecord { topology: generation, ..plain(id) };
    Entry { decision: Arc::new(decision), fleet: fleet(generation), chain: None, request: None }
}

/// Returns the records of a file: `t3` for topology 3, `p2` for a chain of 2 policies, the request
/// id for a decision.
fn contents(file: &Path) -> Vec<String> {
    let summary = |record: Result<Record, ReadError>| match record.unwrap() {
        Record::Topology(topology) => format!("t{}", topology.generation),
        Record::Policies(chain) => format!("p{}", chain.policies.len()),
        Record::Decision(decision) => {
            assert_eq!(decision.fleet.len(), 2);
            decision.request_id.to_string()
        }
    };
    records(std::io::BufReader::new(File::open(file).unwrap())).map(summary).collect()
}

#[test]
fn topology_is_written_before_its_first_decision_in_each_run() {
    let harness = RecorderHarness::new(|_| {});
    for (id, generation) in [("a", 1), ("b", 1), ("c", 2), ("d", 1)] {
        harness.recorder.record(entry(id, generation));
    }
    let file = harness.file();
    let (dir, metrics) = harness.finish();
    assert_eq!(contents(&file), ["t1", "a", "b", "t2", "c", "d"]);
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::metadata(file.parent().unwrap()).unwrap().permissions().mode() & 0o777, 0o700);
    assert_eq!(
        (metrics.written.get(), metrics.bytes.get()),
        (4, fs::metadata(&file).unwrap().len())
    );

    // The host was killed while writing a line, and the file's mode was changed.
    OpenOptions::new()
        .append(true)
        .open(&file)
        .unwrap()
        .write_all(b"{\"v\":1,\"kind\":\"deci")
        .unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    let harness = RecorderHarness::in_dir(dir, |_| {});
    harness.record("e");
    let (_dir, _) = harness.finish();
    assert_eq!(contents(&file), ["t1", "a", "b", "t2", "c", "d", "t1", "e"]);
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn settings_change_without_losing_records() {
    let harness = RecorderHarness::new(|_| {});
    harness.record("a");
    let mut changed = settings(harness.dir.path());
    changed.dir = harness.dir.path().join("other");
    changed.mode = Mode::Full { max_body: 7 };
    changed.queue.records = 1;
    let recorder = harness.writer.reconfigure(changed).unwrap();
    assert_eq!(recorder.mode(), Mode::Full { max_body: 7 });
    harness.wait_for(1);
    // A request that has begun before still has the earlier handle.
    harness.record("b");
    harness.wait_for(2);
    recorder.record(entry("c", 1));
    harness.wait_for(3);
    let mut broken = settings(harness.dir.path());
    broken.dir = harness.file();
    assert!(harness.writer.reconfigure(broken).is_err());
    recorder.record(entry("d", 1));
    let file = harness.file();
    let (dir, _) = harness.finish();
    assert_eq!(contents(&file), ["t1", "a"]);
    assert_eq!(contents(&dir.path().join("other/decisions.jsonl")), ["t1", "b", "c", "d"]);
}

#[test]
fn chain_is_written_before_its_first_decision() {
    let harness = RecorderHarness::new(|settings| settings.redact.text = Rule::Drop);
    let link = ChainLink {
        policy: PolicyRef::new("a", "1"),
        fingerprint: "f".to_owned(),
        component: "c".to_owned(),
        weight: 1000,
        on_error: "skip".to_owned(),
        trial: None,
        config: serde_json::json!({ "prompt": "a secret", "most": 3 }),
    };
    let one = Arc::new(ChainInfo::new(OnConflict::Refuse, vec![link.clone()]));
    let two = Arc::new(ChainInfo::new(OnConflict::Refuse, vec![link.clone(), link]));
    for (id, chain) in [("a", None), ("b", Some(&one)), ("c", Some(&two)), ("d", Some(&one))] {
        harness.recorder.record(Entry { chain: chain.cloned(), ..entry(id, 1) });
    }
    let file = harness.file();
    let (_dir, _) = harness.finish();
    assert_eq!(contents(&file), ["t1", "a", "p1", "b", "p2", "c", "d"]);
    let text = fs::read_to_string(&file).unwrap();
    assert!(
        text.contains(r#""config":{"prompt":"redacted:8","most":3}"#) && !text.contains("secret"),
        "{text}"
    );
}

#[test]
fn files_are_rotated_and_the_oldest_are_deleted() {
    const MAX_SIZE: u64 = 8 << 10;
    let harness = RecorderHarness::new(|settings| settings.max_size = MAX_SIZE);
    for number in 0..200 {
        harness.record(&format!("r{number}"));
        harness.wait_for(number + 1);
    }
    let (dir, metrics) = harness.finish();
    let found = files(&dir.path().join("records")).unwrap();
    let names: Vec<&str> =
        found.iter().map(|path| path.file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(names, ["decisions.2.jsonl", "decisions.1.jsonl", "decisions.jsonl"]);
    let mut ids = Vec::new();
    for file in &found {
        assert!(fs::metadata(file).unwrap().len() < MAX_SIZE + 2048);
        let mut of_file = contents(file);
        assert_eq!(of_file.remove(0), "t1", "each file is self-contained");
        ids.extend(of_file);
    }
    let last: Vec<String> = (200 - ids.len()..200).map(|number| format!("r{number}")).collect();
    assert_eq!(ids, last, "the latest records, without a gap");
    assert!(ids.len() > 10 && metrics.written.get() == 200, "{}", ids.len());

    // With a lower limit, excess files are deleted by the next rotation.
    let harness =
        RecorderHarness::in_dir(dir, |settings| (settings.max_size, settings.keep) = (1, 0));
    harness.record("only");
    let (dir, _) = harness.finish();
    let found = files(&dir.path().join("records")).unwrap();
    assert_eq!((found.len(), contents(&found[0])), (1, vec!["t1".to_owned(), "only".to_owned()]));
}

#[test]
fn removed_file_is_created_again() {
    let harness = RecorderHarness::new(|_| {});
    harness.record("a");
    harness.wait_for(1);
    fs::remove_file(harness.file()).unwrap();
    harness.record("b");
    let file = harness.file();
    let (_dir, _) = harness.finish();
    assert_eq!(contents(&file), ["t1", "b"]);
}

#[test]
fn file_locked_by_another_host_is_not_written() {
    let first = RecorderHarness::new(|_| {});
    first.record("a");
    first.wait_for(1);
    let metrics = RecordMetrics::register(&mut Registry::default());
    let (second, writer) =
        Recorder::start(settings(first.dir.path()), Arc::clone(&metrics)).unwrap();
    second.record(entry("b", 1));
    assert!(writer.finish(TIMEOUT));
    assert_eq!(
        (metrics.written.get(), metrics.dropped_for(DropReason::Disk), metrics.errors.get()),
        (0, 1, 1)
    );
    let file = first.file();
    let (_dir, _) = first.finish();
    assert_eq!(contents(&file), ["t1", "a"]);
}

#[test]
fn records_are_dropped_while_the_disk_is_full() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("records/decisions.jsonl");
    fs::create_dir(file.parent().unwrap()).unwrap();
    // Number 7 of the memory devices is /dev/full. Only root can create it; a link to it, which is
    // not followed, serves other users.
    let full =
        mknodat(CWD, &file, FileType::CharacterDevice, Bits::RUSR | Bits::WUSR, (1 << 8) | 7);
    if full.is_err() {
        symlink("/dev/full", &file).unwrap();
    }
    let harness = RecorderHarness::in_dir(dir, |_| {});
    for number in 1..=20 {
        harness.record("lost");
        harness.wait_for(number);
    }
    assert_eq!(
        (harness.metrics.written.get(), harness.metrics.dropped_for(DropReason::Disk)),
        (0, 20)
    );
    fs::remove_file(&file).unwrap();
    harness.record("kept");
    let (_dir, metrics) = harness.finish();
    assert_eq!(contents(&file), ["t1", "kept"]);
    assert_eq!((metrics.written.get(), metrics.errors.get()), (1, 20));
}

#[test]
fn links_are_not_followed_and_folders_of_others_are_rejected() {
    let dir = tempfile::tempdir().unwrap();
    let (folder, victim) = (dir.path().join("records"), dir.path().join("victim"));
    fs::create_dir(&folder).unwrap();
    fs::write(&victim, "precious").unwrap();
    symlink(&victim, folder.join("decisions.jsonl")).unwrap();
    let harness = RecorderHarness::in_dir(dir, |_| {});
    harness.record("lost");
    harness.wait_for(1);
    let (dir, metrics) = harness.finish();
    assert_eq!(metrics.dropped_for(DropReason::Disk), 1);
    assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)).unwrap();
    let error = crate::file::Files::new(folder, 1, 1).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied);
    drop(dir);
}

/// A partial write, for which a pipe without a reader serves.
#[test]
fn partial_line_does_not_damage_the_next_one() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("records/decisions.jsonl");
    fs::create_dir(file.parent().unwrap()).unwrap();
    mknodat(CWD, &file, FileType::Fifo, Bits::RUSR | Bits::WUSR, 0).unwrap();
    let harness = RecorderHarness::in_dir(dir, |_| {});
    harness.record("unread");
    harness.wait_for(1);
    let nonblock = OFlags::NONBLOCK.bits().cast_signed();
    let mut pipe = OpenOptions::new().read(true).custom_flags(nonblock).open(&file).unwrap();
    let huge = "x".repeat(200 << 10);
    harness.recorder.record(Entry { decision: Arc::new(plain(&huge)), ..entry("", 1) });
    harness.wait_for(2);
    assert_eq!(harness.metrics.dropped_for(DropReason::Disk), 2);
    let mut text = Vec::new();
    // Reads until the empty pipe reports `WouldBlock`.
    pipe.read_to_end(&mut text).ok();
    harness.record("whole");
    harness.wait_for(3);
    pipe.read_to_end(&mut text).ok();
    let (_dir, metrics) = harness.finish();
    assert_eq!(metrics.written.get(), 1);
    let found: Vec<_> = records(text.as_slice()).collect();
    let complete: Vec<_> = found.iter().filter_map(|record| record.as_ref().ok()).collect();
    assert_eq!(found.iter().filter(|record| record.is_err()).count(), 1, "the partial line");
    assert!(
        matches!(complete.last(), Some(Record::Decision(last)) if &*last.request_id == "whole")
    );
}

#[test]
fn records_beyond_the_queue_limits_are_dropped_and_counted() {
    for (records, bytes) in [(8, 64 << 20), (100_000, 20_000)] {
        let harness =
            RecorderHarness::new(|settings| settings.queue = QueueLimits { records, bytes });
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let recorder = harness.recorder.clone();
                scope.spawn(move || {
                    (0..5_000)
                        .for_each(|number| recorder.record(entry(&format!("{thread}-{number}"), 1)))
                });
            }
        });
        let file = harness.file();
        let (_dir, metrics) = harness.finish();
        let (written, dropped) = (metrics.written.get(), metrics.dropped_for(DropReason::Queue));
        assert_eq!(written + dropped, 20_000, "each record is written or counted as dropped");
        assert!(dropped > 0 && written > 0, "{written} and {dropped}");
        let found = files(file.parent().unwrap()).unwrap();
        assert!(found.iter().all(|file| contents(file).len() > 1));
    }
}

#[test]
fn finish_writes_the_queue_and_accepts_no_more_records() {
    let harness = RecorderHarness::new(|settings| settings.keep = 100);
    (0..5_000).for_each(|number| harness.record(&number.to_string()));
    let recorder = harness.recorder.clone();
    let (dir, metrics) = harness.finish();
    recorder.record(entry("late", 1));
    assert_eq!((metrics.written.get(), metrics.dropped_for(DropReason::Stopped)), (5_000, 1));
    let found = files(&dir.path().join("records")).unwrap();
    let ids: Vec<String> =
        found.iter().flat_map(|file| contents(file)).filter(|id| !id.starts_with('t')).collect();
    assert_eq!(ids, (0..5_000).map(|number| number.to_string()).collect::<Vec<_>>());
}

#[test]
fn request_records_are_created_on_the_writer_thread() {
    let harness = RecorderHarness::new(|settings| settings.mode = Mode::Full { max_body: 100 });
    assert_eq!(harness.recorder.mode(), Mode::Full { max_body: 100 });
    let here = std::thread::current().id();
    let request = move || {
        assert_ne!(std::thread::current().id(), here);
        RequestRecord { headers: Vec::new(), body: Some("{ \"model\" : \"auto\" }".to_owned()) }
    };
    harness.recorder.record(Entry { request: Some((20, Box::new(request))), ..entry("a", 1) });
    let file = harness.file();
    let (_dir, _) = harness.finish();
    assert!(
        fs::read_to_string(file).unwrap().contains(r#""body":"{ \"model\" : \"auto\" }""#),
        "byte for byte"
    );
}

#[test]
fn start_fails_if_the_directory_cannot_be_created() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("records"), b"").unwrap();
    let metrics = RecordMetrics::register(&mut Registry::default());
    let error = Recorder::start(settings(dir.path()), metrics).unwrap_err();
    let expected = dir.path().join("records");
    assert!(matches!(&error, StartError::CreateDir { path, .. } if *path == expected), "{error}");
}
