//! What all connections of the fake engine share.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;

use super::memory::Memory;
use super::options::Options;
use super::queue::Queue;
use super::script::Script;
use super::sleep::Nap;

/// What befalls all answers at once.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Mood {
    /// After SIGTERM: nothing more is sent.
    pub(super) silent: bool,
    /// By script: nothing more is sent.
    pub(super) stalled: bool,
    /// While asleep: nothing is sent for now.
    pub(super) paused: bool,
    /// After SIGTERM with a timeout: nothing new is taken.
    pub(super) draining: bool,
    /// The core has died: answers end with an error.
    pub(super) core_dead: bool,
    /// How often all answers under way were aborted.
    pub(super) aborted: u64,
}

/// What it has counted.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) prompt_tokens: u64,
    pub(super) cached_tokens: u64,
    pub(super) generation_tokens: u64,
    pub(super) stop: u64,
    pub(super) length: u64,
    pub(super) abort: u64,
    pub(super) error: u64,
    pub(super) slept: u64,
    pub(super) awake: u64,
    /// Priorities of the requests, in the order of their arrival.
    pub(super) priorities: Vec<i64>,
    /// Ids of the answers, in the order in which they were begun.
    pub(super) served: Vec<String>,
    /// Beginnings of prompts that are in the prefix cache.
    blocks: HashSet<u64>,
}

impl Counts {
    /// Take a prompt; how much of it was known: whole blocks of 16.
    pub(super) fn prompt(&mut self, prompt: &str, tokens: u64) -> u64 {
        let mut hasher = DefaultHasher::new();
        let (mut known, mut missed) = (0, false);
        for block in prompt.as_bytes().chunks_exact(16) {
            block.hash(&mut hasher);
            missed |= self.blocks.insert(hasher.finish());
            known += if missed { 0 } else { 16 };
        }
        let known = known.min(tokens.saturating_sub(1));
        self.prompt_tokens += tokens;
        self.cached_tokens += known;
        known
    }

    pub(super) fn forget(&mut self) {
        self.blocks.clear();
    }
}

/// What all connections share.
#[derive(Debug)]
pub(super) struct Engine {
    pub(super) options: Options,
    script: Mutex<Script>,
    pub(super) ready_at: Instant,
    /// Seconds since 1970 at the start.
    pub(super) created: u64,
    /// Answers under way.
    pub(super) busy: AtomicU64,
    /// Answers whose client left before their end.
    pub(super) cancelled: AtomicU64,
    pub(super) seen: AtomicU64,
    pub(super) mood: watch::Sender<Mood>,
    pub(super) queue: Arc<Queue>,
    counts: Mutex<Counts>,
    nap: Mutex<Nap>,
    pub(super) memory: Option<Memory>,
    /// Process that does the work; 0 if there is none.
    pub(super) core: AtomicU32,
}

impl Engine {
    pub(super) fn new(
        options: Options,
        script: Script,
        ready_at: Instant,
        memory: Option<Memory>,
    ) -> Self {
        let mood = Mood { stalled: script.stall_all || script.health_lies, ..Mood::default() };
        Self {
            script: Mutex::new(script),
            ready_at,
            created: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs()),
            busy: AtomicU64::new(0),
            cancelled: AtomicU64::new(0),
            seen: AtomicU64::new(0),
            mood: watch::Sender::new(mood),
            queue: Queue::new(options.max_num_seqs),
            counts: Mutex::default(),
            nap: Mutex::default(),
            memory,
            core: AtomicU32::new(0),
            options,
        }
    }

    pub(super) fn script(&self) -> Script {
        self.script.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set_script(&self, script: Script) {
        let stalled = script.stall_all || script.health_lies;
        *self.script.lock().unwrap_or_else(PoisonError::into_inner) = script;
        self.mood.send_modify(|mood| mood.stalled = stalled);
    }

    pub(super) fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn nap(&self) -> MutexGuard<'_, Nap> {
        self.nap.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Name of the model in answers.
    pub(super) fn name(&self) -> &str {
        self.options.names().first().map_or("fake", String::as_str)
    }

    /// An id of this many characters that nobody else has: hexadecimal, or of all letters and digits.
    pub(super) fn id(&self, length: usize, hexadecimal: bool) -> String {
        let mut hasher = DefaultHasher::new();
        (self.seen.load(Ordering::SeqCst), std::process::id(), Instant::now()).hash(&mut hasher);
        let mut id = String::new();
        while id.len() < length {
            id.len().hash(&mut hasher);
            if hexadecimal {
                let _written = write!(id, "{:016x}", hasher.finish());
            } else {
                let letters = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
                id.push(char::from(letters[(hasher.finish() % 62) as usize]));
            }
        }
        id.truncate(length);
        id
    }

    /// The core dies: by a signal if there is one.
    pub(super) fn kill_core(&self) {
        let core = self.core.load(Ordering::SeqCst);
        match i32::try_from(core).ok().and_then(rustix::process::Pid::from_raw) {
            Some(core) => {
                let _gone = rustix::process::kill_process(core, rustix::process::Signal::KILL);
            }
            None => self.mood.send_modify(|mood| mood.core_dead = true),
        }
    }

    /// What tests may ask.
    pub(super) fn state(&self) -> Value {
        let counts = self.counts();
        let (running, waiting) = self.queue.counts();
        let core = self.core.load(Ordering::SeqCst);
        json!({
            "busy": self.busy.load(Ordering::SeqCst),
            "cancelled": self.cancelled.load(Ordering::SeqCst),
            "seen": self.seen.load(Ordering::SeqCst),
            "running": running,
            "waiting": waiting,
            "priorities": counts.priorities,
            "served": counts.served,
            "slept": counts.slept,
            "awake": counts.awake,
            "asleep": self.nap().level,
            "pid": std::process::id(),
            "core": (core > 0).then_some(core),
            "model": self.options.model,
            "names": self.options.names(),
        })
    }
}
