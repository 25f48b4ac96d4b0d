//! Lanes by the time of day.
//!
//! A schedule has hours, on some days of the week. During them
//!
//!  * requests prefer its lanes, best first, or take no others;
//!  * at every tick the host is asked to load and keep some lanes, to keep others if they are loaded, and to let go of some.
//!    Loading can begin ahead of the hours, so that the first request finds its lane warm.
//!
//! Of several schedules that apply, the first counts: for a request the first that prefers lanes, for wishes lane by lane.

mod config;
mod schedule;
#[cfg(test)]
mod tests;

use pointsman_sdk::{
    Advice, Background, Call, LaneId, LaneStat, LaneWish, Level, PerTopology, Permille, Policy,
    PolicyError, Tick, Wish,
};

use self::config::{Config, Schedule};
use self::schedule::LocalTime;

/// The configured policy.
#[derive(Debug)]
pub struct Hours {
    config: Config,
    /// The lanes that each schedule prefers.
    preferred: PerTopology<Vec<Vec<LaneId>>>,
}

pointsman_sdk::export_policy!(Hours, on_tick);

const MINUTE_MS: u64 = 60_000;

impl Policy for Hours {
    const NAME: &'static str = "hours";
    const VERSION: &'static str = "0.1.0";

    fn configure(config: &str) -> Result<Self, PolicyError> {
        Ok(Self { config: Config::parse(config)?, preferred: PerTopology::default() })
    }

    fn advise(&self, call: &Call<'_>) -> Result<Advice, PolicyError> {
        let now = self.local(call.context.now_ms);
        let counts =
            |schedule: &Schedule| !schedule.prefer.is_empty() && schedule.hours.left(now).is_some();
        let mut schedules = self.config.schedules.iter().enumerate();
        let Some((index, schedule)) = schedules.find(|(_, schedule)| counts(schedule)) else {
            return Ok(Advice::any());
        };
        let preferred = self.preferred.get(call.context.topology, || {
            let find = |schedule: &Schedule| {
                schedule.prefer.iter().filter_map(|name| call.fleet.find(name)).collect()
            };
            self.config.schedules.iter().map(find).collect()
        });
        let candidates = call.fleet.candidates();
        let able = |lane: &LaneId| call.fleet.stat(*lane).is_some_and(|stat| stat.able());
        let lanes: Vec<LaneId> = preferred[index]
            .iter()
            .filter(|lane| candidates.contains(lane) && able(lane))
            .copied()
            .collect();
        let name = &schedule.name;
        if lanes.is_empty() {
            // Whatever the hour, a request is better served by another lane than not at all.
            let why = format!("{name}: none of its lanes is able to serve this model");
            return Ok(Advice::any().because(why));
        }
        let advice = match schedule.only {
            true => Advice::ordered(lanes).because(format!("{name}: only its lanes")),
            false => {
                Advice::scores(falling(&lanes)).because(format!("{name}: its lanes are preferred"))
            }
        };
        Ok(advice)
    }
}

impl Tick for Hours {
    fn tick(&self, background: &Background<'_>, _seed: u64) -> Vec<LaneWish> {
        let mut wishes: Vec<LaneWish> = Vec::new();
        let mut wish = |name: &String, wish: Wish, for_ms: u32| {
            let Some(lane) = background.fleet.find(name) else {
                background
                    .log
                    .write_with(Level::Warn, || format!("there is no lane `{name}` to wish for"));
                return;
            };
            if wishes.iter().all(|known| known.lane != lane) {
                wishes.push(LaneWish { lane, wish: settled(background, lane, wish), for_ms });
            }
        };
        let now = self.local(background.now_ms);
        for schedule in &self.config.schedules {
            let left = schedule.hours.left(now);
            let soon = self.local(background.now_ms + u64::from(schedule.ahead_min) * MINUTE_MS);
            // Ahead of the hours there is no end yet that the wish could last to.
            let loading = left
                .map(|minutes| self.lasting(minutes))
                .or_else(|| schedule.hours.left(soon).map(|_| self.config.wish_ms));
            if let Some(for_ms) = loading {
                schedule.load.iter().for_each(|lane| wish(lane, Wish::Load, for_ms));
            }
            if let Some(minutes) = left {
                schedule.keep.iter().for_each(|lane| wish(lane, Wish::Keep, self.lasting(minutes)));
                schedule
                    .release
                    .iter()
                    .for_each(|lane| wish(lane, Wish::Release, self.lasting(minutes)));
            }
        }
        wishes
    }
}

impl Hours {
    fn local(&self, now_ms: u64) -> LocalTime {
        LocalTime::of(now_ms, self.config.utc_offset_min)
    }

    /// How long a wish stands: not longer than the hours that it is made for.
    fn lasting(&self, minutes: u16) -> u32 {
        self.config.wish_ms.min(u32::from(minutes) * 60_000)
    }
}

/// A lane that is loaded already only needs to be kept.
fn settled(background: &Background<'_>, lane: LaneId, wish: Wish) -> Wish {
    let loaded = background.fleet.stat(lane).is_some_and(|stat: LaneStat| stat.serving());
    if wish == Wish::Load && loaded { Wish::Keep } else { wish }
}

/// Scores from 1000 down in equal steps.
fn falling(lanes: &[LaneId]) -> impl Iterator<Item = (LaneId, Permille)> {
    let count = lanes.len();
    let score = move |place: usize| Permille::try_from(1000 * (count - place) / count).unwrap_or(0);
    lanes.iter().enumerate().map(move |(place, lane)| (*lane, score(place)))
}
