//! Metrics of a run by name, such as `interactive.wait.p99`, for objectives and comparisons.

use std::fmt;
use std::time::Duration;

use pointsman_domain::RequestResult;

use crate::events::OUTCOMES;
use crate::summary::{
    DurationSummary, LaneStatistics, Named, PolicyCalls, RequestStatistics, Summary,
};

/// The requests or lanes that a metric is taken over.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// All requests, or the whole fleet.
    All,
    /// The requests of a class.
    Class(String),
    /// The requests of a tenant.
    Tenant(String),
    /// A lane, and the requests whose last attempt was made on it.
    Lane(String),
}

/// A metric of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Metric {
    /// Time until a slot was granted.
    Wait(Statistic),
    /// Time to first byte.
    FirstByte(Statistic),
    /// Time to the last byte.
    Total(Statistic),
    /// Requests that ended.
    Requests,
    /// Requests with this outcome.
    Ended(RequestResult),
    /// Share of the requests that ended with this outcome.
    Share(RequestResult),
    /// Requests that were served completely, by the first lane or a fallback.
    Served,
    /// Share of the requests that were served completely.
    ServedShare,
    /// Requests that arrived and never ended.
    Lost,
    /// Engine loads that were started.
    Loads,
    /// Loads for which other engines had to be unloaded.
    Switches,
    /// Switches per hour of virtual time.
    SwitchesPerHour,
    /// Jain's fairness index of the tenants' promptness.
    Fairness,
    /// Share of the run in which a lane had a slot in use.
    Busy,
    /// Share of the run in which a lane's engine held memory.
    Occupied,
    /// Maximum queue length.
    QueueMax,
    /// Mean queue length over time.
    QueueMean,
    /// Calls of policies that ended in a fault.
    PolicyFaults,
    /// Calls of policies that returned an error.
    PolicyErrors,
    /// Parts of policies' advice that the host dropped.
    PolicyDropped,
}

/// A statistic of a set of durations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are the usual ones")]
pub enum Statistic {
    Mean,
    P50,
    P90,
    P95,
    P99,
    Max,
}

/// The unit of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Seconds.
    Time,
    /// A count.
    Count,
    /// A share, from 0 to 1.
    Share,
    /// A number without a unit: an index from 0 to 1, a mean count, or a rate per hour.
    Number,
}

/// Which direction of change is an improvement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Lower is better.
    Lower,
    /// Higher is better.
    Higher,
    /// Neither is better in general.
    Neither,
}

/// A metric that does not exist for a scope.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ScopeError {
    /// The metric exists for the whole run only.
    #[error("only available for the whole run; remove the scope")]
    RunOnly,
    /// The metric exists for lanes only.
    #[error("only available for a lane; expected for example `lane.NAME.busy`")]
    LaneOnly,
    /// The metric exists for lanes and for the whole run.
    #[error("only available for a lane or the whole run")]
    LaneOrRun,
}

impl Statistic {
    /// All statistics with their names.
    pub const ALL: [(&'static str, Self); 6] = [
        ("mean", Self::Mean),
        ("p50", Self::P50),
        ("p90", Self::P90),
        ("p95", Self::P95),
        ("p99", Self::P99),
        ("max", Self::Max),
    ];

    fn select(self, times: &DurationSummary) -> Duration {
        match self {
            Self::Mean => times.mean,
            Self::P50 => times.p50,
            Self::P90 => times.p90,
            Self::P95 => times.p95,
            Self::P99 => times.p99,
            Self::Max => times.max,
        }
    }

    fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, statistic)| *statistic == self).map_or("", |(name, _)| name)
    }
}

impl Metric {
    /// The metrics of a run as a whole, in the order in which they are shown.
    pub const RUN_METRICS: [Self; 9] = [
        Self::Lost,
        Self::Fairness,
        Self::Loads,
        Self::SwitchesPerHour,
        Self::QueueMean,
        Self::QueueMax,
        Self::PolicyFaults,
        Self::PolicyErrors,
        Self::PolicyDropped,
    ];

    /// Returns the unit of the metric.
    pub fn unit(self) -> Unit {
        match self {
            Self::Wait(_) | Self::FirstByte(_) | Self::Total(_) => Unit::Time,
            Self::Requests | Self::Ended(_) | Self::Served => Unit::Count,
            Self::Lost | Self::Loads | Self::Switches | Self::QueueMax => Unit::Count,
            Self::PolicyFaults | Self::PolicyErrors | Self::PolicyDropped => Unit::Count,
            Self::Share(_) | Self::ServedShare | Self::Busy | Self::Occupied => Unit::Share,
            Self::SwitchesPerHour | Self::Fairness | Self::QueueMean => Unit::Number,
        }
    }

    /// Returns which direction of change is an improvement.
    pub fn direction(self) -> Direction {
        match self {
            Self::Ended(RequestResult::Answered) | Self::Share(RequestResult::Answered) => {
                Direction::Higher
            }
            Self::Served | Self::ServedShare | Self::Fairness => Direction::Higher,
            Self::Requests | Self::Busy | Self::Occupied => Direction::Neither,
            // A policy rejects requests on purpose.
            Self::Ended(RequestResult::Rejected) | Self::Share(RequestResult::Rejected) => {
                Direction::Neither
            }
            Self::Wait(_)
            | Self::FirstByte(_)
            | Self::Total(_)
            | Self::Ended(_)
            | Self::Share(_) => Direction::Lower,
            Self::Lost | Self::Loads | Self::Switches | Self::SwitchesPerHour => Direction::Lower,
            Self::QueueMax | Self::QueueMean => Direction::Lower,
            Self::PolicyFaults | Self::PolicyErrors | Self::PolicyDropped => Direction::Lower,
        }
    }

    /// Checks that the metric exists for this scope.
    ///
    /// # Errors
    /// Returns the scopes for which the metric exists.
    pub fn check_scope(self, scope: &Scope) -> Result<(), ScopeError> {
        match (self, scope) {
            (
                Self::Lost
                | Self::SwitchesPerHour
                | Self::Fairness
                | Self::PolicyFaults
                | Self::PolicyErrors
                | Self::PolicyDropped,
                scope,
            ) => match scope {
                Scope::All => Ok(()),
                Scope::Class(_) | Scope::Tenant(_) | Scope::Lane(_) => Err(ScopeError::RunOnly),
            },
            (Self::Busy | Self::Occupied, Scope::Lane(_)) => Ok(()),
            (Self::Busy | Self::Occupied, _) => Err(ScopeError::LaneOnly),
            (
                Self::Loads | Self::Switches | Self::QueueMax | Self::QueueMean,
                Scope::Class(_) | Scope::Tenant(_),
            ) => Err(ScopeError::LaneOrRun),
            _ => Ok(()),
        }
    }

    /// Returns the value of the metric in a run: seconds, a share from 0 to 1, or a count. Returns
    /// `None` if there is no value: the scope does not exist in this run, or no request counts.
    pub fn value(self, scope: &Scope, run: &Summary) -> Option<f64> {
        match (scope, self) {
            (Scope::All, Self::Lost) => Some(run.lost as f64),
            (Scope::All, Self::Loads) => Some(run.loads as f64),
            (Scope::All, Self::Switches) => Some(run.switches as f64),
            (Scope::All, Self::SwitchesPerHour) => Some(run.switches_per_hour),
            (Scope::All, Self::Fairness) => run.fairness,
            (Scope::All, Self::QueueMax) => Some(run.queue_max as f64),
            (Scope::All, Self::QueueMean) => Some(run.queue_mean),
            (Scope::All, Self::PolicyFaults) => calls(run, |calls| calls.faults),
            (Scope::All, Self::PolicyErrors) => calls(run, |calls| calls.errors),
            (Scope::All, Self::PolicyDropped) => calls(run, |calls| calls.dropped),
            (Scope::All, _) => self.request_value(&run.all),
            (Scope::Class(name), _) => self.request_value(named(&run.classes, name)?),
            (Scope::Tenant(name), _) => self.request_value(&named(&run.tenants, name)?.requests),
            (Scope::Lane(name), _) => self.lane_value(named(&run.lanes, name)?),
        }
    }

    fn lane_value(self, lane: &LaneStatistics) -> Option<f64> {
        match self {
            Self::Loads => Some(lane.loads as f64),
            Self::Switches => Some(lane.switches as f64),
            Self::Busy => Some(lane.busy),
            Self::Occupied => Some(lane.occupied),
            Self::QueueMax => Some(lane.queue_max as f64),
            Self::QueueMean => Some(lane.queue_mean),
            _ => self.request_value(&lane.requests),
        }
    }

    fn request_value(self, requests: &RequestStatistics) -> Option<f64> {
        let all = requests.requests();
        let part = |count: u64| (all > 0).then(|| count as f64 / all as f64);
        let time = |times: &Option<DurationSummary>, statistic: Statistic| {
            times.as_ref().map(|times| statistic.select(times).as_secs_f64())
        };
        match self {
            Self::Wait(statistic) => time(&requests.wait, statistic),
            Self::FirstByte(statistic) => time(&requests.first_byte, statistic),
            Self::Total(statistic) => time(&requests.total, statistic),
            Self::Requests => Some(all as f64),
            Self::Ended(how) => Some(requests.ended(how) as f64),
            Self::Share(how) => part(requests.ended(how)),
            Self::Served => Some(requests.served() as f64),
            Self::ServedShare => part(requests.served()),
            Self::Lost | Self::Loads | Self::Switches | Self::SwitchesPerHour | Self::Fairness => {
                None
            }
            Self::Busy | Self::Occupied | Self::QueueMax | Self::QueueMean => None,
            Self::PolicyFaults | Self::PolicyErrors | Self::PolicyDropped => None,
        }
    }
}

/// Adds up the calls of all policies.
fn calls(run: &Summary, count: fn(&PolicyCalls) -> u64) -> Option<f64> {
    Some(run.policy_calls.iter().map(count).sum::<u64>() as f64)
}

fn named<'a, T>(all: &'a [Named<T>], name: &str) -> Option<&'a T> {
    all.iter().find(|entry| entry.name == name).map(|entry| &entry.value)
}

impl fmt::Display for Scope {
    /// Writes the scope as a prefix of a metric name, including the dot.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => Ok(()),
            Self::Class(name) => write!(f, "{name}."),
            Self::Tenant(name) => write!(f, "tenant.{name}."),
            Self::Lane(name) => write!(f, "lane.{name}."),
        }
    }
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Wait(statistic) => write!(f, "wait.{}", statistic.name()),
            Self::FirstByte(statistic) => write!(f, "first-byte.{}", statistic.name()),
            Self::Total(statistic) => write!(f, "total.{}", statistic.name()),
            Self::Requests => f.write_str("requests"),
            Self::Ended(how) => f.write_str(label(*how)),
            Self::Share(how) => write!(f, "{}.share", label(*how)),
            Self::Served => f.write_str("served"),
            Self::ServedShare => f.write_str("served.share"),
            Self::Lost => f.write_str("lost"),
            Self::Loads => f.write_str("loads"),
            Self::Switches => f.write_str("switches"),
            Self::SwitchesPerHour => f.write_str("switches-per-hour"),
            Self::Fairness => f.write_str("tenant.fairness"),
            Self::Busy => f.write_str("busy"),
            Self::Occupied => f.write_str("occupied"),
            Self::QueueMax => f.write_str("queue.max"),
            Self::QueueMean => f.write_str("queue.mean"),
            Self::PolicyFaults => f.write_str("policy.faults"),
            Self::PolicyErrors => f.write_str("policy.errors"),
            Self::PolicyDropped => f.write_str("policy.dropped"),
        }
    }
}

fn label(how: RequestResult) -> &'static str {
    OUTCOMES.iter().find(|(outcome, _)| *outcome == how).map_or("", |(_, name)| name)
}
