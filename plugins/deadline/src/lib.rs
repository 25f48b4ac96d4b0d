//! Routes requests to lanes that can meet their deadlines.
//!
//! A request has a time budget until its first token: from its header, or else from its tenant, its
//! model, or the default. A lane is *timely* if its estimated wait, its load time and its usual
//! time to first token fit into the remaining budget.
//!
//! 1. If candidates are timely, only those are used, and the request waits for one only as long as
//!    the next best lane could still meet the deadline.
//! 2. If no candidate is timely, but a configured fallback lane is, the request goes to that lane
//!    unless a candidate has a free slot.
//! 3. If no lane is timely, the request is rejected with a `Retry-After`, or goes to the lane with
//!    the earliest start.
//!
//! After a failed attempt the same rules are applied to the current metrics and the remaining time.

mod config;
#[cfg(test)]
mod tests;

use pointsman_sdk::{
    Advice, Call, Failure, FallbackStep, LaneId, OnTimeout, Policy, PolicyError, Recover, Recovery,
    Rejection,
};

use self::config::{Config, LateAction};

/// The configured policy.
#[derive(Debug)]
pub struct Deadline {
    config: Config,
}

pointsman_sdk::export_policy!(Deadline, on_failure);

/// Maximum number of fallback steps that a host accepts.
const MAX_STEPS: usize = 8;
/// Maximum `Retry-After` in seconds.
const MAX_RETRY_AFTER_S: u64 = 60;

/// A lane that could serve the request, with its estimated times.
#[derive(Debug, Clone, Copy)]
struct Estimate {
    lane: LaneId,
    start_ms: u64,
    first_token_ms: u64,
}

impl Estimate {
    fn total_ms(&self) -> u64 {
        self.start_ms + self.first_token_ms
    }
}

/// The time budget of a request.
#[derive(Debug, Clone, Copy)]
struct Budget {
    total_ms: u64,
    left_ms: u64,
}

/// Estimates for a request, earliest first token first.
struct Estimates {
    /// Lanes that serve the model name.
    candidates: Vec<Estimate>,
    /// Configured fallback lanes that do not.
    fallbacks: Vec<Estimate>,
}

impl Policy for Deadline {
    const NAME: &'static str = "deadline";
    const VERSION: &'static str = "0.1.0";

    fn configure(config: &str) -> Result<Self, PolicyError> {
        Ok(Self { config: Config::parse(config)? })
    }

    fn advise(&self, call: &Call<'_>) -> Result<Advice, PolicyError> {
        let Some(budget) = self.budget(call) else { return Ok(Advice::any()) };
        let estimates = self.estimates(call);
        let timely = in_time(&estimates.candidates, budget);
        let timely_fallbacks = in_time(&estimates.fallbacks, budget);
        Ok(if !timely.is_empty() {
            self.use_timely(call, budget, &estimates, &timely, &timely_fallbacks)
        } else if !timely_fallbacks.is_empty() {
            self.use_fallback(call, budget, &estimates, &timely_fallbacks)
        } else {
            self.use_late(budget, &estimates)
        })
    }
}

impl Recover for Deadline {
    fn recover(&self, call: &Call<'_>, failed: &Failure) -> Result<Recovery, PolicyError> {
        let Some(budget) = self.budget(call) else { return Ok(Recovery::Planned) };
        if failed.sent_bytes > 0 || failed.tries_left == 0 {
            return Ok(Recovery::Planned);
        }
        let estimates = self.estimates(call);
        let others = estimates
            .candidates
            .iter()
            .chain(&estimates.fallbacks)
            .filter(|estimate| estimate.lane != failed.lane);
        let fastest = others.min_by_key(|estimate| estimate.total_ms());
        Ok(match fastest {
            Some(estimate) if estimate.total_ms() <= budget.left_ms => {
                Recovery::Retry(FallbackStep::new(estimate.lane))
            }
            _ if self.config.late == LateAction::Reject => {
                Recovery::GiveUp(rejection(budget, fastest.map(Estimate::total_ms)))
            }
            _ => Recovery::Planned,
        })
    }
}

impl Deadline {
    /// Returns the time budget. The header takes precedence over the tenant, and the tenant over
    /// the model.
    fn budget(&self, call: &Call<'_>) -> Option<Budget> {
        let lookup = |budgets: &[(String, u32)], name: &str| {
            budgets.iter().find(|(known, _)| known == name).map(|(_, ms)| u64::from(*ms))
        };
        let from_header =
            call.request.header(&self.config.header).and_then(|text| text.trim().parse().ok());
        let total_ms: u64 = from_header
            .or_else(|| lookup(&self.config.tenants, &call.request.tenant()?))
            .or_else(|| lookup(&self.config.models, &call.request.model()))
            .or(self.config.default_ms.map(u64::from))?;
        Some(Budget { total_ms, left_ms: total_ms.saturating_sub(call.context.age_us / 1000) })
    }

    fn estimates(&self, call: &Call<'_>) -> Estimates {
        let candidates = call.fleet.candidates();
        let needed =
            u64::from(call.context.prompt_tokens) + u64::from(call.context.max_output_tokens);
        let fits = |lane: &LaneId| {
            let max = call.fleet.info(*lane).map_or(0, |info| info.max_context);
            max == 0 || needed <= u64::from(max)
        };
        let fallbacks = self.config.fallback.iter().filter_map(|name| call.fleet.find(name));
        let fallbacks =
            fallbacks.filter(|lane| !candidates.contains(lane) && fits(lane)).collect::<Vec<_>>();
        Estimates {
            candidates: self.estimate_lanes(call, &candidates),
            fallbacks: self.estimate_lanes(call, &fallbacks),
        }
    }

    fn estimate_lanes(&self, call: &Call<'_>, lanes: &[LaneId]) -> Vec<Estimate> {
        let estimate = |lane: &LaneId| {
            let stat = call.fleet.stat(*lane)?;
            let first_token_ms =
                if self.config.first_token { u64::from(stat.ttft_p50_ms) } else { 0 };
            Some(Estimate { lane: *lane, start_ms: stat.start_in_ms()?, first_token_ms })
        };
        let mut estimates: Vec<Estimate> = lanes.iter().filter_map(estimate).collect();
        estimates.sort_by_key(Estimate::total_ms);
        estimates
    }

    /// Returns advice if some candidates are timely.
    fn use_timely(
        &self,
        call: &Call<'_>,
        budget: Budget,
        estimates: &Estimates,
        timely: &[Estimate],
        timely_fallbacks: &[Estimate],
    ) -> Advice {
        let late = &estimates.candidates[timely.len()..];
        let advice = match late.first() {
            None => Advice::any()
                .with_reason(format!("all lanes meet the deadline ({} ms left)", budget.left_ms)),
            Some(late) => Advice::only(lanes(timely)).with_reason(format!(
                "{} meets the deadline ({} ms left); {} would take {} ms",
                name(call, timely[0].lane),
                budget.left_ms,
                name(call, late.lane),
                late.total_ms(),
            )),
        };
        let too_late = if self.config.late == LateAction::BestEffort { late } else { &[] };
        let steps = timely.iter().chain(timely_fallbacks).chain(too_late);
        advice
            .with_max_wait(max_wait_ms(budget, timely, timely_fallbacks), OnTimeout::FallBack)
            .with_fallback(fallback_lanes(steps))
    }

    /// Returns advice if no candidate is timely, but a fallback lane is. Only a fallback step may
    /// leave the candidates, so the request is given a maximum wait of 0: it uses a candidate that
    /// has a free slot, and falls back otherwise.
    fn use_fallback(
        &self,
        call: &Call<'_>,
        budget: Budget,
        estimates: &Estimates,
        timely_fallbacks: &[Estimate],
    ) -> Advice {
        let too_late =
            if self.config.late == LateAction::BestEffort { &*estimates.candidates } else { &[] };
        let reason = format!(
            "fallback to {}: no lane of the model meets the deadline ({} ms left)",
            name(call, timely_fallbacks[0].lane),
            budget.left_ms,
        );
        let advice = match estimates.candidates.first() {
            Some(earliest) => Advice::only([earliest.lane]).with_max_wait(0, OnTimeout::FallBack),
            None => Advice::any(),
        };
        advice
            .with_reason(reason)
            .with_fallback(fallback_lanes(timely_fallbacks.iter().chain(too_late)))
    }

    /// Returns advice if no lane is timely.
    fn use_late(&self, budget: Budget, estimates: &Estimates) -> Advice {
        let fastest =
            estimates.candidates.iter().chain(&estimates.fallbacks).map(Estimate::total_ms).min();
        let Some(fastest_ms) = fastest else {
            return Advice::any().with_reason("no lane is available");
        };
        if self.config.late == LateAction::Reject {
            return Advice { reject: Some(rejection(budget, fastest)), ..Advice::any() };
        }
        let reason = format!(
            "no lane meets the deadline ({} ms left); the fastest would take {fastest_ms} ms",
            budget.left_ms
        );
        Advice::ordered(lanes(&estimates.candidates))
            .with_reason(reason)
            .with_fallback(fallback_lanes(estimates.candidates.iter().chain(&estimates.fallbacks)))
    }
}

/// Returns the estimates within the remaining budget, in the given order (earliest first).
fn in_time(estimates: &[Estimate], budget: Budget) -> Vec<Estimate> {
    estimates.iter().take_while(|estimate| estimate.total_ms() <= budget.left_ms).copied().collect()
}

/// Returns the maximum wait before the request falls back: as long as the next best lane could
/// still meet the deadline, but at least until the estimated start of every timely candidate, and
/// never so long that no time is left for the first token.
fn max_wait_ms(budget: Budget, timely: &[Estimate], timely_fallbacks: &[Estimate]) -> u32 {
    let mut totals: Vec<u64> =
        timely.iter().chain(timely_fallbacks).map(Estimate::total_ms).collect();
    totals.sort_unstable();
    let first_token_ms = timely.iter().map(|estimate| estimate.first_token_ms).min().unwrap_or(0);
    let limit = budget.left_ms.saturating_sub(first_token_ms);
    let wait = match totals.get(1) {
        Some(next_ms) => {
            let slowest_ms = timely.iter().map(|estimate| estimate.start_ms).max().unwrap_or(0);
            (budget.left_ms - next_ms).max(slowest_ms).min(limit)
        }
        None => limit,
    };
    u32::try_from(wait).unwrap_or(u32::MAX)
}

fn rejection(budget: Budget, fastest_ms: Option<u64>) -> Rejection {
    let Budget { total_ms, left_ms } = budget;
    let fastest = match fastest_ms {
        Some(ms) => format!("the fastest lane would take {ms} ms"),
        None => "no lane is available".to_owned(),
    };
    let excess_ms = fastest_ms.unwrap_or(u64::MAX).saturating_sub(total_ms);
    Rejection {
        status: 503,
        code: "deadline_unreachable".to_owned(),
        message: format!(
            "no lane can meet the deadline of {total_ms} ms ({left_ms} ms left): {fastest}"
        ),
        retry_after_s: u32::try_from(excess_ms.div_ceil(1000).clamp(1, MAX_RETRY_AFTER_S)).ok(),
    }
}

fn lanes(estimates: &[Estimate]) -> Vec<LaneId> {
    estimates.iter().map(|estimate| estimate.lane).collect()
}

fn fallback_lanes<'a>(
    estimates: impl Iterator<Item = &'a Estimate>,
) -> impl Iterator<Item = LaneId> {
    estimates.take(MAX_STEPS).map(|estimate| estimate.lane)
}

fn name(call: &Call<'_>, lane: LaneId) -> String {
    call.fleet.info(lane).map_or_else(|| format!("lane {lane}"), |info| info.name)
}
