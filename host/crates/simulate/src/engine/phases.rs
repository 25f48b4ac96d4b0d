//! How requests enter and leave the phases of an engine.

use super::processor_sharing::micros;
use super::{ActiveJob, Engine, Phase, RequestKey, ResponseProgress, TokenUsage};
use crate::fleet::ServiceModel;

impl Engine {
    /// A phase of fixed length is over.
    pub(super) fn on_timer(&mut self, key: RequestKey, progress: &mut Vec<ResponseProgress>) {
        let Some(job) = self.jobs.get_mut(&key) else { return };
        match job.phase {
            Phase::Overhead(_) => {
                job.phase = Phase::Prefill;
                self.prefills.push_back(key);
                if self.prefills.len() == 1 {
                    self.start_next_prefill();
                }
            }
            Phase::FirstToken(_) => {
                job.phase = Phase::Decode(self.timers.add(job.rest, key));
                progress.push(ResponseProgress::FirstToken(key));
            }
            Phase::Queued | Phase::Prefill | Phase::Decode(_) => self.complete(key, progress),
        }
    }

    pub(super) fn on_prefill_done(&mut self, progress: &mut Vec<ResponseProgress>) {
        let Some(key) = self.prefills.pop_front() else { return };
        if let Some(active) = self.jobs.get_mut(&key) {
            let job = active.job;
            if job.output > 0 {
                active.phase = Phase::FirstToken(self.decodes.add(1.0, key));
                self.cache_prefixes(&job, job.prompt);
            } else {
                progress.push(ResponseProgress::FirstToken(key));
                self.complete(key, progress);
            }
        }
        self.start_next_prefill();
    }

    /// The first token of a response was decoded, or all others were.
    pub(super) fn on_tokens_decoded(
        &mut self,
        key: RequestKey,
        left: f64,
        progress: &mut Vec<ResponseProgress>,
    ) {
        let Some(job) = self.jobs.get_mut(&key) else { return };
        if matches!(job.phase, Phase::FirstToken(_)) {
            progress.push(ResponseProgress::FirstToken(key));
            if job.job.output > 1 {
                // `left` is the rounding error of the first token. Carrying it over keeps the end
                // of the response exact.
                let rest = f64::from(job.job.output - 1) + left;
                job.phase = Phase::Decode(self.decodes.add(rest, key));
                return;
            }
        }
        self.complete(key, progress);
    }

    fn complete(&mut self, key: RequestKey, progress: &mut Vec<ResponseProgress>) {
        let Some(ActiveJob { job, cached, .. }) = self.jobs.remove(&key) else { return };
        self.cache_prefixes(&job, job.prompt.saturating_add(job.output));
        let usage = TokenUsage { cached, generated: job.output };
        progress.push(ResponseProgress::Done(key, usage));
        self.reserved -= self.kv_demand(&job);
        self.admit();
    }

    /// Starts queued requests in order, as long as the key-value cache has space for the next one.
    pub(super) fn admit(&mut self) {
        while let Some(key) = self.queue.front().copied()
            && let Some(active) = self.jobs.get(&key)
        {
            let (demand, recorded) = (self.kv_demand(&active.job), active.job.recorded_times);
            if self.model.kv_tokens.is_some_and(|capacity| self.reserved + demand > capacity) {
                return;
            }
            let cached = self.cached_prefix(&active.job);
            self.queue.pop_front();
            self.reserved += demand;
            let (is_fixed, delay) = match (&self.model.service, recorded) {
                (ServiceModel::Fixed { use_recorded: true, .. }, Some((first, _))) => (true, first),
                (ServiceModel::Fixed { first_token, .. }, _) => {
                    (true, first_token.sample_time(&mut self.random))
                }
                (ServiceModel::Rates { overhead, .. }, _) => {
                    (false, overhead.sample_time(&mut self.random))
                }
            };
            let tag = self.timers.add(micros(delay), key);
            if let Some(active) = self.jobs.get_mut(&key) {
                active.phase = if is_fixed { Phase::FirstToken(tag) } else { Phase::Overhead(tag) };
                // With rates, the cache is looked up when prefill starts.
                active.cached = if is_fixed { cached } else { 0 };
            }
        }
    }

    pub(super) fn start_next_prefill(&mut self) {
        let next = self.prefills.front().and_then(|key| Some((*key, self.jobs.get(key)?.job)));
        let Some((key, job)) = next else { return };
        let cached = self.cached_prefix(&job);
        self.prefill_left = f64::from(job.prompt.saturating_sub(cached));
        if let Some(active) = self.jobs.get_mut(&key) {
            active.cached = cached;
        }
    }
}
