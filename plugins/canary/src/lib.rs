//! Sends a share of the traffic to a canary lane while that lane is healthy.
//!
//! Requests are selected by a hash of the tenant (so that a tenant's requests go the same way), of
//! the request id, or of the seed. A larger share only adds tenants. Selected requests go to the
//! canary and fall back to the other lanes of the model; all others avoid the canary.
//!
//! If too many of the canary's requests fail, or the canary is too slow, it *trips*: it gets no
//! traffic for a while. The host's `state` remembers that, because without traffic the metrics of
//! the lane soon look healthy again.
//!
//! Without configuration the policy gives no advice.

mod config;
#[cfg(test)]
mod tests;

use pointsman_sdk::{
    Advice, Call, LaneId, LaneStat, Level, Policy, PolicyError, TopologyCache, mix64, stable_hash,
};

use self::config::{Config, SelectBy};

/// The configured policy.
#[derive(Debug)]
pub struct Canary {
    config: Config,
    lane: TopologyCache<Option<LaneId>>,
}

pointsman_sdk::export_policy!(Canary);

/// Key of the state entry that exists while the canary is paused.
const TRIPPED: &str = "tripped";

impl Policy for Canary {
    const NAME: &'static str = "canary";
    const VERSION: &'static str = "0.1.0";

    fn configure(config: &str) -> Result<Self, PolicyError> {
        Ok(Self { config: Config::parse(config)?, lane: TopologyCache::default() })
    }

    fn advise(&self, call: &Call<'_>) -> Result<Advice, PolicyError> {
        let lane = *self
            .lane
            .get_or_insert_with(call.context.topology, || call.fleet.find(&self.config.canary));
        let candidates = call.fleet.candidates();
        let Some(canary) = lane.filter(|lane| candidates.contains(lane)) else {
            return Ok(Advice::any());
        };
        let stable = by_start_time(call, candidates.into_iter().filter(|lane| *lane != canary));
        let name = &self.config.canary;
        let not_selected = |reason: String| match stable.is_empty() {
            false => Advice::avoid([canary]).with_reason(reason),
            // Rejecting the request would be worse than an unplanned canary request.
            true => Advice::any().with_reason(format!("only {name} is available")),
        };
        if !self.is_selected(call) {
            return Ok(not_selected(format!("not selected for canary {name}")));
        }
        let advice = match self.unhealthy_reason(call, canary) {
            Some(reason) => not_selected(format!("selected for canary {name}, but {reason}")),
            None => {
                call.metrics.add("canary", 1);
                Advice::only([canary])
                    .with_reason(format!("selected for canary {name}"))
                    .with_fallback(stable)
            }
        };
        Ok(advice.with_note("selected", true))
    }
}

impl Canary {
    /// Returns true if the request is in the canary's share.
    fn is_selected(&self, call: &Call<'_>) -> bool {
        let tenant = call.request.tenant();
        let named =
            |tenants: &[String]| tenant.as_ref().is_some_and(|tenant| tenants.contains(tenant));
        if named(&self.config.never) {
            return false;
        }
        if named(&self.config.always) {
            return true;
        }
        let salt = self.config.salt.as_bytes();
        let hash = match (self.config.by, &tenant) {
            (SelectBy::Tenant, Some(tenant)) => stable_hash(&[salt, b"tenant", tenant.as_bytes()]),
            (SelectBy::Tenant, None) | (SelectBy::Request, _) => {
                stable_hash(&[salt, b"request", call.request.id().as_bytes()])
            }
            (SelectBy::Seed, _) => mix64(call.context.seed ^ stable_hash(&[salt])),
        };
        hash % 1000 < u64::from(self.config.share)
    }

    /// Returns why the canary cannot get traffic now, or `None` if it can. Trips the canary if its
    /// metrics exceed a limit.
    fn unhealthy_reason(&self, call: &Call<'_>, canary: LaneId) -> Option<String> {
        let Some(stat) = call.fleet.stat(canary).filter(LaneStat::is_available) else {
            return Some("it is unavailable".to_owned());
        };
        if !stat.is_serving() && !self.config.allow_cold_start {
            return Some("it is not loaded".to_owned());
        }
        if call.state.get(TRIPPED).is_some() {
            return Some("it is paused".to_owned());
        }
        let is_slow = self.config.max_first_token_ms.is_some_and(|max| stat.ttft_p50_ms > max);
        let reason = if stat.errors > self.config.max_errors {
            format!("{} of 1000 requests failed", stat.errors)
        } else if is_slow {
            format!("its median time to first token is {} ms", stat.ttft_p50_ms)
        } else {
            return None;
        };
        call.metrics.add("tripped", 1);
        let pause_s = self.config.pause_ms / 1000;
        call.log.write(
            Level::Warn,
            &format!("canary {} paused for {pause_s} s: {reason}", self.config.canary),
        );
        // If the state is full, the pause is not remembered and each request is decided by the
        // current metrics alone.
        call.state.put(TRIPPED, reason.as_bytes(), self.config.pause_ms).ok();
        Some(reason)
    }
}

/// Returns the available lanes, the one with the earliest estimated start first.
fn by_start_time(call: &Call<'_>, lanes: impl Iterator<Item = LaneId>) -> Vec<LaneId> {
    let start = |lane: LaneId| {
        call.fleet.stat(lane).and_then(|stat| stat.start_in_ms()).map(|start| (start, lane))
    };
    let mut available: Vec<(u64, LaneId)> = lanes.filter_map(start).collect();
    available.sort_unstable();
    available.into_iter().map(|(_, lane)| lane).collect()
}
