//! A processor-sharing queue: jobs that run concurrently, all at the same speed.
//!
//! Every job has received the same amount of service since it was added. So one number, the
//! service received, describes the progress of all jobs, and the job with the smallest finish tag
//! ends first. A change of speed costs nothing, however many jobs there are.

use std::collections::BTreeMap;
use std::time::Duration;

use super::RequestKey;

/// The finish tag of a job: the bits of the service value at which the job ends, and a sequence
/// number that orders jobs with the same end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct FinishTag(u64, u64);

/// Concurrent jobs that share a processor equally.
#[derive(Debug, Default)]
pub(super) struct ProcessorSharing {
    /// The service that every job has received since the queue was last empty.
    service: f64,
    jobs: BTreeMap<FinishTag, RequestKey>,
    sequence: u64,
}

impl ProcessorSharing {
    /// Adds a job with this amount of work.
    pub(super) fn add(&mut self, work: f64, key: RequestKey) -> FinishTag {
        // Restarting at zero keeps the value small, and so its rounding error.
        if self.jobs.is_empty() {
            self.service = 0.0;
        }
        self.sequence += 1;
        // The bits of non-negative floats have the order of the floats.
        let tag = FinishTag((self.service + work.max(0.0)).to_bits(), self.sequence);
        self.jobs.insert(tag, key);
        tag
    }

    pub(super) fn remove(&mut self, tag: FinishTag) {
        self.jobs.remove(&tag);
    }

    pub(super) fn clear(&mut self) {
        self.jobs.clear();
    }

    pub(super) fn len(&self) -> usize {
        self.jobs.len()
    }

    /// Adds this amount of service to every job.
    pub(super) fn advance(&mut self, service: f64) {
        if !self.jobs.is_empty() {
            self.service += service;
        }
    }

    /// Returns the remaining work of a job.
    pub(super) fn left(&self, tag: FinishTag) -> f64 {
        f64::from_bits(tag.0) - self.service
    }

    /// Returns the remaining work of the job that ends first.
    pub(super) fn first(&self) -> Option<f64> {
        self.jobs.first_key_value().map(|(tag, _)| self.left(*tag))
    }

    /// Removes the job that ends first, and returns it with its remaining work.
    pub(super) fn pop_first(&mut self) -> Option<(RequestKey, f64)> {
        let left = self.first()?;
        self.jobs.pop_first().map(|(_, key)| (key, left))
    }
}

/// Converts a duration to microseconds.
pub(super) fn micros(time: Duration) -> f64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX) as f64
}

/// Returns the time that the remaining work takes at a speed per microsecond, or `None` if it never
/// ends.
pub(super) fn time_for(left: f64, speed: f64) -> Option<Duration> {
    let micros = (left.max(0.0) / speed).round();
    // The cast saturates. The limit is beyond every simulation, and leaves room for adding it to
    // the current time.
    (speed > 0.0 && micros.is_finite())
        .then(|| Duration::from_micros((micros as u64).min(u64::MAX >> 4)))
}
