//! One figure of a run by its name, such as `interactive.wait.p99`: what objectives are about, and what comparisons show.

use std::fmt;
use std::time::Duration;

use crate::observe::RequestResult;
use crate::report::{Figures, LaneFigures, Named, Summary, Times};

/// Whose figure.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// All requests, or the whole fleet.
    All,
    /// The requests of a class.
    Class(String),
    /// The requests of a tenant.
    Tenant(String),
    /// A lane, and the requests that it was the last one to try.
    Lane(String),
}

/// Which figure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Metric {
    /// Time until a slot.
    Wait(Statistic),
    /// Time to the first byte.
    FirstByte(Statistic),
    /// Time to the end of an answer.
    Total(Statistic),
    /// Requests that ended.
    Requests,
    /// Requests that ended in this way.
    Ended(RequestResult),
    /// Their part of all that ended.
    Share(RequestResult),
    /// Requests that got their whole answer, from the first lane or a later one.
    Served,
    /// Their part of all that ended.
    ServedShare,
    /// Requests that came in and did not end.
    Lost,
    /// Loads that began.
    Loads,
    /// Loads that others had to be unloaded for.
    Switches,
    /// The same for an hour.
    SwitchesPerHour,
    /// Jain's index of the tenants' promptness.
    Fairness,
    /// Part of the run in which a lane worked on something.
    Busy,
    /// Part of the run in which a lane held memory.
    Occupied,
    /// Longest queue.
    QueueMax,
    /// Requests that waited, on average.
    QueueMean,
}

/// One number for many times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "they are what they are called")]
pub enum Statistic {
    Mean,
    P50,
    P90,
    P95,
    P99,
    Max,
}

/// What a number means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Seconds.
    Time,
    /// A number of things.
    Count,
    /// A part of a whole, from 0 to 1.
    Share,
    /// An index from 0 to 1, or a number for each hour.
    Number,
}

/// Which way is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Less.
    Lower,
    /// More.
    Higher,
    /// Neither: it depends.
    Neither,
}

impl Statistic {
    /// All, with their names.
    pub const ALL: [(&'static str, Self); 6] = [
        ("mean", Self::Mean),
        ("p50", Self::P50),
        ("p90", Self::P90),
        ("p95", Self::P95),
        ("p99", Self::P99),
        ("max", Self::Max),
    ];

    fn of(self, times: &Times) -> Duration {
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
        Self::ALL.iter().find(|(_, it)| *it == self).map_or("", |(name, _)| name)
    }
}

impl Metric {
    /// The figures that are about a run as a whole, in the order in which they are shown.
    pub const OF_THE_WHOLE: [Self; 6] = [
        Self::Lost,
        Self::Fairness,
        Self::Loads,
        Self::SwitchesPerHour,
        Self::QueueMean,
        Self::QueueMax,
    ];

    /// What its number means.
    pub fn unit(self) -> Unit {
        match self {
            Self::Wait(_) | Self::FirstByte(_) | Self::Total(_) => Unit::Time,
            Self::Requests | Self::Ended(_) | Self::Served => Unit::Count,
            Self::Lost | Self::Loads | Self::Switches | Self::QueueMax => Unit::Count,
            Self::Share(_) | Self::ServedShare | Self::Busy | Self::Occupied => Unit::Share,
            Self::SwitchesPerHour | Self::Fairness | Self::QueueMean => Unit::Number,
        }
    }

    /// Which way is better.
    pub fn direction(self) -> Direction {
        match self {
            Self::Ended(RequestResult::Answered) | Self::Share(RequestResult::Answered) => {
                Direction::Higher
            }
            Self::Served | Self::ServedShare | Self::Fairness => Direction::Higher,
            Self::Requests | Self::Busy | Self::Occupied => Direction::Neither,
            // A policy that refuses means it.
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
        }
    }

    /// Is there such a figure of somebody like this?
    pub fn fits(self, scope: &Scope) -> Result<(), &'static str> {
        match (self, scope) {
            (Self::Lost | Self::SwitchesPerHour | Self::Fairness, Scope::All) => Ok(()),
            (Self::Lost | Self::SwitchesPerHour | Self::Fairness, _) => {
                Err("is a figure of the whole run only")
            }
            (Self::Busy | Self::Occupied, Scope::Lane(_)) => Ok(()),
            (Self::Busy | Self::Occupied, _) => {
                Err("is a figure of a lane: write `lane.<name>.` before it")
            }
            (
                Self::Loads | Self::Switches | Self::QueueMax | Self::QueueMean,
                Scope::Class(_) | Scope::Tenant(_),
            ) => Err("is a figure of a lane or of the whole run"),
            _ => Ok(()),
        }
    }

    /// The number in a run: seconds, or a part from 0 to 1, or how many. `None` if there is nothing that it could be of, such as
    /// the wait of nobody, or no such class, lane or tenant.
    pub fn of(self, scope: &Scope, run: &Summary) -> Option<f64> {
        match (scope, self) {
            (Scope::All, Self::Lost) => Some(run.lost as f64),
            (Scope::All, Self::Loads) => Some(run.loads as f64),
            (Scope::All, Self::Switches) => Some(run.switches as f64),
            (Scope::All, Self::SwitchesPerHour) => Some(run.switches_per_hour),
            (Scope::All, Self::Fairness) => run.fairness,
            (Scope::All, Self::QueueMax) => Some(run.queue_max as f64),
            (Scope::All, Self::QueueMean) => Some(run.queue_mean),
            (Scope::All, _) => self.of_requests(&run.all),
            (Scope::Class(name), _) => self.of_requests(named(&run.classes, name)?),
            (Scope::Tenant(name), _) => self.of_requests(&named(&run.tenants, name)?.requests),
            (Scope::Lane(name), _) => self.of_lane(named(&run.lanes, name)?),
        }
    }

    fn of_lane(self, lane: &LaneFigures) -> Option<f64> {
        match self {
            Self::Loads => Some(lane.loads as f64),
            Self::Switches => Some(lane.switches as f64),
            Self::Busy => Some(lane.busy),
            Self::Occupied => Some(lane.occupied),
            Self::QueueMax => Some(lane.queue_max as f64),
            Self::QueueMean => Some(lane.queue_mean),
            _ => self.of_requests(&lane.requests),
        }
    }

    fn of_requests(self, figures: &Figures) -> Option<f64> {
        let all = figures.requests();
        let part = |count: u64| (all > 0).then(|| count as f64 / all as f64);
        let time = |times: &Option<Times>, statistic: Statistic| {
            times.as_ref().map(|times| statistic.of(times).as_secs_f64())
        };
        match self {
            Self::Wait(statistic) => time(&figures.wait, statistic),
            Self::FirstByte(statistic) => time(&figures.first_byte, statistic),
            Self::Total(statistic) => time(&figures.total, statistic),
            Self::Requests => Some(all as f64),
            Self::Ended(how) => Some(figures.ended(how) as f64),
            Self::Share(how) => part(figures.ended(how)),
            Self::Served => Some(figures.served() as f64),
            Self::ServedShare => part(figures.served()),
            Self::Lost | Self::Loads | Self::Switches | Self::SwitchesPerHour | Self::Fairness => {
                None
            }
            Self::Busy | Self::Occupied | Self::QueueMax | Self::QueueMean => None,
        }
    }
}

fn named<'a, T>(all: &'a [Named<T>], name: &str) -> Option<&'a T> {
    all.iter().find(|it| it.name == name).map(|it| &it.of)
}

impl fmt::Display for Scope {
    /// With the dot after it.
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
        }
    }
}

fn label(how: RequestResult) -> &'static str {
    crate::report::HOWS.iter().find(|(it, _)| *it == how).map_or("", |(_, name)| name)
}
