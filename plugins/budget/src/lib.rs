//! Restricts tenants to cheaper lanes as they use up their budget.
//!
//! Lanes have a label `tier` and a price (`cost-milli`, thousandths of a unit per thousand tokens).
//! The cost of a tenant's finished requests is summed in the host's `state`, per period. Below the
//! first threshold every tier is open; at each threshold the most expensive open tier closes. The
//! cheapest tier never closes, unless `hard-stop` is set and the limit is reached: then requests
//! are rejected until the next period.
//!
//! Without configuration the policy gives no advice.

mod config;
#[cfg(test)]
mod tests;

use pointsman_sdk::{
    Advice, Background, Call, FleetView, LaneId, Level, Observe, Outcome, Policy, PolicyError,
    State, StateError, TopologyCache, stable_hash,
};

use self::config::Config;

/// The configured policy.
#[derive(Debug)]
pub struct Budget {
    config: Config,
    tiers: TopologyCache<Vec<Option<usize>>>,
}

pointsman_sdk::export_policy!(Budget, on_complete);

/// Spending is summed in millionths: prices are thousandths per thousand tokens, so the price of
/// one token is a number of millionths.
const MICROS_PER_MILLI: i64 = 1000;

impl Policy for Budget {
    const NAME: &'static str = "budget";
    const VERSION: &'static str = "0.1.0";

    fn configure(config: &str) -> Result<Self, PolicyError> {
        Ok(Self { config: Config::parse(config)?, tiers: TopologyCache::default() })
    }

    fn advise(&self, call: &Call<'_>) -> Result<Advice, PolicyError> {
        let tenant = call.request.tenant();
        let Some(limit_milli) = self.limit_milli(tenant.as_deref()) else {
            return Ok(Advice::any());
        };
        let period = Period::at(call.context.now_ms, self.config.period_ms);
        // If the state is full, assume that nothing was spent: serving matters more than metering.
        let spent = add(call.state, tenant.as_deref(), period, 0).unwrap_or(0);
        let spent_milli = u64::try_from(spent / MICROS_PER_MILLI).unwrap_or(0);
        let used = match limit_milli {
            0 => 1000,
            limit => (spent_milli.saturating_mul(1000) / u64::from(limit)).min(1000),
        };
        if self.config.hard_stop && used == 1000 {
            call.metrics.add("rejected", 1);
            let hours = self.config.period_ms / (60 * 60 * 1000);
            let message = format!("budget exceeded: {limit_milli} milli-units per {hours} h");
            return Ok(
                Advice::reject(429, "budget_spent", message).with_retry_after_s(period.left_s)
            );
        }
        let closed = self
            .config
            .thresholds
            .iter()
            .filter(|threshold| used >= u64::from(**threshold))
            .count();
        let advice = match closed {
            0 => Advice::any().with_reason(format!("{} % of the budget used", used / 10)),
            closed => self.avoid_closed_tiers(call, closed, used),
        };
        let spent = i64::try_from(spent_milli).unwrap_or(i64::MAX);
        Ok(advice.with_note("spent-milli", spent))
    }
}

impl Observe for Budget {
    fn observe(&self, background: &Background<'_>, done: &[Outcome]) {
        let period = Period::at(background.now_ms, self.config.period_ms);
        for outcome in done {
            let tokens = i64::from(outcome.prompt_tokens) + i64::from(outcome.output_tokens);
            let cost =
                background.fleet.info(outcome.lane).map_or(0, |info| i64::from(info.cost_milli));
            let micros = tokens.saturating_mul(cost);
            if micros == 0 || self.limit_milli(outcome.tenant.as_deref()).is_none() {
                continue;
            }
            if let Err(error) = add(background.state, outcome.tenant.as_deref(), period, micros) {
                background.log.write_with(Level::Warn, || {
                    let tenant = outcome.tenant.as_deref().unwrap_or("(none)");
                    format!("failed to record spending: tenant={tenant} micros={micros}: {error}")
                });
                continue;
            }
            background
                .metrics
                .record("spent-milli", u64::try_from(micros / MICROS_PER_MILLI).unwrap_or(0));
        }
    }
}

impl Budget {
    /// Returns the limit of a tenant in thousandths of the price unit.
    fn limit_milli(&self, tenant: Option<&str>) -> Option<u32> {
        let own =
            tenant.and_then(|tenant| self.config.tenants.iter().find(|(known, _)| known == tenant));
        own.map(|(_, limit)| *limit).or(self.config.default_milli)
    }

    /// Returns advice that avoids the first `closed` tiers, as far as other lanes are available.
    fn avoid_closed_tiers(&self, call: &Call<'_>, closed: usize, used: u64) -> Advice {
        let candidates = call.fleet.candidates();
        let tiers =
            self.tiers.get_or_insert_with(call.context.topology, || self.tier_indices(call.fleet));
        let tier = |lane: &LaneId| tiers.get(*lane as usize).copied().flatten();
        let is_available =
            |lane: &LaneId| call.fleet.stat(*lane).is_some_and(|stat| stat.is_available());
        // Lanes without a tier are never excluded.
        let open = |first: usize| move |lane: &LaneId| tier(lane).is_none_or(|tier| tier >= first);
        // If no lane of the open tiers is available for this model, reopen the next more expensive
        // tier.
        let first = (0..=closed)
            .rev()
            .find(|first| candidates.iter().any(|lane| open(*first)(lane) && is_available(lane)));
        let first = first.unwrap_or(0);
        let keep = open(first);
        let avoided: Vec<LaneId> = candidates.iter().filter(|lane| !keep(lane)).copied().collect();
        let used = format!("{} % of the budget used", used / 10);
        let reason = match (avoided.is_empty(), first < closed) {
            (true, true) => format!("{used}; no cheaper lane is available"),
            (true, false) => format!("{used}; no expensive lane to avoid"),
            (false, _) => {
                format!("{used}; limited to tier `{}` and cheaper", self.config.tiers[first])
            }
        };
        Advice::avoid(avoided).with_reason(reason)
    }

    /// Returns the index of each lane's tier in the configuration, by lane id.
    fn tier_indices(&self, fleet: &dyn FleetView) -> Vec<Option<usize>> {
        let tier = |lane: LaneId| {
            let info = fleet.info(lane)?;
            self.config.tiers.iter().position(|tier| info.label("tier") == Some(tier))
        };
        fleet.stats().iter().map(|stat| tier(stat.id)).collect()
    }
}

/// A budget period.
#[derive(Clone, Copy)]
struct Period {
    number: u64,
    length_ms: u32,
    /// Seconds until the next period.
    left_s: u32,
}

impl Period {
    fn at(now_ms: u64, length_ms: u32) -> Self {
        let length = u64::from(length_ms.max(1));
        let left_s = (length - now_ms % length).div_ceil(1000);
        Self {
            number: now_ms / length,
            length_ms,
            left_s: u32::try_from(left_s).unwrap_or(u32::MAX),
        }
    }
}

/// Adds to the spending of a tenant and returns the new total, in millionths.
fn add(
    state: State<'_>,
    tenant: Option<&str>,
    period: Period,
    micros: i64,
) -> Result<i64, StateError> {
    let account = tenant.map_or(0, |tenant| stable_hash(&[tenant.as_bytes()]));
    let key = format!("spent/{}/{account:016x}", period.number);
    state.increment(&key, micros, period.length_ms)
}
