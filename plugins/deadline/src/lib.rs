//! Wait, or fall back, by how much time a request has.
//!
//! A request has a budget until its first token: what its header says, else its tenant's, its model's, or the default. A
//! lane is *timely* if its estimated wait, its loading and its usual time to the first token fit into what is left.
//!
//! 1. If candidates are timely, only they will do, and the request waits for one only as long as another still could help.
//! 2. If none is, but a configured fallback lane is, the request goes there unless a candidate is free at once.
//! 3. If nothing is, it is refused with a hint when to come again, or goes where it starts soonest.
//!
//! After a failed try the same is asked again with fresh figures, because the time that is left has become shorter.

mod config;
#[cfg(test)]
mod tests;

use pointsman_sdk::{
    Advice, Call, Failure, FallbackStep, LaneId, Policy, PolicyError, Recover, Recovery, Rejection,
};

use self::config::{Config, Late};

/// The configured policy.
#[derive(Debug)]
pub struct Deadline {
    config: Config,
}

pointsman_sdk::export_policy!(Deadline, on_failure);

/// Fallback steps that a host takes.
const MOST_STEPS: usize = 8;
/// Longest hint when to come again, in seconds.
const LONGEST_RETRY_S: u64 = 60;

/// A lane that could serve the request, and when.
#[derive(Debug, Clone, Copy)]
struct Offer {
    lane: LaneId,
    start_ms: u64,
    first_token_ms: u64,
}

impl Offer {
    fn total_ms(&self) -> u64 {
        self.start_ms + self.first_token_ms
    }
}

/// What a request has.
#[derive(Debug, Clone, Copy)]
struct Budget {
    whole_ms: u64,
    left_ms: u64,
}

/// What there is for a request, soonest first.
struct Offers {
    /// Of lanes that answer to its model name.
    candidates: Vec<Offer>,
    /// Of lanes that may help out.
    helpers: Vec<Offer>,
}

impl Policy for Deadline {
    const NAME: &'static str = "deadline";
    const VERSION: &'static str = "0.1.0";

    fn configure(config: &str) -> Result<Self, PolicyError> {
        Ok(Self { config: Config::parse(config)? })
    }

    fn advise(&self, call: &Call<'_>) -> Result<Advice, PolicyError> {
        let Some(budget) = self.budget(call) else { return Ok(Advice::any()) };
        let offers = self.offers(call);
        let timely = in_time(&offers.candidates, budget);
        let helping = in_time(&offers.helpers, budget);
        Ok(if !timely.is_empty() {
            self.in_time(call, budget, &offers, &timely, &helping)
        } else if !helping.is_empty() {
            self.helped(call, budget, &offers, &helping)
        } else {
            self.late(budget, &offers)
        })
    }
}

impl Recover for Deadline {
    fn recover(&self, call: &Call<'_>, failed: &Failure) -> Result<Recovery, PolicyError> {
        let Some(budget) = self.budget(call) else { return Ok(Recovery::Planned) };
        if failed.sent_bytes > 0 || failed.tries_left == 0 {
            return Ok(Recovery::Planned);
        }
        let offers = self.offers(call);
        let others = offers
            .candidates
            .iter()
            .chain(&offers.helpers)
            .filter(|offer| offer.lane != failed.lane);
        let soonest = others.min_by_key(|offer| offer.total_ms());
        Ok(match soonest {
            Some(offer) if offer.total_ms() <= budget.left_ms => {
                Recovery::Retry(FallbackStep::plain(offer.lane))
            }
            _ if self.config.late == Late::Reject => {
                Recovery::GiveUp(refusal(budget, soonest.map(Offer::total_ms)))
            }
            _ => Recovery::Planned,
        })
    }
}

impl Deadline {
    /// What the request has: what it says itself counts more than its tenant's, and that more than its model's.
    fn budget(&self, call: &Call<'_>) -> Option<Budget> {
        let of = |budgets: &[(String, u32)], name: &str| {
            budgets.iter().find(|(known, _)| known == name).map(|(_, ms)| u64::from(*ms))
        };
        let said =
            call.request.header(&self.config.header).and_then(|text| text.trim().parse().ok());
        let whole_ms: u64 = said
            .or_else(|| of(&self.config.tenants, &call.request.tenant()?))
            .or_else(|| of(&self.config.models, &call.request.model()))
            .or(self.config.default_ms.map(u64::from))?;
        Some(Budget { whole_ms, left_ms: whole_ms.saturating_sub(call.context.age_us / 1000) })
    }

    fn offers(&self, call: &Call<'_>) -> Offers {
        let candidates = call.fleet.candidates();
        let needed =
            u64::from(call.context.prompt_tokens) + u64::from(call.context.max_output_tokens);
        let fits = |lane: &LaneId| {
            let most = call.fleet.info(*lane).map_or(0, |info| info.max_context);
            most == 0 || needed <= u64::from(most)
        };
        let helpers = self.config.fallback.iter().filter_map(|name| call.fleet.find(name));
        let helpers =
            helpers.filter(|lane| !candidates.contains(lane) && fits(lane)).collect::<Vec<_>>();
        Offers {
            candidates: self.soonest_first(call, &candidates),
            helpers: self.soonest_first(call, &helpers),
        }
    }

    fn soonest_first(&self, call: &Call<'_>, lanes: &[LaneId]) -> Vec<Offer> {
        let offer = |lane: &LaneId| {
            let stat = call.fleet.stat(*lane)?;
            let first_token_ms =
                if self.config.first_token { u64::from(stat.ttft_p50_ms) } else { 0 };
            Some(Offer { lane: *lane, start_ms: stat.start_in_ms()?, first_token_ms })
        };
        let mut offers: Vec<Offer> = lanes.iter().filter_map(offer).collect();
        offers.sort_by_key(Offer::total_ms);
        offers
    }

    /// Some candidates are timely.
    fn in_time(
        &self,
        call: &Call<'_>,
        budget: Budget,
        offers: &Offers,
        timely: &[Offer],
        helping: &[Offer],
    ) -> Advice {
        let late = &offers.candidates[timely.len()..];
        let advice = match late.first() {
            None => Advice::any()
                .because(format!("every lane starts within the {} ms left", budget.left_ms)),
            Some(late) => Advice::only(lanes(timely)).because(format!(
                "{} starts within the {} ms left, {} would take {} ms",
                name(call, timely[0].lane),
                budget.left_ms,
                name(call, late.lane),
                late.total_ms(),
            )),
        };
        let too_late = if self.config.late == Late::BestEffort { late } else { &[] };
        let steps = timely.iter().chain(helping).chain(too_late);
        advice
            .waiting_at_most(longest_wait_ms(budget, timely, helping))
            .falling_back_to(steps_of(steps))
    }

    /// No candidate is timely, but a lane that may help out is: the request goes there unless a candidate has a free slot
    /// at this moment, because only a fallback may leave the candidates.
    fn helped(
        &self,
        call: &Call<'_>,
        budget: Budget,
        offers: &Offers,
        helping: &[Offer],
    ) -> Advice {
        let too_late = if self.config.late == Late::BestEffort { &*offers.candidates } else { &[] };
        let why = format!(
            "{} helps out: no lane of the model starts within the {} ms left",
            name(call, helping[0].lane),
            budget.left_ms,
        );
        let advice = match offers.candidates.first() {
            Some(soonest) => Advice::only([soonest.lane]).waiting_at_most(0),
            None => Advice::any(),
        };
        advice.because(why).falling_back_to(steps_of(helping.iter().chain(too_late)))
    }

    /// Nothing is timely.
    fn late(&self, budget: Budget, offers: &Offers) -> Advice {
        let soonest = offers.candidates.iter().chain(&offers.helpers).map(Offer::total_ms).min();
        let Some(soonest_ms) = soonest else {
            return Advice::any().because("no lane is able to serve");
        };
        if self.config.late == Late::Reject {
            return Advice { reject: Some(refusal(budget, soonest)), ..Advice::any() };
        }
        let why = format!(
            "nothing starts within the {} ms left; the soonest takes {soonest_ms} ms",
            budget.left_ms
        );
        Advice::ordered(lanes(&offers.candidates))
            .because(why)
            .falling_back_to(steps_of(offers.candidates.iter().chain(&offers.helpers)))
    }
}

/// The offers within what is left. They come soonest first, and so do these.
fn in_time(offers: &[Offer], budget: Budget) -> Vec<Offer> {
    offers.iter().take_while(|offer| offer.total_ms() <= budget.left_ms).copied().collect()
}

/// How long to wait before trying the next lane: as long as the next best could still make it, but not so short that a
/// timely lane is given up before its estimated start; and never so long that no time is left for the first token.
fn longest_wait_ms(budget: Budget, timely: &[Offer], helping: &[Offer]) -> u32 {
    let mut totals: Vec<u64> = timely.iter().chain(helping).map(Offer::total_ms).collect();
    totals.sort_unstable();
    let first_token_ms = timely.iter().map(|offer| offer.first_token_ms).min().unwrap_or(0);
    let most = budget.left_ms.saturating_sub(first_token_ms);
    let wait = match totals.get(1) {
        Some(next_ms) => {
            let slowest_ms = timely.iter().map(|offer| offer.start_ms).max().unwrap_or(0);
            (budget.left_ms - next_ms).max(slowest_ms).min(most)
        }
        None => most,
    };
    u32::try_from(wait).unwrap_or(u32::MAX)
}

fn refusal(budget: Budget, soonest_ms: Option<u64>) -> Rejection {
    let Budget { whole_ms, left_ms } = budget;
    let soonest = match soonest_ms {
        Some(ms) => format!("the soonest would take {ms} ms"),
        None => "none is able to serve".to_owned(),
    };
    let over_ms = soonest_ms.unwrap_or(u64::MAX).saturating_sub(whole_ms);
    Rejection {
        status: 503,
        code: "deadline_unreachable".to_owned(),
        message: format!(
            "No lane can answer within the {left_ms} ms left of {whole_ms} ms: {soonest}."
        ),
        retry_after_s: u32::try_from(over_ms.div_ceil(1000).clamp(1, LONGEST_RETRY_S)).ok(),
    }
}

fn lanes(offers: &[Offer]) -> Vec<LaneId> {
    offers.iter().map(|offer| offer.lane).collect()
}

fn steps_of<'a>(offers: impl Iterator<Item = &'a Offer>) -> impl Iterator<Item = LaneId> {
    offers.take(MOST_STEPS).map(|offer| offer.lane)
}

fn name(call: &Call<'_>, lane: LaneId) -> String {
    call.fleet.info(lane).map_or_else(|| format!("lane {lane}"), |info| info.name)
}
