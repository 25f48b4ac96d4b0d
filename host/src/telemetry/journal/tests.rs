use std::collections::BTreeMap;
use std::io::{IoSliceMut, Read as _, Seek as _};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use pointsman_config::LogFormat;
use prometheus_client::registry::Registry;
use rustix::fs::fcntl_get_seals;
use rustix::net::sockopt::set_socket_send_buffer_size;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use tracing::Subscriber;
use tracing_subscriber::EnvFilter;

use super::*;
use crate::telemetry::format::Style;
use crate::telemetry::{LogHandle, subscriber};

const WAIT: Duration = Duration::from_secs(60);
/// What a client would send to write a field, or an entry, of its own.
const FORGED: &str = "x\nPRIORITY=0\nPOINTSMAN_TENANT=root\n\nMESSAGE=forged\u{1b}[31m\u{85}=";

#[derive(Clone, Default)]
struct Buffer(Arc<Mutex<Vec<u8>>>);

impl Write for Buffer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A socket in the place of the journal's, and a log that writes to it.
struct Journal {
    dir: tempfile::TempDir,
    socket: UnixDatagram,
    fallback: Buffer,
}

impl Journal {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = bind(dir.path());
        Self { dir, socket, fallback: Buffer::default() }
    }

    fn writer(&self) -> JournalWriter<Buffer> {
        JournalWriter::new(&self.dir.path().join("socket"), self.fallback.clone()).ok().unwrap()
    }

    fn next(&self) -> BTreeMap<String, String> {
        let mut buffer = vec![0; 1 << 20];
        let length = self.socket.recv(&mut buffer).unwrap();
        fields(&buffer[..length])
    }
}

fn log(writer: JournalWriter<Buffer>) -> (impl Subscriber + Send + Sync, LogHandle) {
    let style = Style { is_entry: true, ..Style::default() };
    subscriber(EnvFilter::new("info"), (LogFormat::Text, style), writer, None).unwrap()
}

fn bind(dir: &Path) -> UnixDatagram {
    let socket = UnixDatagram::bind(dir.join("socket")).unwrap();
    socket.set_read_timeout(Some(WAIT)).unwrap();
    socket
}

/// Reads an entry as the journal does; fails if a field is there twice.
fn fields(mut datagram: &[u8]) -> BTreeMap<String, String> {
    let mut fields = BTreeMap::new();
    while !datagram.is_empty() {
        let end = datagram.iter().position(|byte| *byte == b'\n').unwrap();
        let (line, rest) = (&datagram[..end], &datagram[end + 1..]);
        let (name, value, rest) = match line.iter().position(|byte| *byte == b'=') {
            Some(equals) => (&line[..equals], &line[equals + 1..], rest),
            None => {
                let (length, rest) = rest.split_first_chunk::<8>().unwrap();
                let length = usize::try_from(u64::from_le_bytes(*length)).unwrap();
                assert_eq!(rest[length], b'\n');
                (line, &rest[..length], &rest[length + 1..])
            }
        };
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let is_new = fields.insert(text(name), text(value)).is_none();
        assert!(is_new, "{} is there twice", text(name));
        datagram = rest;
    }
    fields
}

fn dropped(handle: &LogHandle) -> u64 {
    let mut registry = Registry::default();
    handle.register(&mut registry);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    let name = "pointsman_log_lines_dropped_total{reason=\"queue\"} ";
    text.lines().find_map(|line| line.strip_prefix(name)).unwrap().parse().unwrap()
}

#[test]
fn fields_of_an_event_and_its_spans_are_fields_of_the_entry() {
    let journal = Journal::new();
    let (subscriber, _handle) = log(journal.writer());
    tracing::subscriber::with_default(subscriber, || {
        let span = tracing::info_span!("request", request_id = FORGED, lane = "a", tenant = "t");
        span.in_scope(|| tracing::warn!(code = "queue_full", status = 503, lane = "b", "{FORGED}"));
    });
    let entry = journal.next();
    let names: Vec<&str> = entry.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        [
            "MESSAGE",
            "POINTSMAN_CODE",
            "POINTSMAN_LANE",
            "POINTSMAN_REQUEST",
            "POINTSMAN_STATUS",
            "POINTSMAN_TARGET",
            "POINTSMAN_TENANT",
            "PRIORITY",
            "SYSLOG_IDENTIFIER",
        ]
    );
    for (name, value) in [
        ("POINTSMAN_CODE", "queue_full"),
        ("POINTSMAN_LANE", "b"),
        ("POINTSMAN_REQUEST", FORGED),
        ("POINTSMAN_STATUS", "503"),
        ("POINTSMAN_TENANT", "t"),
        ("PRIORITY", "4"),
        ("SYSLOG_IDENTIFIER", "pointsman"),
    ] {
        assert_eq!(entry[name], value, "{name}");
    }
    let message = &entry["MESSAGE"];
    assert!(message.starts_with("request{") && message.contains("code=\"queue_full\""));
    assert!(message.chars().all(|letter| (' '..='~').contains(&letter)), "{message:?}");
}

#[test]
fn lines_of_the_access_log_are_entries() {
    let line = br#"{"id":"r1","lane":"a","model":"x\nPRIORITY=0","status":200}
"#;
    let entry = fields(&datagram(&parse(line)));
    assert_eq!(entry["MESSAGE"].as_bytes(), line.trim_ascii_end());
    for (name, value) in [
        ("POINTSMAN_LOG", "access"),
        ("POINTSMAN_REQUEST", "r1"),
        ("POINTSMAN_MODEL", "x\nPRIORITY=0"),
        ("POINTSMAN_STATUS", "200"),
        ("PRIORITY", "6"),
    ] {
        assert_eq!(entry[name], value, "{name}");
    }
}

/// Receives the next datagram, which has to be empty but for a descriptor.
fn receive_file(socket: &UnixDatagram) -> OwnedFd {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut buffer = [0; 16];
    let received =
        recvmsg(socket, &mut [IoSliceMut::new(&mut buffer)], &mut control, RecvFlags::CMSG_CLOEXEC);
    assert_eq!(received.unwrap().bytes, 0);
    let mut descriptors = control.drain().flat_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => descriptors,
        _ => panic!("expected a descriptor"),
    });
    let descriptor = descriptors.next().unwrap();
    assert!(descriptors.next().is_none());
    descriptor
}

#[test]
fn long_lines_arrive_whole() {
    let journal = Journal::new();
    let small = journal.writer();
    // The kernel's minimum, which is less than the line.
    set_socket_send_buffer_size(&small.socket, 1).unwrap();
    let line = "ü".repeat(2000);
    for (writer, is_datagram) in [(journal.writer(), true), (small, false)] {
        let (subscriber, handle) = log(writer);
        let model = "m".repeat(200);
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(target: "engine", model, tenant = FORGED, "{line}");
            tracing::info!("short");
        });
        let entry = if is_datagram {
            journal.next()
        } else {
            let descriptor = receive_file(&journal.socket);
            let seals = fcntl_get_seals(&descriptor).unwrap();
            assert!(seals.contains(
                SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL
            ));
            let mut text = Vec::new();
            // The journal reads it from the start as well, wherever the writer has ended.
            let file = File::from(descriptor);
            assert!((&file).write_all(b"x").is_err());
            let mut from_start = &file;
            from_start.rewind().unwrap();
            from_start.read_to_end(&mut text).unwrap();
            fields(&text)
        };
        assert!(entry["MESSAGE"].starts_with("engine: ü") && entry["MESSAGE"].contains(&line));
        assert_eq!((&*entry["PRIORITY"], &*entry["SYSLOG_IDENTIFIER"]), ("6", "pointsman"));
        assert_eq!((&*entry["POINTSMAN_MODEL"], &*entry["POINTSMAN_TENANT"]), (&*model, FORGED));
        // What follows is a datagram again.
        assert!(journal.next()["MESSAGE"].ends_with(": short"));
        assert!(handle.flush(WAIT));
    }
    assert!(journal.fallback.0.lock().unwrap().is_empty());
}

#[test]
fn entries_that_cannot_be_sent_whole_are_cut() {
    let line = "ü".repeat(2000);
    let entry = [(MESSAGE, line.as_str()), (PRIORITY, "4"), ("POINTSMAN_MODEL", "m")];
    let entry = entry.map(|(name, value)| (name.to_owned(), value.into()));
    let small = fields(&datagram(&without_fields(&Map::from_iter(entry))));
    let names: Vec<&str> = small.keys().map(String::as_str).collect();
    assert_eq!(names, ["MESSAGE", "PRIORITY", "SYSLOG_IDENTIFIER"]);
    let message = small["MESSAGE"].strip_suffix(CUT_MARK).unwrap();
    assert!(line.starts_with(message) && message.len() <= MAX_CUT_MESSAGE, "{message}");
    assert_eq!(small["PRIORITY"], "4");
}

#[test]
fn journal_that_stalls_delays_only_the_thread_of_the_log() {
    let journal = Journal::new();
    let (subscriber, handle) = log(journal.writer());
    tracing::subscriber::with_default(subscriber, || {
        // More than fit into the socket and the buffer.
        let text = "x".repeat(1000);
        for _ in 0..3000 {
            tracing::info!("{text}");
        }
    });
    assert!(!handle.flush(Duration::from_millis(1)));
    let lost = dropped(&handle);
    assert!(lost > 0);
    let mut reported = 0;
    while reported < lost {
        let entry = journal.next();
        if entry.get("POINTSMAN_EVENT").is_some_and(|event| event == "log_dropped") {
            reported += entry["POINTSMAN_COUNT"].parse::<u64>().unwrap();
        }
    }
    assert_eq!(reported, lost);
    assert!(journal.fallback.0.lock().unwrap().is_empty());
}

#[test]
fn entries_are_written_to_standard_error_while_the_journal_is_gone() {
    let journal = Journal::new();
    let (subscriber, handle) = log(journal.writer());
    let Journal { dir, socket, fallback } = journal;
    tracing::subscriber::with_default(subscriber, || {
        drop(socket);
        tracing::warn!(lane = "a", "one");
        assert!(handle.flush(WAIT));
        std::fs::remove_file(dir.path().join("socket")).unwrap();
        tracing::error!("two");
        assert!(handle.flush(WAIT));
        let socket = bind(dir.path());
        tracing::info!("three");
        let journal = Journal { dir, socket, fallback: fallback.clone() };
        assert!(journal.next()["MESSAGE"].ends_with("three"));
    });
    let text = String::from_utf8(fallback.0.lock().unwrap().clone()).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 2, "{text}");
    assert!(lines[0].starts_with("<4>") && lines[0].ends_with("one lane=\"a\""), "{text}");
    assert!(lines[1].starts_with("<3>") && lines[1].ends_with("two"), "{text}");
}

#[test]
fn without_a_socket_the_fallback_is_used() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    for path in [dir.path().join("missing"), file] {
        assert!(JournalWriter::new(&path, Buffer::default()).is_err());
    }
}
