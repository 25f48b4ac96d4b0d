//! Cheaper lanes as money runs out.
//!
//! Lanes have a label `tier` and a price (`cost-milli`, thousandths of a unit for a thousand tokens). What a tenant's
//! finished requests cost is added up in the host's `state`, by period. Below the first threshold every tier is open; at
//! each threshold the dearest that is left closes. The cheapest never closes, unless `hard-stop` is set and the limit is
//! reached: then requests are refused until the next period.
//!
//! Without a configuration it has no opinion.

mod config;
#[cfg(test)]
mod tests;

use pointsman_sdk::{
    Advice, Background, Call, FleetView, LaneId, Learn, Level, Outcome, PerTopology, Policy,
    PolicyError, Scalar, State, StateError, stable_hash,
};

use self::config::Config;

/// The configured policy.
#[derive(Debug)]
pub struct Budget {
    config: Config,
    tiers: PerTopology<Vec<Option<usize>>>,
}

pointsman_sdk::export_policy!(Budget, on_complete);

/// Prices are thousandths for a thousand tokens, so a token's is a millionth: spending is added up in those.
const MICROS_PER_MILLI: i64 = 1000;

impl Policy for Budget {
    const NAME: &'static str = "budget";
    const VERSION: &'static str = "0.1.0";

    fn configure(config: &str) -> Result<Self, PolicyError> {
        Ok(Self { config: Config::parse(config)?, tiers: PerTopology::default() })
    }

    fn advise(&self, call: &Call<'_>) -> Result<Advice, PolicyError> {
        let tenant = call.request.tenant();
        let Some(limit_milli) = self.limit_milli(tenant.as_deref()) else {
            return Ok(Advice::any());
        };
        let period = Period::of(call.context.now_ms, self.config.period_ms);
        // Without an answer from the state nothing is known to be spent: the service goes on.
        let spent = add(call.state, tenant.as_deref(), period, 0).unwrap_or(0);
        let spent_milli = u64::try_from(spent / MICROS_PER_MILLI).unwrap_or(0);
        let used = match limit_milli {
            0 => 1000,
            limit => (spent_milli.saturating_mul(1000) / u64::from(limit)).min(1000),
        };
        if self.config.hard_stop && used == 1000 {
            call.metrics.add("stopped", 1);
            let message =
                format!("The budget of {limit_milli} thousandths for this period is spent.");
            return Ok(Advice::refuse(429, "budget_spent", message).retry_after_s(period.left_s));
        }
        let closed = self
            .config
            .thresholds
            .iter()
            .filter(|threshold| used >= u64::from(**threshold))
            .count();
        let advice = match closed {
            0 => Advice::any().because(format!("{} % of the budget is spent", used / 10)),
            closed => self.without(call, closed, used),
        };
        let spent = i64::try_from(spent_milli).unwrap_or(i64::MAX);
        Ok(advice.note("spent-milli", Scalar::Int(spent)))
    }
}

impl Learn for Budget {
    fn learn(&self, background: &Background<'_>, done: &[Outcome]) {
        let period = Period::of(background.now_ms, self.config.period_ms);
        for outcome in done {
            let tokens = i64::from(outcome.prompt_tokens) + i64::from(outcome.output_tokens);
            let cost =
                background.fleet.info(outcome.lane).map_or(0, |info| i64::from(info.cost_milli));
            let micros = tokens.saturating_mul(cost);
            if micros == 0 || self.limit_milli(outcome.tenant.as_deref()).is_none() {
                continue;
            }
            if let Err(error) = add(background.state, outcome.tenant.as_deref(), period, micros) {
                let lost =
                    || format!("{micros} millionths of {:?} are lost: {error}", outcome.tenant);
                background.log.write_with(Level::Warn, lost);
                continue;
            }
            background
                .metrics
                .record("spent-milli", u64::try_from(micros / MICROS_PER_MILLI).unwrap_or(0));
        }
    }
}

impl Budget {
    fn limit_milli(&self, tenant: Option<&str>) -> Option<u32> {
        let own =
            tenant.and_then(|tenant| self.config.tenants.iter().find(|(known, _)| known == tenant));
        own.map(|(_, limit)| *limit).or(self.config.default_milli)
    }

    /// Advice that leaves out the first `closed` tiers, as far as there is something else.
    fn without(&self, call: &Call<'_>, closed: usize, used: u64) -> Advice {
        let candidates = call.fleet.candidates();
        let tiers = self.tiers.get(call.context.topology, || self.tiers_of_all(call.fleet));
        let tier = |lane: &LaneId| tiers.get(*lane as usize).copied().flatten();
        let able = |lane: &LaneId| call.fleet.stat(*lane).is_some_and(|stat| stat.able());
        // Lanes without a tier have nothing to do with all this: they stay.
        let open = |first: usize| move |lane: &LaneId| tier(lane).is_none_or(|tier| tier >= first);
        // Where the tiers that are left have no lane for this model that works, the next dearer one does it.
        let first = (0..=closed)
            .rev()
            .find(|first| candidates.iter().any(|lane| open(*first)(lane) && able(lane)));
        let first = first.unwrap_or(0);
        let keep = open(first);
        let avoided: Vec<LaneId> = candidates.iter().filter(|lane| !keep(lane)).copied().collect();
        let spent = format!("{} % of the budget is spent", used / 10);
        let why = match (avoided.is_empty(), first < closed) {
            (true, true) => format!("{spent}, and nothing cheaper is able to serve"),
            (true, false) => format!("{spent}; no dear lane is there to leave out"),
            (false, _) => format!("{spent}: `{}` and cheaper", self.config.tiers[first]),
        };
        Advice::avoiding(avoided).because(why)
    }

    /// The place of each lane's tier among the tiers.
    fn tiers_of_all(&self, fleet: &dyn FleetView) -> Vec<Option<usize>> {
        let tier = |lane: LaneId| {
            let info = fleet.info(lane)?;
            self.config.tiers.iter().position(|tier| info.label("tier") == Some(tier))
        };
        fleet.stats().iter().map(|stat| tier(stat.id)).collect()
    }
}

/// The period of now.
#[derive(Clone, Copy)]
struct Period {
    number: u64,
    length_ms: u32,
    /// Seconds until the next.
    left_s: u32,
}

impl Period {
    fn of(now_ms: u64, length_ms: u32) -> Self {
        let length = u64::from(length_ms.max(1));
        let left_s = (length - now_ms % length).div_ceil(1000);
        Self {
            number: now_ms / length,
            length_ms,
            left_s: u32::try_from(left_s).unwrap_or(u32::MAX),
        }
    }
}

/// Add to what a tenant has spent, in millionths, and say how much that is now.
fn add(
    state: State<'_>,
    tenant: Option<&str>,
    period: Period,
    micros: i64,
) -> Result<i64, StateError> {
    let who = tenant.map_or(0, |tenant| stable_hash(&[tenant.as_bytes()]));
    let key = format!("spent/{}/{who:016x}", period.number);
    state.increment(&key, micros, period.length_ms)
}
