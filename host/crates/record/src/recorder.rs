//! From whoever records to the file: a queue that never makes anybody wait, and one thread behind it.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};

use pointsman_domain::{ChainInfo, FleetView, PlanLimits, Topology};

use crate::file::Files;
use crate::format::{DecisionRecord, RequestRecord, TopologyRecord, write_line};
use crate::metrics::{RecordMetrics, Why};
use crate::redact::Redact;
use crate::sample::{Interest, Sample};

/// Bytes of lines that go out with one write.
const MOST_BATCH: usize = 256 << 10;
/// After a write, records gather for so long: whoever hands one over meanwhile need not wake the thread, which would cost more
/// than the rest of it.
const GATHER: Duration = Duration::from_millis(5);
/// How often the thread looks whether it is over, when nothing comes.
const LOOK: Duration = Duration::from_millis(500);
/// Between two lines of the log about a disk that is full.
const COMPLAIN_EVERY: Duration = Duration::from_secs(60);

/// What is recorded, and where.
#[derive(Debug)]
pub struct Settings {
    /// Folder of the files.
    pub dir: PathBuf,
    /// How much of each request.
    pub mode: Mode,
    /// Which requests.
    pub sample: Sample,
    /// Those that end in an error, too, whatever the sample says.
    pub errors: bool,
    /// A file of this many bytes is rotated.
    pub max_size: u64,
    /// How many rotated files are kept.
    pub keep: u32,
    /// What may wait to be written.
    pub queue: QueueLimits,
    /// What is kept back.
    pub redact: Redact,
    /// Version of the host.
    pub host: String,
    /// Limits of every plan.
    pub limits: PlanLimits,
}

/// How much of each request is recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// What policies read, and nothing else of the request.
    Decisions,
    /// Headers and body as well, so that a policy that asks other questions can be replayed.
    Full {
        /// Longest body that is kept, in bytes.
        max_body: usize,
    },
}

/// Bounds of the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueLimits {
    /// Most records.
    pub records: usize,
    /// Most bytes that they hold, about.
    pub bytes: usize,
}

/// Makes the record of a request, on the thread that writes it.
pub type Body = Box<dyn FnOnce() -> RequestRecord + Send>;

/// What is handed over for one record.
pub struct Entry {
    /// The record; its `fleet` and `request` are filled in when it is written.
    pub decision: DecisionRecord,
    /// The lanes at the time of the decision.
    pub fleet: Arc<FleetView>,
    /// The policies that decided.
    pub chain: Option<Arc<ChainInfo>>,
    /// The request, where whole ones are recorded, and how many bytes that keeps alive.
    pub request: Option<(usize, Body)>,
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry").field("decision", &self.decision).finish_non_exhaustive()
    }
}

/// Why nothing can be recorded.
#[derive(Debug, thiserror::Error)]
#[error("decision records: {}: {what}: {error}", path.display())]
pub struct StartError {
    path: PathBuf,
    what: &'static str,
    error: io::Error,
}

/// Takes records. Cloning is cheap.
#[derive(Debug, Clone)]
pub struct Recorder(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    queue: SyncSender<Message>,
    /// Bytes in the queue.
    bytes: AtomicUsize,
    closing: AtomicBool,
    sample: Sample,
    errors: bool,
    mode: Mode,
    most_bytes: usize,
    metrics: Arc<RecordMetrics>,
}

#[derive(Debug)]
enum Message {
    Entry(Box<Entry>, usize),
    /// Look whether it is over.
    Wake,
}

impl Recorder {
    /// Begin to record: make the folder, and start the thread that writes.
    ///
    /// # Errors
    /// When the folder cannot be made, or the thread cannot be started. A file that cannot be written is no such reason: it
    /// is tried again with every record.
    pub fn start(
        settings: Settings,
        metrics: Arc<RecordMetrics>,
    ) -> Result<(Self, Writer), StartError> {
        let Settings { dir, mode, sample, errors, max_size, keep, queue, redact, host, limits } =
            settings;
        let fail = |what| {
            let path = dir.clone();
            move |error| StartError { path, what, error }
        };
        let files =
            Files::new(dir.clone(), max_size, keep).map_err(fail("the folder cannot be made"))?;
        let (sender, receiver) = sync_channel(queue.records.max(1));
        let shared = Arc::new(Shared {
            queue: sender,
            bytes: AtomicUsize::new(0),
            closing: AtomicBool::new(false),
            sample,
            errors,
            mode,
            most_bytes: queue.bytes,
            metrics,
        });
        let most_batch = usize::try_from(max_size).unwrap_or(usize::MAX).min(MOST_BATCH);
        let work = Work {
            shared: Arc::clone(&shared),
            redact,
            host,
            limits,
            files,
            most_batch,
            known: Known::default(),
            batch: Batch::default(),
            complained: None,
        };
        let (done, ended) = sync_channel(0);
        let run = move || {
            work.run(&receiver);
            // What the other end hears.
            drop(done);
        };
        std::thread::Builder::new()
            .name("records".to_owned())
            .spawn(run)
            .map_err(fail("the thread that writes cannot be started"))?;
        Ok((Self(Arc::clone(&shared)), Writer { shared, ended }))
    }

    /// Is a request to be recorded?
    pub fn interest(&self, request_id: &str) -> Interest {
        self.0.sample.interest(request_id, self.0.errors)
    }

    /// How much of a request is recorded.
    pub fn mode(&self) -> Mode {
        self.0.mode
    }

    /// Take a record. Never waits: what does not fit into the queue is dropped and counted.
    pub fn record(&self, entry: Entry) {
        let shared = &*self.0;
        let weight =
            entry.decision.weight() + entry.request.as_ref().map_or(0, |(bytes, _)| *bytes);
        let before = shared.bytes.fetch_add(weight, Ordering::Relaxed);
        let sent = if before.saturating_add(weight) > shared.most_bytes {
            Err(Why::Queue)
        } else if shared.closing.load(Ordering::Relaxed) {
            Err(Why::Stopped)
        } else {
            shared.queue.try_send(Message::Entry(Box::new(entry), weight)).map_err(|error| {
                match error {
                    TrySendError::Full(_) => Why::Queue,
                    TrySendError::Disconnected(_) => Why::Stopped,
                }
            })
        };
        if let Err(why) = sent {
            shared.bytes.fetch_sub(weight, Ordering::Relaxed);
            shared.metrics.dropped(why, 1);
        }
    }
}

/// The thread that writes. It ends by [`Writer::finish`], or with the program.
#[derive(Debug)]
pub struct Writer {
    shared: Arc<Shared>,
    ended: Receiver<()>,
}

impl Writer {
    /// Take no more records, and write those that are there, for at most `limit`. Blocks. True if all were dealt with.
    pub fn finish(self, limit: Duration) -> bool {
        self.shared.closing.store(true, Ordering::Relaxed);
        // One that is full wakes it as well.
        drop(self.shared.queue.try_send(Message::Wake));
        !matches!(self.ended.recv_timeout(limit), Err(RecvTimeoutError::Timeout))
    }
}

/// A line, with the lanes that it is about and the policies that decided.
#[derive(Debug)]
struct Line {
    topology: Arc<Topology>,
    chain: Option<Arc<ChainInfo>>,
    text: Vec<u8>,
}

/// Lines that go out together.
#[derive(Debug, Default)]
struct Batch {
    lines: Vec<Line>,
    bytes: usize,
}

/// Generations of topologies, and chains of policies.
#[derive(Debug, Default)]
struct Known {
    topologies: Vec<u64>,
    chains: Vec<String>,
}

/// What the thread works with.
#[derive(Debug)]
struct Work {
    shared: Arc<Shared>,
    redact: Redact,
    host: String,
    limits: PlanLimits,
    files: Files,
    most_batch: usize,
    /// What the present file has of what decisions name.
    known: Known,
    batch: Batch,
    complained: Option<Instant>,
}

impl Work {
    fn run(mut self, queue: &Receiver<Message>) {
        loop {
            match queue.recv_timeout(LOOK) {
                Ok(message) => {
                    self.take(message);
                    // All that is there goes out with one write.
                    queue.try_iter().for_each(|message| self.take(message));
                    self.flush();
                    std::thread::park_timeout(GATHER);
                }
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
            }
            if self.shared.closing.load(Ordering::Relaxed) {
                queue.try_iter().for_each(|message| self.take(message));
                return self.flush();
            }
        }
    }

    fn take(&mut self, message: Message) {
        let Message::Entry(entry, weight) = message else { return };
        let Entry { mut decision, fleet, chain, request } = *entry;
        decision.fleet.clone_from(&fleet.stats);
        decision.request = request.map(|(_, request)| request());
        self.shared.bytes.fetch_sub(weight, Ordering::Relaxed);
        self.redact.apply(&mut decision);
        let mut line = Vec::new();
        if let Err(error) = write_line("decision", &decision, &mut line) {
            tracing::error!("a decision record cannot be written as JSON: {error}");
            self.shared.metrics.errors.inc();
            self.shared.metrics.dropped(Why::Disk, 1);
            return;
        }
        if self.batch.bytes + line.len() > self.most_batch {
            self.flush();
        }
        self.batch.bytes += line.len();
        self.batch.lines.push(Line { topology: Arc::clone(&fleet.topology), chain, text: line });
    }

    fn flush(&mut self) {
        let batch = std::mem::take(&mut self.batch);
        if batch.lines.is_empty() {
            return;
        }
        let records = batch.lines.len() as u64;
        match self.write(&batch) {
            Ok(bytes) => {
                self.shared.metrics.written.inc_by(records);
                self.shared.metrics.bytes.inc_by(bytes);
                if self.complained.take().is_some() {
                    tracing::info!("decision records are written again");
                }
            }
            Err(error) => {
                // What the file has is not sure; a topology too many does no harm.
                self.known = Known::default();
                self.shared.metrics.errors.inc();
                self.shared.metrics.dropped(Why::Disk, records);
                if self.complained.is_none_or(|last| last.elapsed() >= COMPLAIN_EVERY) {
                    self.complained = Some(Instant::now());
                    let path = self.files.path();
                    tracing::error!("{}: decision records are dropped: {error}", path.display());
                }
            }
        }
    }

    fn write(&mut self, batch: &Batch) -> io::Result<u64> {
        if self.files.prepare(batch.bytes)? {
            self.known = Known::default();
        }
        let mut text = Vec::with_capacity(batch.bytes);
        for Line { topology, chain, text: line } in &batch.lines {
            let generation = topology.generation();
            if !self.known.topologies.contains(&generation) {
                let record = TopologyRecord {
                    host: self.host.clone(),
                    generation,
                    lanes: topology.lanes().to_vec(),
                    limits: self.limits.clone(),
                };
                write_line("topology", &record, &mut text).map_err(io::Error::other)?;
                self.known.topologies.push(generation);
            }
            if let Some(chain) =
                chain.as_ref().filter(|chain| !self.known.chains.contains(&chain.chain))
            {
                let mut record = ChainInfo::clone(chain);
                self.redact.apply_to_chain(&mut record);
                write_line("policies", &record, &mut text).map_err(io::Error::other)?;
                self.known.chains.push(record.chain);
            }
            text.extend_from_slice(line);
        }
        self.files.append(&text)?;
        Ok(text.len() as u64)
    }
}
