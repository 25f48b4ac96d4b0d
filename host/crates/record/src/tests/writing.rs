//! From [`Recorder::record`] to the files.

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pointsman_domain::{ChainInfo, LinkInfo, OnConflict, PolicyRef};
use prometheus_client::registry::Registry;
use rustix::fs::{CWD, FileType, Mode as Bits, OFlags, mknodat};
use tempfile::TempDir;

use super::made::{fleet, limits, plain};
use crate::metrics::Why;
use crate::*;

const LONG: Duration = Duration::from_secs(20);

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

struct Desk {
    dir: TempDir,
    recorder: Recorder,
    writer: Writer,
    metrics: Arc<RecordMetrics>,
}

impl Desk {
    fn new(change: impl FnOnce(&mut Settings)) -> Self {
        Self::in_folder(tempfile::tempdir().unwrap(), change)
    }

    fn in_folder(dir: TempDir, change: impl FnOnce(&mut Settings)) -> Self {
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

    /// Wait until that many records were written or dropped.
    fn wait_for(&self, count: u64) {
        let begun = Instant::now();
        let metrics = &self.metrics;
        while metrics.written.get()
            + metrics.dropped_for(Why::Disk)
            + metrics.dropped_for(Why::Queue)
            < count
        {
            assert!(begun.elapsed() < LONG, "{metrics:?}");
            std::thread::park_timeout(Duration::from_millis(1));
        }
    }

    fn finish(self) -> (TempDir, Arc<RecordMetrics>) {
        assert!(self.writer.finish(LONG));
        (self.dir, self.metrics)
    }
}

fn entry(id: &str, generation: u64) -> Entry {
    let decision = DecisionRecord { topology: generation, ..plain(id) };
    Entry { decision, fleet: fleet(generation), chain: None, request: None }
}

/// Kinds of the records of a file: `t3` for a topology, the id for a decision.
fn contents(file: &Path) -> Vec<String> {
    let shown = |record: Result<Record, ReadError>| match record.unwrap() {
        Record::Topology(topology) => format!("t{}", topology.generation),
        Record::Policies(chain) => format!("p{}", chain.policies.len()),
        Record::Decision(decision) => {
            assert_eq!(decision.fleet.len(), 2);
            decision.request_id.to_string()
        }
    };
    records(std::io::BufReader::new(File::open(file).unwrap())).map(shown).collect()
}

#[test]
fn each_run_and_each_table_of_lanes_begins_with_its_topology() {
    let desk = Desk::new(|_| {});
    for (id, generation) in [("a", 1), ("b", 1), ("c", 2), ("d", 1)] {
        desk.recorder.record(entry(id, generation));
    }
    let file = desk.file();
    let (dir, metrics) = desk.finish();
    assert_eq!(contents(&file), ["t1", "a", "b", "t2", "c", "d"]);
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::metadata(file.parent().unwrap()).unwrap().permissions().mode() & 0o777, 0o700);
    assert_eq!(
        (metrics.written.get(), metrics.bytes.get()),
        (4, fs::metadata(&file).unwrap().len())
    );

    // The host was killed in the middle of a line, and somebody was careless with the file.
    OpenOptions::new()
        .append(true)
        .open(&file)
        .unwrap()
        .write_all(b"{\"v\":1,\"kind\":\"deci")
        .unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    let desk = Desk::in_folder(dir, |_| {});
    desk.record("e");
    let (_dir, _) = desk.finish();
    assert_eq!(contents(&file), ["t1", "a", "b", "t2", "c", "d", "t1", "e"]);
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn each_chain_of_policies_is_written_before_its_first_decision() {
    let desk = Desk::new(|settings| settings.redact.text = Rule::Drop);
    let link = LinkInfo {
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
        desk.recorder.record(Entry { chain: chain.cloned(), ..entry(id, 1) });
    }
    let file = desk.file();
    let (_dir, _) = desk.finish();
    assert_eq!(contents(&file), ["t1", "a", "p1", "b", "p2", "c", "d"]);
    let text = fs::read_to_string(&file).unwrap();
    assert!(
        text.contains(r#""config":{"prompt":"redacted:8","most":3}"#) && !text.contains("secret"),
        "{text}"
    );
}

#[test]
fn files_are_rotated_and_the_oldest_go() {
    const MOST: u64 = 8 << 10;
    let desk = Desk::new(|settings| settings.max_size = MOST);
    for number in 0..200 {
        desk.record(&format!("r{number}"));
        desk.wait_for(number + 1);
    }
    let (dir, metrics) = desk.finish();
    let found = files(&dir.path().join("records")).unwrap();
    let names: Vec<&str> =
        found.iter().map(|path| path.file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(names, ["decisions.2.jsonl", "decisions.1.jsonl", "decisions.jsonl"]);
    let mut ids = Vec::new();
    for file in &found {
        assert!(fs::metadata(file).unwrap().len() < MOST + 2048);
        let mut of_file = contents(file);
        assert_eq!(of_file.remove(0), "t1", "each file stands for itself");
        ids.extend(of_file);
    }
    let last: Vec<String> = (200 - ids.len()..200).map(|number| format!("r{number}")).collect();
    assert_eq!(ids, last, "the latest ones, without a gap");
    assert!(ids.len() > 10 && metrics.written.get() == 200, "{}", ids.len());

    // Fewer files than before: what is too much goes with the next rotation.
    let desk = Desk::in_folder(dir, |settings| (settings.max_size, settings.keep) = (1, 0));
    desk.record("only");
    let (dir, _) = desk.finish();
    let found = files(&dir.path().join("records")).unwrap();
    assert_eq!((found.len(), contents(&found[0])), (1, vec!["t1".to_owned(), "only".to_owned()]));
}

#[test]
fn a_removed_file_is_made_again() {
    let desk = Desk::new(|_| {});
    desk.record("a");
    desk.wait_for(1);
    fs::remove_file(desk.file()).unwrap();
    desk.record("b");
    let file = desk.file();
    let (_dir, _) = desk.finish();
    assert_eq!(contents(&file), ["t1", "b"]);
}

#[test]
fn two_hosts_do_not_write_to_one_file() {
    let first = Desk::new(|_| {});
    first.record("a");
    first.wait_for(1);
    let metrics = RecordMetrics::register(&mut Registry::default());
    let (second, writer) =
        Recorder::start(settings(first.dir.path()), Arc::clone(&metrics)).unwrap();
    second.record(entry("b", 1));
    assert!(writer.finish(LONG));
    assert_eq!(
        (metrics.written.get(), metrics.dropped_for(Why::Disk), metrics.errors.get()),
        (0, 1, 1)
    );
    let file = first.file();
    let (_dir, _) = first.finish();
    assert_eq!(contents(&file), ["t1", "a"]);
}

#[test]
fn with_a_full_disk_records_are_dropped_until_there_is_room() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("records/decisions.jsonl");
    fs::create_dir(file.parent().unwrap()).unwrap();
    symlink("/dev/full", &file).unwrap();
    let desk = Desk::in_folder(dir, |_| {});
    for number in 1..=20 {
        desk.record("lost");
        desk.wait_for(number);
    }
    assert_eq!((desk.metrics.written.get(), desk.metrics.dropped_for(Why::Disk)), (0, 20));
    fs::remove_file(&file).unwrap();
    desk.record("kept");
    let (_dir, metrics) = desk.finish();
    assert_eq!(contents(&file), ["t1", "kept"]);
    assert_eq!((metrics.written.get(), metrics.errors.get()), (1, 20));
}

/// A disk that takes half a line: a pipe that nobody empties behaves so.
#[test]
fn what_was_torn_does_not_spoil_what_follows() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("records/decisions.jsonl");
    fs::create_dir(file.parent().unwrap()).unwrap();
    mknodat(CWD, &file, FileType::Fifo, Bits::RUSR | Bits::WUSR, 0).unwrap();
    let desk = Desk::in_folder(dir, |_| {});
    desk.record("nobody reads");
    desk.wait_for(1);
    let nonblock = OFlags::NONBLOCK.bits().cast_signed();
    let mut pipe = OpenOptions::new().read(true).custom_flags(nonblock).open(&file).unwrap();
    let huge = "x".repeat(200 << 10);
    desk.recorder.record(Entry { decision: plain(&huge), ..entry("", 1) });
    desk.wait_for(2);
    assert_eq!(desk.metrics.dropped_for(Why::Disk), 2);
    let mut text = Vec::new();
    // Everything there is, up to "try again".
    drop(pipe.read_to_end(&mut text));
    desk.record("whole");
    desk.wait_for(3);
    drop(pipe.read_to_end(&mut text));
    let (_dir, metrics) = desk.finish();
    assert_eq!(metrics.written.get(), 1);
    let found: Vec<_> = records(text.as_slice()).collect();
    let good: Vec<_> = found.iter().filter_map(|record| record.as_ref().ok()).collect();
    assert_eq!(found.iter().filter(|record| record.is_err()).count(), 1, "the torn line");
    assert!(matches!(good.last(), Some(Record::Decision(last)) if &*last.request_id == "whole"));
}

#[test]
fn a_flood_is_dropped_and_counted_and_nobody_waits() {
    for (records, bytes) in [(8, 64 << 20), (100_000, 20_000)] {
        let desk = Desk::new(|settings| settings.queue = QueueLimits { records, bytes });
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let recorder = desk.recorder.clone();
                scope.spawn(move || {
                    (0..5_000)
                        .for_each(|number| recorder.record(entry(&format!("{thread}-{number}"), 1)))
                });
            }
        });
        let file = desk.file();
        let (_dir, metrics) = desk.finish();
        let (written, dropped) = (metrics.written.get(), metrics.dropped_for(Why::Queue));
        assert_eq!(written + dropped, 20_000, "each is written or counted");
        assert!(dropped > 0 && written > 0, "{written} and {dropped}");
        let found = files(file.parent().unwrap()).unwrap();
        assert!(found.iter().all(|file| contents(file).len() > 1));
    }
}

#[test]
fn at_the_end_the_queue_is_emptied_and_nothing_more_taken() {
    let desk = Desk::new(|settings| settings.keep = 100);
    (0..5_000).for_each(|number| desk.record(&number.to_string()));
    let recorder = desk.recorder.clone();
    let (dir, metrics) = desk.finish();
    recorder.record(entry("late", 1));
    assert_eq!((metrics.written.get(), metrics.dropped_for(Why::Stopped)), (5_000, 1));
    let found = files(&dir.path().join("records")).unwrap();
    let ids: Vec<String> =
        found.iter().flat_map(|file| contents(file)).filter(|id| !id.starts_with('t')).collect();
    assert_eq!(ids, (0..5_000).map(|number| number.to_string()).collect::<Vec<_>>());
}

#[test]
fn whole_requests_are_made_by_the_thread_that_writes_them() {
    let desk = Desk::new(|settings| settings.mode = Mode::Full { max_body: 100 });
    assert_eq!(desk.recorder.mode(), Mode::Full { max_body: 100 });
    let here = std::thread::current().id();
    let request = move || {
        assert_ne!(std::thread::current().id(), here);
        RequestRecord { headers: Vec::new(), body: Some("{ \"model\" : \"auto\" }".to_owned()) }
    };
    desk.recorder.record(Entry { request: Some((20, Box::new(request))), ..entry("a", 1) });
    let file = desk.file();
    let (_dir, _) = desk.finish();
    assert!(
        fs::read_to_string(file).unwrap().contains(r#""body":"{ \"model\" : \"auto\" }""#),
        "byte for byte"
    );
}

#[test]
fn a_folder_that_cannot_be_made_is_named() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("records"), b"").unwrap();
    let metrics = RecordMetrics::register(&mut Registry::default());
    let error = Recorder::start(settings(dir.path()), metrics).unwrap_err().to_string();
    assert!(error.contains("records: the folder cannot be made"), "{error}");
}
