//! Prefers, loads and releases lanes by the time of day.
//!
//! A schedule has hours on some days of the week. During these hours
//!
//!  * requests prefer its lanes, best first, or use no others;
//!  * at every tick, lane hints ask the host to load and keep some lanes, to keep others if they
//!    are loaded, and to release some. Loading can start ahead of the hours, so that the lane is
//!    ready for the first request.
//!
//! If several schedules apply, the first takes precedence: for a request, the first one with
//! preferred lanes; for lane hints, the first one per lane.

mod config;
mod schedule;
#[cfg(test)]
mod tests;

use pointsman_sdk::{
    Advice, Background, Call, LaneId, LaneStat, LaneWish, Level, Permille, Policy, PolicyError,
    Tick, TopologyCache, Wish,
};

use self::config::{Config, Schedule};
use self::schedule::LocalTime;

/// The configured policy.
#[derive(Debug)]
pub struct Hours {
    config: Config,
    /// Ids of the preferred lanes of each schedule.
    preferred: TopologyCache<Vec<Vec<LaneId>>>,
}

pointsman_sdk::export_policy!(Hours, on_tick);

const MINUTE_MS: u64 = 60_000;

impl Policy for Hours {
    const NAME: &'static str = "hours";
    const VERSION: &'static str = "0.1.0";

    fn configure(config: &str) -> Result<Self, PolicyError> {
        Ok(Self { config: Config::parse(config)?, preferred: TopologyCache::default() })
    }

    fn advise(&self, call: &Call<'_>) -> Result<Advice, PolicyError> {
        let now = self.local_time(call.context.now_ms);
        let applies = |schedule: &Schedule| {
            !schedule.prefer.is_empty() && schedule.hours.minutes_left(now).is_some()
        };
        let mut schedules = self.config.schedules.iter().enumerate();
        let Some((index, schedule)) = schedules.find(|(_, schedule)| applies(schedule)) else {
            return Ok(Advice::any());
        };
        let preferred = self.preferred.get_or_insert_with(call.context.topology, || {
            let find = |schedule: &Schedule| {
                schedule.prefer.iter().filter_map(|name| call.fleet.find(name)).collect()
            };
            self.config.schedules.iter().map(find).collect()
        });
        let candidates = call.fleet.candidates();
        let is_available =
            |lane: &LaneId| call.fleet.stat(*lane).is_some_and(|stat| stat.is_available());
        let lanes: Vec<LaneId> = preferred[index]
            .iter()
            .filter(|lane| candidates.contains(lane) && is_available(lane))
            .copied()
            .collect();
        let name = &schedule.name;
        if lanes.is_empty() {
            // Serving the request on another lane is better than rejecting it.
            let reason = format!("{name}: no preferred lane is available for this model");
            return Ok(Advice::any().with_reason(reason));
        }
        let advice = match schedule.only {
            true => Advice::ordered(lanes).with_reason(format!("{name}: only preferred lanes")),
            false => {
                Advice::scores(descending(&lanes)).with_reason(format!("{name}: preferred lanes"))
            }
        };
        Ok(advice)
    }
}

impl Tick for Hours {
    fn tick(&self, background: &Background<'_>, _seed: u64) -> Vec<LaneWish> {
        let mut hints: Vec<LaneWish> = Vec::new();
        let mut add_hint = |name: &String, wish: Wish, for_ms: u32| {
            let Some(lane) = background.fleet.find(name) else {
                background
                    .log
                    .write_with(Level::Warn, || format!("schedule names unknown lane \"{name}\""));
                return;
            };
            // Earlier schedules take precedence.
            if hints.iter().all(|hint| hint.lane != lane) {
                let wish = keep_if_loaded(background, lane, wish);
                hints.push(LaneWish { lane, wish, for_ms });
            }
        };
        let now = self.local_time(background.now_ms);
        for schedule in &self.config.schedules {
            let left = schedule.hours.minutes_left(now);
            let ahead =
                self.local_time(background.now_ms + u64::from(schedule.preload_min) * MINUTE_MS);
            // Before the hours start, their end does not limit the hint.
            let loading = left
                .map(|minutes| self.hint_duration_ms(minutes))
                .or_else(|| schedule.hours.minutes_left(ahead).map(|_| self.config.hint_ttl_ms));
            if let Some(for_ms) = loading {
                schedule.load.iter().for_each(|lane| add_hint(lane, Wish::Load, for_ms));
            }
            if let Some(minutes) = left {
                schedule
                    .keep
                    .iter()
                    .for_each(|lane| add_hint(lane, Wish::Keep, self.hint_duration_ms(minutes)));
                schedule
                    .release
                    .iter()
                    .for_each(|lane| add_hint(lane, Wish::Release, self.hint_duration_ms(minutes)));
            }
        }
        hints
    }
}

impl Hours {
    fn local_time(&self, now_ms: u64) -> LocalTime {
        LocalTime::from_unix_ms(now_ms, self.config.utc_offset_min)
    }

    /// Returns the duration of a lane hint, which ends with the hours of its schedule at the
    /// latest.
    fn hint_duration_ms(&self, minutes: u16) -> u32 {
        self.config.hint_ttl_ms.min(u32::from(minutes) * 60_000)
    }
}

/// Replaces a hint to load a lane that is loaded already by a hint to keep the lane.
fn keep_if_loaded(background: &Background<'_>, lane: LaneId, wish: Wish) -> Wish {
    let loaded = background.fleet.stat(lane).is_some_and(|stat: LaneStat| stat.is_serving());
    if wish == Wish::Load && loaded { Wish::Keep } else { wish }
}

/// Returns scores that fall from 1000 in equal steps.
fn descending(lanes: &[LaneId]) -> impl Iterator<Item = (LaneId, Permille)> {
    let count = lanes.len();
    let score = move |rank: usize| Permille::try_from(1000 * (count - rank) / count).unwrap_or(0);
    lanes.iter().enumerate().map(move |(rank, lane)| (*lane, score(rank)))
}
