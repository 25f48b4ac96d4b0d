//! The progress of an experiment, measured by the arrival times of the requests in its runs.

use std::sync::Mutex;
use std::time::Duration;

use super::lock;
use crate::traffic::{SimRequest, Traffic};

/// The number of requests between two progress reports of a run.
const PROGRESS_INTERVAL: u64 = 500;

/// The progress of an experiment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Progress {
    /// The number of runs.
    pub runs: usize,
    /// The number of runs that are complete.
    pub completed: usize,
    /// The progress of all runs together, from 0 to 1.
    pub fraction: f64,
}

/// Traffic that reports its progress.
pub(super) struct ProgressTraffic<'a, T> {
    pub(super) inner: &'a mut T,
    pub(super) count: u64,
    pub(super) duration: Duration,
    pub(super) on_progress: &'a dyn Fn(f64),
}

impl<T: Traffic> Traffic for ProgressTraffic<'_, T> {
    fn classes(&self) -> &[String] {
        self.inner.classes()
    }

    fn next(&mut self) -> Option<SimRequest> {
        let request = self.inner.next()?;
        self.count += 1;
        if self.count.is_multiple_of(PROGRESS_INTERVAL) {
            (self.on_progress)(request.at.as_secs_f64() / self.duration.as_secs_f64().max(1e-6));
        }
        Some(request)
    }

    fn follow_up(&mut self, request: &SimRequest, ended_at: Duration) -> Option<SimRequest> {
        self.inner.follow_up(request, ended_at)
    }
}

/// Combines the progress of all runs.
pub(super) struct ProgressTracker<'a> {
    fractions: Mutex<Vec<f64>>,
    progress: &'a (dyn Fn(Progress) + Sync),
}

impl<'a> ProgressTracker<'a> {
    pub(super) fn new(runs: usize, progress: &'a (dyn Fn(Progress) + Sync)) -> Self {
        Self { fractions: Mutex::new(vec![0.0; runs]), progress }
    }

    pub(super) fn report(&self, run: usize, fraction: f64) {
        // Locked during the callback, so that the reported progress never decreases.
        let mut fractions = lock(&self.fractions);
        if let Some(entry) = fractions.get_mut(run) {
            *entry = fraction.clamp(0.0, 1.0);
        }
        let completed = fractions.iter().filter(|fraction| **fraction >= 1.0).count();
        let fraction = fractions.iter().sum::<f64>() / fractions.len().max(1) as f64;
        (self.progress)(Progress { runs: fractions.len(), completed, fraction });
    }
}
