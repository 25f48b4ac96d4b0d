//! A new model on trial: a share of the traffic goes to its lane, as long as it does well there.
//!
//! The draw is a hash of the tenant (so that nobody's answers change from one request to the next), of the request's id, or
//! of the seed. A larger share only ever adds tenants. Requests that are drawn go to the canary and fall back to the other
//! lanes of the model; all others avoid the canary.
//!
//! If too many of the canary's requests fail, or it is too slow, it *trips*: for a while it gets no traffic. That is kept
//! in the host's `state`, because without traffic the lane's figures look well again soon.
//!
//! Without a configuration it has no opinion.

mod config;
#[cfg(test)]
mod tests;

use pointsman_sdk::{
    Advice, Call, LaneId, LaneStat, Level, PerTopology, Policy, PolicyError, Scalar, mixed,
    stable_hash,
};

use self::config::{By, Config};

/// The configured policy.
#[derive(Debug)]
pub struct Canary {
    config: Config,
    lane: PerTopology<Option<LaneId>>,
}

pointsman_sdk::export_policy!(Canary);

/// Key of the entry that stands while the canary is held back.
const TRIPPED: &str = "tripped";

impl Policy for Canary {
    const NAME: &'static str = "canary";
    const VERSION: &'static str = "0.1.0";

    fn configure(config: &str) -> Result<Self, PolicyError> {
        Ok(Self { config: Config::parse(config)?, lane: PerTopology::default() })
    }

    fn advise(&self, call: &Call<'_>) -> Result<Advice, PolicyError> {
        let lane = *self.lane.get(call.context.topology, || call.fleet.find(&self.config.canary));
        let candidates = call.fleet.candidates();
        let Some(canary) = lane.filter(|lane| candidates.contains(lane)) else {
            return Ok(Advice::any());
        };
        let stable = soonest_first(call, candidates.into_iter().filter(|lane| *lane != canary));
        let name = &self.config.canary;
        let not_drawn = |why: String| match stable.is_empty() {
            false => Advice::avoiding([canary]).because(why),
            true => Advice::any().because(format!("no other lane than {name} is able to serve")),
        };
        if !self.drawn(call) {
            return Ok(not_drawn(format!("not drawn for {name}")));
        }
        let advice = match self.unfit(call, canary) {
            Some(why) => not_drawn(format!("drawn for {name}, but {why}")),
            None => {
                call.metrics.add("canary", 1);
                Advice::only([canary]).because(format!("drawn for {name}")).falling_back_to(stable)
            }
        };
        Ok(advice.note("drawn", Scalar::Flag(true)))
    }
}

impl Canary {
    fn drawn(&self, call: &Call<'_>) -> bool {
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
            (By::Tenant, Some(tenant)) => stable_hash(&[salt, b"tenant", tenant.as_bytes()]),
            (By::Tenant, None) | (By::Request, _) => {
                stable_hash(&[salt, b"request", call.request.id().as_bytes()])
            }
            (By::Seed, _) => mixed(call.context.seed ^ stable_hash(&[salt])),
        };
        hash % 1000 < u64::from(self.config.share)
    }

    /// Why the canary gets no traffic now.
    fn unfit(&self, call: &Call<'_>, canary: LaneId) -> Option<String> {
        let Some(stat) = call.fleet.stat(canary).filter(LaneStat::able) else {
            return Some("it is not able to serve".to_owned());
        };
        if !stat.serving() && !self.config.cold {
            return Some("it is not loaded".to_owned());
        }
        if call.state.get(TRIPPED).is_some() {
            return Some("it is held back for its faults".to_owned());
        }
        let slow = self.config.max_first_token_ms.is_some_and(|most| stat.ttft_p50_ms > most);
        let why = if stat.errors > self.config.max_errors {
            format!("{} of 1000 requests failed there", stat.errors)
        } else if slow {
            format!("its first token takes {} ms", stat.ttft_p50_ms)
        } else {
            return None;
        };
        call.metrics.add("tripped", 1);
        call.log.write(
            Level::Warn,
            &format!("{} gets no traffic for a while: {why}", self.config.canary),
        );
        // Without room the figures alone decide, request by request.
        let _no_room = call.state.put(TRIPPED, why.as_bytes(), self.config.hold_ms);
        Some(why)
    }
}

/// Those of the lanes that are able to serve.
fn soonest_first(call: &Call<'_>, lanes: impl Iterator<Item = LaneId>) -> Vec<LaneId> {
    let start = |lane: LaneId| {
        call.fleet.stat(lane).and_then(|stat| stat.start_in_ms()).map(|start| (start, lane))
    };
    let mut able: Vec<(u64, LaneId)> = lanes.filter_map(start).collect();
    able.sort_unstable();
    able.into_iter().map(|(_, lane)| lane).collect()
}
