//! The state that all connections of the fake engine share.

use std::collections::HashSet;
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
use super::script::ResponseScript;
use super::sleep_state::SleepState;
use super::slots::Slots;

/// The conditions that affect all completions.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct ServingState {
    /// Nothing more is sent, after SIGTERM.
    pub(super) silent: bool,
    /// Nothing more is sent, by script.
    pub(super) stalled: bool,
    /// Nothing is sent while the engine sleeps.
    pub(super) paused: bool,
    /// New requests are rejected, after SIGTERM with a timeout.
    pub(super) draining: bool,
    /// The core has died, and completions end with an error.
    pub(super) core_dead: bool,
    /// How many times all in-flight completions were aborted.
    pub(super) aborted: u64,
}

/// The counters of the engine.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) prompt_tokens: u64,
    pub(super) cached_tokens: u64,
    pub(super) generation_tokens: u64,
    /// Batches of tokens that were computed.
    pub(super) batches: u64,
    pub(super) stop: u64,
    pub(super) length: u64,
    pub(super) abort: u64,
    pub(super) error: u64,
    pub(super) slept: u64,
    pub(super) awake: u64,
    /// Priorities of the requests, in order of arrival.
    pub(super) priorities: Vec<i64>,
    /// Ids of the completions, in the order in which they were started.
    pub(super) served: Vec<String>,
    /// Hashes of the prompt prefixes that are in the prefix cache.
    blocks: HashSet<u64>,
}

impl Counts {
    /// Adds a prompt to the prefix cache; returns the number of cached tokens, in blocks of 16. The
    /// tokens are counted when the prompt has been read.
    pub(super) fn prompt(&mut self, prompt: &str, tokens: u64) -> u64 {
        let mut hasher = DefaultHasher::new();
        let (mut cached, mut missed) = (0, false);
        for block in prompt.as_bytes().chunks_exact(16) {
            block.hash(&mut hasher);
            missed |= self.blocks.insert(hasher.finish());
            cached += if missed { 0 } else { 16 };
        }
        cached.min(tokens.saturating_sub(1))
    }

    pub(super) fn reset_prefix_cache(&mut self) {
        self.blocks.clear();
    }
}

/// The fake engine.
#[derive(Debug)]
pub(super) struct Engine {
    pub(super) options: Options,
    script: Mutex<ResponseScript>,
    pub(super) ready_at: Instant,
    /// The start time, in seconds since the Unix epoch.
    pub(super) created: u64,
    /// The number of in-flight completions.
    pub(super) busy: AtomicU64,
    /// The number of completions whose client disconnected before their end.
    pub(super) cancelled: AtomicU64,
    /// The number of requests for completions.
    pub(super) seen: AtomicU64,
    pub(super) state: watch::Sender<ServingState>,
    pub(super) queue: Arc<Queue>,
    counts: Mutex<Counts>,
    sleep_state: Mutex<SleepState>,
    slots: Mutex<Slots>,
    pub(super) memory: Option<Memory>,
    /// The id of the core process; 0 without a core process.
    pub(super) core: AtomicU32,
}

impl Engine {
    pub(super) fn new(
        options: Options,
        script: ResponseScript,
        ready_at: Instant,
        memory: Option<Memory>,
    ) -> Self {
        let state = ServingState {
            stalled: script.stall_all || script.health_lies,
            ..ServingState::default()
        };
        Self {
            script: Mutex::new(script),
            ready_at,
            created: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs()),
            busy: AtomicU64::new(0),
            cancelled: AtomicU64::new(0),
            seen: AtomicU64::new(0),
            state: watch::Sender::new(state),
            queue: Queue::new(options.max_num_seqs),
            counts: Mutex::default(),
            sleep_state: Mutex::default(),
            slots: Mutex::new(Slots::new(options.slots)),
            memory,
            core: AtomicU32::new(0),
            options,
        }
    }

    pub(super) fn script(&self) -> ResponseScript {
        self.script.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set_script(&self, script: ResponseScript) {
        let stalled = script.stall_all || script.health_lies;
        *self.script.lock().unwrap_or_else(PoisonError::into_inner) = script;
        self.state.send_modify(|state| state.stalled = stalled);
    }

    pub(super) fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn sleep_state(&self) -> MutexGuard<'_, SleepState> {
        self.sleep_state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn slots(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the name of the model in responses.
    pub(super) fn name(&self) -> &str {
        self.options.names().first().map_or("fake", String::as_str)
    }

    /// Returns a unique id of this length, hexadecimal or alphanumeric.
    pub(super) fn id(&self, length: usize, hexadecimal: bool) -> String {
        let mut hasher = DefaultHasher::new();
        (self.seen.load(Ordering::SeqCst), std::process::id(), Instant::now()).hash(&mut hasher);
        let mut id = String::new();
        while id.len() < length {
            id.len().hash(&mut hasher);
            if hexadecimal {
                id += &format!("{:016x}", hasher.finish());
            } else {
                let letters = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
                id.push(char::from(letters[(hasher.finish() % 62) as usize]));
            }
        }
        id.truncate(length);
        id
    }

    /// Kills the core process, or simulates that without a core process.
    pub(super) fn kill_core(&self) {
        let core = self.core.load(Ordering::SeqCst);
        match i32::try_from(core).ok().and_then(rustix::process::Pid::from_raw) {
            Some(core) => {
                // The core may have exited already.
                rustix::process::kill_process(core, rustix::process::Signal::KILL).ok();
            }
            None => self.state.send_modify(|state| state.core_dead = true),
        }
    }

    /// Returns the state that tests can read.
    pub(super) fn report(&self) -> Value {
        let counts = self.counts();
        let (running, waiting) = self.queue.counts();
        let core = self.core.load(Ordering::SeqCst);
        let slots = self.slots();
        json!({
            "named_slots": slots.named,
            "saves": slots.saves,
            "restores": slots.restores,
            "busy": self.busy.load(Ordering::SeqCst),
            "cancelled": self.cancelled.load(Ordering::SeqCst),
            "seen": self.seen.load(Ordering::SeqCst),
            "running": running,
            "waiting": waiting,
            "priorities": counts.priorities,
            "served": counts.served,
            "slept": counts.slept,
            "awake": counts.awake,
            "asleep": self.sleep_state().level,
            "pid": std::process::id(),
            "core": (core > 0).then_some(core),
            "model": self.options.model,
            "names": self.options.names(),
        })
    }
}
