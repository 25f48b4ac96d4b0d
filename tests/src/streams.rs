//! Many streams at a time, in which every frame has a sequence number and the time when it was
//! sent.
//!
//! Engine and clients are in the process of the test, each on a thread of its own, so that they
//! share a clock and cost little.

mod client;
mod engine;

use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

pub use client::measure;
pub use engine::FrameEngine;

/// The streams of a measurement.
#[derive(Debug, Clone, Copy)]
pub struct StreamShape {
    /// Number of frames of a stream.
    pub frames: u32,
    /// Time between two frames of a stream.
    pub interval: Duration,
    /// The time from which the times in frames count.
    pub epoch: Instant,
}

/// What the clients have received.
#[derive(Debug, Clone, Default)]
pub struct Received {
    /// Frames in their place.
    pub frames: u64,
    /// Frames that were not received.
    pub lost: u64,
    /// Frames that came twice or too late.
    pub misplaced: u64,
    /// Streams that ended as they should.
    pub complete: u64,
    /// Why other streams ended; at most a few.
    pub broken: Vec<String>,
    /// Times from the engine to the client, in microseconds.
    delays: Vec<u32>,
}

/// Broken streams of which the reason is kept.
const MAX_REASONS: usize = 10;

impl Received {
    fn merge(&mut self, other: Self) {
        self.frames += other.frames;
        self.lost += other.lost;
        self.misplaced += other.misplaced;
        self.complete += other.complete;
        self.broken.extend(other.broken);
        self.broken.truncate(MAX_REASONS);
        self.delays.extend(other.delays);
    }

    /// Returns the delay that this percentage of the frames did not exceed.
    pub fn delay(&mut self, percent: usize) -> Duration {
        self.delays.sort_unstable();
        let at = (self.delays.len() * percent / 100).min(self.delays.len().saturating_sub(1));
        Duration::from_micros(self.delays.get(at).copied().unwrap_or_default().into())
    }
}

/// Lets this process have at least this number of descriptors.
///
/// # Panics
/// If the maximum for this process is lower.
pub fn raise_descriptor_limit(needed: u64) {
    let limit = getrlimit(Resource::Nofile);
    let maximum = limit.maximum.unwrap_or(u64::MAX);
    assert!(maximum >= needed, "the limit of descriptors is {maximum}: `ulimit -Hn {needed}`");
    if limit.current.is_some_and(|current| current < needed) {
        let raised = Rlimit { current: Some(needed), maximum: limit.maximum };
        setrlimit(Resource::Nofile, raised).unwrap();
    }
}
