//! Counters that are updated when requests end.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use pointsman_domain::RequestResult;

use crate::events::EndedRequest;
use crate::fairness;
use crate::histogram::Histogram;
use crate::summary::{DurationSummary, EventCount, Named, RequestStatistics, TenantStatistics};

/// Counters of one set of requests: all of them, or those of a class, lane or tenant.
#[derive(Debug, Clone, Default)]
pub(crate) struct RequestCounters {
    ends: [u64; 5],
    pub(crate) wait: Histogram,
    pub(crate) first_byte: Histogram,
    total: Histogram,
    output_tokens: u64,
    prompt_tokens: u64,
    cached_tokens: u64,
}

impl RequestCounters {
    /// Counts a request. A rejected request did not wait, so it does not count towards the wait.
    pub(crate) fn add(&mut self, ended: &EndedRequest<'_>) {
        if ended.result != RequestResult::Rejected {
            self.wait.record(ended.wait);
        }
        self.add_without_wait(ended);
    }

    /// Counts a request without its wait, which the caller counts by lane.
    pub(crate) fn add_without_wait(&mut self, ended: &EndedRequest<'_>) {
        self.ends[ended.result as usize] += 1;
        if let Some(time) = ended.first_byte {
            self.first_byte.record(time);
            self.prompt_tokens += u64::from(ended.prompt_tokens);
            self.cached_tokens += u64::from(ended.cached_tokens);
        }
        if ended.result.is_success() {
            self.total.record(ended.at.saturating_sub(ended.arrived_at));
        }
        self.output_tokens += u64::from(ended.output_tokens);
    }

    pub(crate) fn statistics(&self) -> RequestStatistics {
        RequestStatistics {
            ends: self.ends,
            wait: DurationSummary::from_histogram(&self.wait),
            first_byte: DurationSummary::from_histogram(&self.first_byte),
            total: DurationSummary::from_histogram(&self.total),
            output_tokens: self.output_tokens,
            cached: (self.prompt_tokens > 0)
                .then(|| self.cached_tokens as f64 / self.prompt_tokens as f64),
        }
    }
}

/// Tenants that have counters of their own; the rest share one, which bounds memory.
const MAX_TENANTS: usize = 200;

/// Counters by tenant.
#[derive(Debug, Default)]
pub(crate) struct Tenants {
    each: BTreeMap<Arc<str>, Tenant>,
    others: Option<RequestCounters>,
}

#[derive(Debug, Default)]
struct Tenant {
    counters: RequestCounters,
    promptness: fairness::Promptness,
}

impl Tenants {
    pub(crate) fn add(&mut self, ended: &EndedRequest<'_>) {
        let Some(name) = ended.tenant else { return };
        if !self.each.contains_key(name) {
            if self.each.len() >= MAX_TENANTS {
                self.others.get_or_insert_default().add(ended);
                return;
            }
            self.each.insert(Arc::clone(name), Tenant::default());
        }
        if let Some(tenant) = self.each.get_mut(name) {
            tenant.counters.add(ended);
            tenant.promptness.add(ended);
        }
    }

    pub(crate) fn each(&self) -> Vec<Named<TenantStatistics>> {
        let statistics = |tenant: &Tenant| TenantStatistics {
            requests: tenant.counters.statistics(),
            promptness: tenant.promptness.mean(),
        };
        self.each
            .iter()
            .map(|(name, tenant)| Named { name: name.to_string(), value: statistics(tenant) })
            .collect()
    }

    pub(crate) fn others(&self) -> Option<RequestStatistics> {
        self.others.as_ref().map(RequestCounters::statistics)
    }
}

/// Counts messages by text. Once [`Self::MAX_TEXTS`] different texts have been seen, new ones are
/// counted together.
#[derive(Debug, Default)]
pub(crate) struct MessageCounts(BTreeMap<String, u64>);

impl MessageCounts {
    const MAX_TEXTS: usize = 200;
    const MAX_SHOWN: usize = 10;
    const OTHERS: &'static str = "other";

    pub(crate) fn add(&mut self, text: &str) {
        if let Some(count) = self.0.get_mut(text) {
            *count += 1;
            return;
        }
        // Error texts may contain anything, so their number is bounded.
        let text = if self.0.len() < Self::MAX_TEXTS { text } else { Self::OTHERS };
        *self.0.entry(text.to_owned()).or_default() += 1;
    }

    /// Returns the most common texts, followed by the sum of all others.
    pub(crate) fn most_common(self) -> Vec<EventCount> {
        let mut all: Vec<_> =
            self.0.into_iter().map(|(name, count)| EventCount { name, count }).collect();
        all.sort_by(|a, b| b.count.cmp(&a.count).then_with(|| a.name.cmp(&b.name)));
        let rest: u64 = all.iter().skip(Self::MAX_SHOWN).map(|event| event.count).sum();
        all.truncate(Self::MAX_SHOWN);
        if rest > 0 {
            all.push(EventCount { name: Self::OTHERS.to_owned(), count: rest });
        }
        all
    }
}

/// A mean of durations.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct MeanDuration {
    sum: Duration,
    count: u32,
}

impl MeanDuration {
    pub(crate) fn add(&mut self, time: Duration) {
        self.sum += time;
        self.count += 1;
    }

    pub(crate) fn mean(self) -> Duration {
        self.sum.checked_div(self.count).unwrap_or_default()
    }
}
