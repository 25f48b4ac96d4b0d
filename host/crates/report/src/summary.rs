//! The statistics of one run.

use std::time::Duration;

use pointsman_domain::RequestResult;
use serde::ser::{Serialize, SerializeMap as _, Serializer};

use crate::events::OUTCOMES;
use crate::histogram::{Histogram, micros};
use crate::phase::{PHASES, Phase};

/// The statistics of one run.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Summary {
    /// Seed of the run.
    pub seed: u64,
    /// Virtual time at which the last request ended.
    #[serde(rename = "duration-s", serialize_with = "in_seconds")]
    pub duration: Duration,
    /// Requests that arrived.
    pub accepted: u64,
    /// Requests that arrived and never ended. Anything but 0 is a bug in the simulator.
    pub lost: i64,
    /// All requests.
    pub all: RequestStatistics,
    /// Requests by class, in the order of the scenario.
    pub classes: Vec<Named<RequestStatistics>>,
    /// Lanes, in the order of the fleet.
    pub lanes: Vec<Named<LaneStatistics>>,
    /// Requests by tenant, in the order of the names. The number of tenants is bounded; the first
    /// ones that arrive are listed.
    pub tenants: Vec<Named<TenantStatistics>>,
    /// The requests of all tenants that are not listed.
    pub other_tenants: Option<RequestStatistics>,
    /// Jain's fairness index of the tenants' promptness: see [`jain`](crate::jain) and
    /// `fairness.rs`.
    pub fairness: Option<f64>,
    /// Engine loads that were started.
    pub loads: u64,
    /// Loads for which other engines had to be unloaded.
    pub switches: u64,
    /// Switches per hour of virtual time.
    pub switches_per_hour: f64,
    /// Maximum queue length, all lanes together.
    pub queue_max: u64,
    /// Mean queue length over time, all lanes together.
    pub queue_mean: f64,
    /// Deciding policy versions with their number of requests, in descending order.
    pub policies: Vec<EventCount>,
    /// Reasons of rejections and errors with their number of requests, in descending order.
    pub problems: Vec<EventCount>,
    /// The calls of each policy of the chain, in its order.
    pub policy_calls: Vec<PolicyCalls>,
    /// What the scenario or its traffic has that the run did not represent, or that the run had to
    /// make up.
    pub warnings: Vec<String>,
}

/// The calls of one policy in a run.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct PolicyCalls {
    /// Name and version of the policy.
    pub policy: String,
    /// Calls of all hooks.
    pub calls: u64,
    /// Calls that ended in a fault, such as a trap or a timeout.
    pub faults: u64,
    /// Calls that returned an error.
    pub errors: u64,
    /// Parts of advice that the host dropped.
    pub dropped: u64,
    /// The message of the first fault.
    pub first_fault: Option<String>,
    /// The message of the first error.
    pub first_error: Option<String>,
    /// The first part that was dropped, with the reason.
    pub first_dropped: Option<String>,
    /// The first log lines, each with its level.
    pub log: Vec<String>,
    /// What an instrumented policy reported of the code that it executed; not a part of reports.
    #[serde(skip)]
    pub marks: Vec<String>,
}

/// Statistics with the name of the class, lane or tenant that they belong to.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Named<T> {
    /// Name of the class, lane or tenant.
    pub name: String,
    /// Its statistics.
    #[serde(flatten)]
    pub value: T,
}

/// The number of occurrences of a named event.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct EventCount {
    /// Name of the event: a policy version, or the reason of an error.
    pub name: String,
    /// Number of occurrences.
    pub count: u64,
}

/// Counts and durations of one set of requests.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct RequestStatistics {
    /// Number of requests by outcome, in the order of [`OUTCOMES`].
    pub ends: [u64; 5],
    /// Time spent waiting for a slot, of all requests that no policy rejected. Requests whose
    /// client gave up are included, so that impatient clients do not hide long waits.
    pub wait: Option<DurationSummary>,
    /// Time to first byte, of the requests that got one.
    pub first_byte: Option<DurationSummary>,
    /// Time to the last byte, of the requests that were served completely.
    pub total: Option<DurationSummary>,
    /// Tokens generated.
    pub output_tokens: u64,
    /// Share of the prompt tokens that were found in the engines' prefix caches.
    pub cached: Option<f64>,
}

/// A summary of a set of durations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DurationSummary {
    /// Number of durations.
    pub count: u64,
    /// Arithmetic mean.
    pub mean: Duration,
    /// 50th percentile.
    pub p50: Duration,
    /// 90th percentile.
    pub p90: Duration,
    /// 95th percentile.
    pub p95: Duration,
    /// 99th percentile.
    pub p99: Duration,
    /// Maximum.
    pub max: Duration,
}

/// The statistics of one lane.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct LaneStatistics {
    /// The requests whose last attempt was made on this lane. Their wait is the time in this lane's
    /// own queue, over all attempts.
    #[serde(flatten)]
    pub requests: RequestStatistics,
    /// Attempts made on this lane.
    pub attempts: u64,
    /// Attempts that did not end with a complete response.
    pub failed_attempts: u64,
    /// Engine loads that were started.
    pub loads: u64,
    /// Mean time from the start of a load until the engine was ready.
    #[serde(rename = "load-mean-s", serialize_with = "in_seconds")]
    pub load_mean: Duration,
    /// Switches to this lane: loads for which other engines had to be unloaded.
    pub switches: u64,
    /// Mean time a switch took until the victims had drained.
    #[serde(rename = "switch-drain-mean-s", serialize_with = "in_seconds")]
    pub drain_mean: Duration,
    /// Mean time from there until the victims had stopped.
    #[serde(rename = "switch-stop-mean-s", serialize_with = "in_seconds")]
    pub stop_mean: Duration,
    /// Mean time from there until this lane's engine was ready.
    #[serde(rename = "switch-load-mean-s", serialize_with = "in_seconds")]
    pub switch_load_mean: Duration,
    /// Share of the run spent in each phase.
    #[serde(serialize_with = "by_phase")]
    pub phases: [f64; PHASES],
    /// Share of the run in which at least one slot was held.
    pub busy: f64,
    /// Share of the run in which the engine held memory.
    pub occupied: f64,
    /// Share of the slots that were in use, averaged over the run.
    pub slots_used: f64,
    /// Mean queue length over time.
    pub queue_mean: f64,
    /// Maximum queue length.
    pub queue_max: u64,
}

/// The statistics of one tenant.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct TenantStatistics {
    /// Requests of the tenant.
    #[serde(flatten)]
    pub requests: RequestStatistics,
    /// How promptly its requests were served, from 0 to 1: see [`jain`](crate::jain) and
    /// `fairness.rs`.
    pub promptness: Option<f64>,
}

impl RequestStatistics {
    /// Returns the number of requests that ended.
    pub fn requests(&self) -> u64 {
        self.ends.iter().sum()
    }

    /// Returns the number of requests with this outcome.
    pub fn ended(&self, how: RequestResult) -> u64 {
        self.ends[how as usize]
    }

    /// Returns the number of requests that were served completely, by the first lane or a fallback.
    pub fn served(&self) -> u64 {
        self.ended(RequestResult::Answered) + self.ended(RequestResult::FellBack)
    }
}

impl DurationSummary {
    /// Summarizes a histogram; `None` if it is empty.
    pub fn from_histogram(histogram: &Histogram) -> Option<Self> {
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

impl Serialize for RequestStatistics {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut map = to.serialize_map(None)?;
        map.serialize_entry("requests", &self.requests())?;
        for (how, name) in OUTCOMES {
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
