//! What came of one run, in figures.

use std::time::Duration;

use serde::ser::{Serialize, SerializeMap as _, Serializer};

use super::phase::{PHASES, Phase};
use super::series::micros;
use crate::histogram::Histogram;
use crate::observe::RequestResult;

/// The figures of one run.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Summary {
    /// The seed of the run.
    pub seed: u64,
    /// When the last request had ended.
    #[serde(rename = "lasted-s", serialize_with = "in_seconds")]
    pub lasted: Duration,
    /// Requests that came in.
    pub accepted: u64,
    /// Requests that came in and did not end in any way. Anything but 0 is an error of the simulation.
    pub lost: i64,
    /// All requests together.
    pub all: Figures,
    /// By class, in the order of the scenario.
    pub classes: Vec<Named<Figures>>,
    /// By lane, in the order of the fleet.
    pub lanes: Vec<Named<LaneFigures>>,
    /// By tenant, in the order of their names. Those who came after many others are not here.
    pub tenants: Vec<Named<TenantFigures>>,
    /// The tenants who are not.
    pub other_tenants: Option<Figures>,
    /// Jain's index of the promptness of the tenants: see [`jain`](super::jain) and `fairness.rs`.
    pub fairness: Option<f64>,
    /// Loads that began.
    pub loads: u64,
    /// Loads that others had to be unloaded for.
    pub switches: u64,
    /// The same for an hour of the run.
    pub switches_per_hour: f64,
    /// Longest queue, all lanes together.
    pub queue_max: u64,
    /// Requests that waited, on average, all lanes together.
    pub queue_mean: f64,
    /// Policies that decided, and how many requests, the busiest first.
    pub policies: Vec<Counted>,
    /// Why requests were refused or went wrong, the commonest first.
    pub problems: Vec<Counted>,
}

/// Figures of somebody.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Named<T> {
    /// Whose.
    pub name: String,
    /// The figures.
    #[serde(flatten)]
    pub of: T,
}

/// Something that happened so often.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Counted {
    /// What.
    pub what: String,
    /// How often.
    pub count: u64,
}

/// How many requests ended in which way, and how long they took.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Figures {
    /// By how they ended, in the order of [`HOWS`].
    pub ends: [u64; 5],
    /// Waits of all that no policy refused, whether they were answered or not: those who gave up have waited, too.
    pub wait: Option<Times>,
    /// Times to the first byte, of those that got one.
    pub first_byte: Option<Times>,
    /// Times to the end, of those that got their whole answer.
    pub total: Option<Times>,
    /// Tokens that were written.
    pub output_tokens: u64,
    /// Part of the tokens of prompts that the engines had already.
    pub cached: Option<f64>,
}

/// What there is to know of some times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Times {
    /// How many.
    pub count: u64,
    /// Their mean.
    pub mean: Duration,
    /// Half are no longer.
    pub p50: Duration,
    /// Nine of ten are no longer.
    pub p90: Duration,
    /// Nineteen of twenty are no longer.
    pub p95: Duration,
    /// 99 of a hundred are no longer.
    pub p99: Duration,
    /// The longest.
    pub max: Duration,
}

/// What came of one lane.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct LaneFigures {
    /// The requests that it was the last one to try. Their waits are those in its own queue, of all tries.
    #[serde(flatten)]
    pub requests: Figures,
    /// Tries, and how many of them did not end with a whole answer.
    pub tries: u64,
    /// Those that did not.
    pub failed_tries: u64,
    /// Loads that began.
    pub loads: u64,
    /// Mean time from there until it served.
    #[serde(rename = "load-mean-s", serialize_with = "in_seconds")]
    pub load_mean: Duration,
    /// Switches to it.
    pub switches: u64,
    /// Mean time of its switches until the victims had finished their work.
    #[serde(rename = "switch-drain-mean-s", serialize_with = "in_seconds")]
    pub drain_mean: Duration,
    /// Mean time of its switches from there until the victims were gone.
    #[serde(rename = "switch-stop-mean-s", serialize_with = "in_seconds")]
    pub stop_mean: Duration,
    /// Mean time of its switches from there until it served.
    #[serde(rename = "switch-load-mean-s", serialize_with = "in_seconds")]
    pub switch_load_mean: Duration,
    /// Part of the run in each phase.
    #[serde(serialize_with = "by_phase")]
    pub phases: [f64; PHASES],
    /// Part of the run in which it worked on something.
    pub busy: f64,
    /// Part of the run in which it held memory.
    pub occupied: f64,
    /// Part of its slots that were held, over the whole run.
    pub slots_used: f64,
    /// Requests that waited for it, on average.
    pub queue_mean: f64,
    /// Longest queue.
    pub queue_max: u64,
}

/// What came of one tenant.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct TenantFigures {
    /// Its requests.
    #[serde(flatten)]
    pub requests: Figures,
    /// How promptly they were served, from 0 to 1: see [`jain`](super::jain) and `fairness.rs`.
    pub promptness: Option<f64>,
}

/// All ways to end, with their names.
pub const HOWS: [(RequestResult, &str); 5] = [
    (RequestResult::Answered, "answered"),
    (RequestResult::FellBack, "fell-back"),
    (RequestResult::Rejected, "rejected"),
    (RequestResult::Error, "errors"),
    (RequestResult::ClientGone, "client-gone"),
];

impl Figures {
    /// Requests that ended.
    pub fn requests(&self) -> u64 {
        self.ends.iter().sum()
    }

    /// Requests that ended in this way.
    pub fn ended(&self, how: RequestResult) -> u64 {
        self.ends[how as usize]
    }

    /// Requests that got their whole answer, from the first lane or a later one.
    pub fn served(&self) -> u64 {
        self.ended(RequestResult::Answered) + self.ended(RequestResult::FellBack)
    }
}

impl Times {
    /// Of all times in a histogram, if there are any.
    pub fn of(histogram: &Histogram) -> Option<Self> {
        Some(Self {
            count: histogram.count(),
            mean: histogram.mean()?,
            p50: histogram.quantile(0.5)?,
            p90: histogram.quantile(0.9)?,
            p95: histogram.quantile(0.95)?,
            p99: histogram.quantile(0.99)?,
            max: histogram.max()?,
        })
    }
}

impl Serialize for Figures {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut map = to.serialize_map(None)?;
        map.serialize_entry("requests", &self.requests())?;
        for (how, name) in HOWS {
            map.serialize_entry(name, &self.ended(how))?;
        }
        for (name, times) in
            [("wait", &self.wait), ("first-byte", &self.first_byte), ("total", &self.total)]
        {
            let Some(times) = times else { continue };
            let all = [
                ("mean", times.mean),
                ("p50", times.p50),
                ("p90", times.p90),
                ("p95", times.p95),
                ("p99", times.p99),
                ("max", times.max),
            ];
            map.serialize_entry(&format!("{name}-count"), &times.count)?;
            for (statistic, time) in all {
                map.serialize_entry(
                    &format!("{name}-{statistic}-ms"),
                    &(micros(time) as f64 / 1e3),
                )?;
            }
        }
        map.serialize_entry("output-tokens", &self.output_tokens)?;
        map.serialize_entry("cached-share", &self.cached)?;
        map.end()
    }
}

fn in_seconds<S: Serializer>(time: &Duration, to: S) -> Result<S::Ok, S::Error> {
    (micros(*time) as f64 / 1e6).serialize(to)
}

fn by_phase<S: Serializer>(shares: &[f64; PHASES], to: S) -> Result<S::Ok, S::Error> {
    to.collect_map(Phase::ALL.into_iter().map(|phase| (phase, shares[phase as usize])))
}
