//! What is counted of requests, while they end.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::fairness;
use super::summary::{Counted, Figures, Named, TenantFigures, Times};
use crate::histogram::Histogram;
use crate::observe::{FinishedRequest, RequestResult};

/// Requests of somebody.
#[derive(Debug, Clone, Default)]
pub(super) struct Tally {
    ends: [u64; 5],
    pub(super) wait: Histogram,
    pub(super) first_byte: Histogram,
    total: Histogram,
    output_tokens: u64,
    prompt_tokens: u64,
    cached_tokens: u64,
}

impl Tally {
    pub(super) fn add(&mut self, ended: &FinishedRequest<'_>) {
        if ended.result != RequestResult::Rejected {
            self.wait.record(ended.wait);
        }
        self.add_all_but_wait(ended);
    }

    pub(super) fn add_all_but_wait(&mut self, ended: &FinishedRequest<'_>) {
        self.ends[ended.result as usize] += 1;
        if let Some(time) = ended.first_byte {
            self.first_byte.record(time);
            self.prompt_tokens += u64::from(ended.request.prompt_tokens);
            self.cached_tokens += u64::from(ended.cached_tokens);
        }
        if ended.result.is_success() {
            self.total.record(ended.at.saturating_sub(ended.request.at));
        }
        self.output_tokens += u64::from(ended.output_tokens);
    }

    pub(super) fn figures(&self) -> Figures {
        Figures {
            ends: self.ends,
            wait: Times::of(&self.wait),
            first_byte: Times::of(&self.first_byte),
            total: Times::of(&self.total),
            output_tokens: self.output_tokens,
            cached: (self.prompt_tokens > 0)
                .then(|| self.cached_tokens as f64 / self.prompt_tokens as f64),
        }
    }
}

/// No more tenants than this are counted each by itself.
const MOST_TENANTS: usize = 200;

/// Requests by tenant.
#[derive(Debug, Default)]
pub(super) struct Tenants {
    each: BTreeMap<Arc<str>, Tenant>,
    others: Option<Tally>,
}

#[derive(Debug, Default)]
struct Tenant {
    tally: Tally,
    promptness: fairness::Promptness,
}

impl Tenants {
    pub(super) fn add(&mut self, ended: &FinishedRequest<'_>) {
        let Some(name) = &ended.request.tenant else { return };
        if !self.each.contains_key(name) {
            if self.each.len() >= MOST_TENANTS {
                self.others.get_or_insert_default().add(ended);
                return;
            }
            self.each.insert(Arc::clone(name), Tenant::default());
        }
        if let Some(tenant) = self.each.get_mut(name) {
            tenant.tally.add(ended);
            tenant.promptness.add(ended);
        }
    }

    pub(super) fn each(&self) -> Vec<Named<TenantFigures>> {
        let figures = |tenant: &Tenant| TenantFigures {
            requests: tenant.tally.figures(),
            promptness: tenant.promptness.mean(),
        };
        self.each
            .iter()
            .map(|(name, it)| Named { name: name.to_string(), of: figures(it) })
            .collect()
    }

    pub(super) fn others(&self) -> Option<Figures> {
        self.others.as_ref().map(Tally::figures)
    }
}

/// Sentences, and how often each was said. Of too many different ones, the later ones are counted as one.
#[derive(Debug, Default)]
pub(super) struct Sentences(BTreeMap<String, u64>);

impl Sentences {
    const MOST: usize = 200;
    const SHOWN: usize = 10;
    const OTHERS: &'static str = "something else";

    pub(super) fn add(&mut self, sentence: &str) {
        if let Some(count) = self.0.get_mut(sentence) {
            *count += 1;
            return;
        }
        let sentence = if self.0.len() < Self::MOST { sentence } else { Self::OTHERS };
        *self.0.entry(sentence.to_owned()).or_default() += 1;
    }

    /// The commonest ones.
    pub(super) fn commonest(self) -> Vec<Counted> {
        let mut all: Vec<_> =
            self.0.into_iter().map(|(what, count)| Counted { what, count }).collect();
        all.sort_by(|a, b| b.count.cmp(&a.count).then_with(|| a.what.cmp(&b.what)));
        let rest: u64 = all.iter().skip(Self::SHOWN).map(|it| it.count).sum();
        all.truncate(Self::SHOWN);
        if rest > 0 {
            all.push(Counted { what: Self::OTHERS.to_owned(), count: rest });
        }
        all
    }
}

/// Times that are added up, for their mean.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Sum {
    sum: Duration,
    count: u32,
}

impl Sum {
    pub(super) fn add(&mut self, time: Duration) {
        self.sum += time;
        self.count += 1;
    }

    pub(super) fn mean(self) -> Duration {
        self.sum.checked_div(self.count).unwrap_or_default()
    }
}
