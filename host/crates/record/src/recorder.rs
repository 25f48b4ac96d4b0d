//! The recorder: a bounded queue that never blocks, and a thread that writes the files.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel, sync_channel};
use std::time::{Duration, Instant};

use pointsman_domain::{ChainInfo, FleetView, PlanLimits, Topology};

use crate::error::StartError;
use crate::file::Files;
use crate::format::{DecisionRecord, RequestRecord, TopologyRecord, write_line};
use crate::metrics::{DropReason, RecordMetrics};
use crate::redact::Redact;
use crate::sample::{Interest, Sample};

/// Maximum number of bytes per write.
const MAX_BATCH_BYTES: usize = 256 << 10;
/// Pause after a write in which records collect. A caller that adds a record during the pause need
/// not wake the thread, which would cost more than all other work of the caller.
const BATCH_DELAY: Duration = Duration::from_millis(5);
/// Interval at which an idle thread checks whether it has to stop.
const SHUTDOWN_POLL_INTERVAL: Duration = Duration::from_millis(500);
/// Minimum interval between log lines about failed writes.
const ERROR_LOG_INTERVAL: Duration = Duration::from_secs(60);

/// The configuration of a recorder.
#[derive(Debug)]
pub struct Settings {
    /// Directory of the files.
    pub dir: PathBuf,
    /// How much of each request is recorded.
    pub mode: Mode,
    /// Which requests are recorded.
    pub sample: Sample,
    /// True to record requests that end in an error even if they are not in the sample.
    pub errors: bool,
    /// Size in bytes at which a file is rotated.
    pub max_size: u64,
    /// Number of rotated files that are kept.
    pub keep: u32,
    /// Limits of the queue.
    pub queue: QueueLimits,
    /// Redaction rules.
    pub redact: Redact,
    /// Version of the host.
    pub host: String,
    /// Limits on every plan.
    pub limits: PlanLimits,
}

/// How much of each request is recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Only what policies read of the request.
    Decisions,
    /// Headers and body as well, so that a policy that reads other fields can be replayed.
    Full {
        /// Maximum size of a body that is recorded, in bytes.
        max_body: usize,
    },
}

/// The limits of the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueLimits {
    /// Maximum number of records.
    pub records: usize,
    /// Maximum memory of the records, in bytes (approximately).
    pub bytes: usize,
}

/// A closure that creates the record of a request, run on the writer thread.
pub type Body = Box<dyn FnOnce() -> RequestRecord + Send>;

/// A record to be written.
pub struct Entry {
    /// The record; the writer fills in `fleet` and `request`. The caller may keep it as well.
    pub decision: Arc<DecisionRecord>,
    /// Fleet view of the decision.
    pub fleet: Arc<FleetView>,
    /// Policies that made the decision.
    pub chain: Option<Arc<ChainInfo>>,
    /// The request, if whole requests are recorded, with the number of bytes that the closure keeps
    /// alive.
    pub request: Option<(usize, Body)>,
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry").field("decision", &self.decision).finish_non_exhaustive()
    }
}

/// A handle that accepts records. Cloning is cheap.
#[derive(Debug, Clone)]
pub struct Recorder {
    shared: Arc<Shared>,
    rules: Arc<Rules>,
}

/// Which requests one configuration records, and how much of them.
#[derive(Debug)]
struct Rules {
    sample: Sample,
    errors: bool,
    mode: Mode,
    queue: QueueLimits,
    redact: Redact,
    dir: PathBuf,
}

/// What the handles and the thread share.
#[derive(Debug)]
struct Shared {
    queue: Sender<Message>,
    /// Number of the records in the queue, which its limit bounds.
    records: AtomicUsize,
    /// Memory of the records in the queue, in bytes.
    bytes: AtomicUsize,
    closing: AtomicBool,
    metrics: Arc<RecordMetrics>,
}

/// How one configuration has records written.
#[derive(Debug)]
struct Output {
    redact: Redact,
    host: String,
    limits: PlanLimits,
    files: Files,
    max_batch: usize,
}

#[derive(Debug)]
enum Message {
    Entry(Box<Entry>, usize),
    /// Write what follows in another way.
    Configure(Box<Output>),
    /// Check whether to stop.
    Wake,
}

/// Checks the settings, and creates the directory.
fn prepare(settings: Settings) -> Result<(Rules, Output), StartError> {
    let Settings { dir, mode, sample, errors, max_size, keep, queue, redact, host, limits } =
        settings;
    let files = Files::new(dir.clone(), max_size, keep)
        .map_err(|source| StartError::CreateDir { path: dir, source })?;
    let max_batch = usize::try_from(max_size).unwrap_or(usize::MAX).min(MAX_BATCH_BYTES);
    let dir = files.dir().to_owned();
    let rules = Rules { sample, errors, mode, queue, redact: redact.clone(), dir };
    Ok((rules, Output { redact, host, limits, files, max_batch }))
}

impl Recorder {
    /// Creates the directory and starts the writer thread.
    ///
    /// # Errors
    /// If the directory cannot be created or the thread cannot be started. A file that cannot be
    /// written is not an error: opening it is retried with every write.
    pub fn start(
        settings: Settings,
        metrics: Arc<RecordMetrics>,
    ) -> Result<(Self, Writer), StartError> {
        let (rules, output) = prepare(settings)?;
        let (sender, receiver) = channel();
        let shared = Arc::new(Shared {
            queue: sender,
            records: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            closing: AtomicBool::new(false),
            metrics,
        });
        let worker = Worker {
            shared: Arc::clone(&shared),
            output,
            written: WrittenContext::default(),
            batch: Batch::default(),
            last_error_logged: None,
        };
        // Nothing is sent: dropping `done` tells the writer's handle that the thread has finished.
        let (done, finished) = sync_channel(0);
        let run = move || {
            worker.run(&receiver);
            drop(done);
        };
        std::thread::Builder::new()
            .name("records".to_owned())
            .spawn(run)
            .map_err(StartError::SpawnThread)?;
        let recorder = Self { shared: Arc::clone(&shared), rules: Arc::new(rules) };
        Ok((recorder, Writer { shared, finished }))
    }

    /// Returns whether a request is recorded.
    pub fn interest(&self, request_id: &str) -> Interest {
        self.rules.sample.interest(request_id, self.rules.errors)
    }

    /// Returns how much of each request is recorded.
    pub fn mode(&self) -> Mode {
        self.rules.mode
    }

    /// Returns the redaction rules of the records.
    pub fn redact(&self) -> &Redact {
        &self.rules.redact
    }

    /// Returns the directory of the files.
    pub fn dir(&self) -> &Path {
        &self.rules.dir
    }

    /// Queues a record. Never blocks: a record that does not fit into the queue is dropped and
    /// counted.
    pub fn record(&self, entry: Entry) {
        let (shared, limits) = (&*self.shared, &self.rules.queue);
        let weight =
            entry.decision.weight() + entry.request.as_ref().map_or(0, |(bytes, _)| *bytes);
        let bytes = shared.bytes.fetch_add(weight, Ordering::Relaxed).saturating_add(weight);
        let records = shared.records.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        let sent = if bytes > limits.bytes || records > limits.records.max(1) {
            Err(DropReason::Queue)
        } else if shared.closing.load(Ordering::Relaxed) {
            Err(DropReason::Stopped)
        } else {
            let sent = shared.queue.send(Message::Entry(Box::new(entry), weight));
            sent.map_err(|_| DropReason::Stopped)
        };
        if let Err(reason) = sent {
            shared.bytes.fetch_sub(weight, Ordering::Relaxed);
            shared.records.fetch_sub(1, Ordering::Relaxed);
            shared.metrics.dropped(reason, 1);
        }
    }
}

/// A handle to the writer thread, which stops by [`Writer::finish`] or with the process.
#[derive(Debug)]
pub struct Writer {
    shared: Arc<Shared>,
    finished: Receiver<()>,
}

impl Writer {
    /// Changes how records are written, from the next one on, and returns the handle that accepts
    /// those of the new configuration. Handles of an earlier one still work.
    ///
    /// # Errors
    /// If the directory cannot be created. Nothing has changed then.
    pub fn reconfigure(&self, settings: Settings) -> Result<Recorder, StartError> {
        let (rules, output) = prepare(settings)?;
        // Fails only if the thread has ended.
        self.shared.queue.send(Message::Configure(Box::new(output))).ok();
        Ok(Recorder { shared: Arc::clone(&self.shared), rules: Arc::new(rules) })
    }

    /// Stops accepting records and writes the queued ones. Blocks for at most `limit`; returns true
    /// if all queued records were handled.
    pub fn finish(self, limit: Duration) -> bool {
        self.shared.closing.store(true, Ordering::Relaxed);
        // Fails only if the thread has ended.
        self.shared.queue.send(Message::Wake).ok();
        !matches!(self.finished.recv_timeout(limit), Err(RecvTimeoutError::Timeout))
    }
}

/// A line, with the topology and the chain that it refers to.
#[derive(Debug)]
struct Line {
    topology: Arc<Topology>,
    chain: Option<Arc<ChainInfo>>,
    text: Vec<u8>,
}

/// Lines that are written together.
#[derive(Debug, Default)]
struct Batch {
    lines: Vec<Line>,
    bytes: usize,
}

/// The topologies and chains that the current file contains.
#[derive(Debug, Default)]
struct WrittenContext {
    topologies: Vec<u64>,
    chains: Vec<String>,
}

/// The state of the writer thread.
#[derive(Debug)]
struct Worker {
    shared: Arc<Shared>,
    output: Output,
    /// Topologies and chains that need not be written again.
    written: WrittenContext,
    batch: Batch,
    last_error_logged: Option<Instant>,
}

impl Worker {
    fn run(mut self, queue: &Receiver<Message>) {
        loop {
            match queue.recv_timeout(SHUTDOWN_POLL_INTERVAL) {
                Ok(message) => {
                    self.take(message);
                    // Write everything that is queued with one write.
                    queue.try_iter().for_each(|message| self.take(message));
                    self.flush();
                    #[expect(clippy::disallowed_methods, reason = "more records may arrive")]
                    std::thread::park_timeout(BATCH_DELAY);
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
        let (entry, weight) = match message {
            Message::Entry(entry, weight) => (entry, weight),
            Message::Configure(output) => return self.configure(*output),
            Message::Wake => return,
        };
        let Entry { decision, fleet, chain, request } = *entry;
        let mut decision = Arc::unwrap_or_clone(decision);
        decision.fleet = fleet.stats().collect();
        decision.request = request.map(|(_, request)| request());
        self.shared.bytes.fetch_sub(weight, Ordering::Relaxed);
        self.shared.records.fetch_sub(1, Ordering::Relaxed);
        self.output.redact.apply(&mut decision);
        let mut line = Vec::new();
        if let Err(error) = write_line("decision", &decision, &mut line) {
            tracing::error!(error = %error, "failed to serialise a decision record");
            self.shared.metrics.errors.inc();
            self.shared.metrics.dropped(DropReason::Disk, 1);
            return;
        }
        if self.batch.bytes + line.len() > self.output.max_batch {
            self.flush();
        }
        self.batch.bytes += line.len();
        self.batch.lines.push(Line { topology: Arc::clone(&fleet.topology), chain, text: line });
    }

    /// Writes what was accepted before in the earlier way, and begins with another one.
    fn configure(&mut self, output: Output) {
        self.flush();
        self.output = output;
        self.written = WrittenContext::default();
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
                if self.last_error_logged.take().is_some() {
                    tracing::info!("decision records are being written again");
                }
            }
            Err(error) => {
                // The content of the file is unknown now; writing a topology twice is harmless.
                self.written = WrittenContext::default();
                self.shared.metrics.errors.inc();
                self.shared.metrics.dropped(DropReason::Disk, records);
                if self.last_error_logged.is_none_or(|last| last.elapsed() >= ERROR_LOG_INTERVAL) {
                    self.last_error_logged = Some(Instant::now());
                    let path = self.output.files.path();
                    tracing::error!(
                        event = "records_dropped",
                        path = %path.display(),
                        error = %error,
                        "decision records are dropped"
                    );
                }
            }
        }
    }

    fn write(&mut self, batch: &Batch) -> io::Result<u64> {
        if self.output.files.prepare(batch.bytes)? {
            self.written = WrittenContext::default();
        }
        let mut text = Vec::with_capacity(batch.bytes);
        for Line { topology, chain, text: line } in &batch.lines {
            let generation = topology.generation();
            if !self.written.topologies.contains(&generation) {
                let record = TopologyRecord {
                    host: self.output.host.clone(),
                    generation,
                    lanes: topology.lanes().to_vec(),
                    limits: self.output.limits.clone(),
                };
                write_line("topology", &record, &mut text).map_err(io::Error::other)?;
                self.written.topologies.push(generation);
            }
            if let Some(chain) =
                chain.as_ref().filter(|chain| !self.written.chains.contains(&chain.chain))
            {
                let mut record = ChainInfo::clone(chain);
                self.output.redact.apply_to_chain(&mut record);
                write_line("policies", &record, &mut text).map_err(io::Error::other)?;
                self.written.chains.push(record.chain);
            }
            text.extend_from_slice(line);
        }
        self.output.files.append(&text)?;
        Ok(text.len() as u64)
    }
}
