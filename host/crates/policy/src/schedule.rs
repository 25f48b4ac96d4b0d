//! When versions are asked for wishes about lanes, and which wishes of theirs stand. Time is an argument: a host's goes by
//! itself, a rehearsal's does not.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use pointsman_domain::dispatch::LaneHint;
use pointsman_domain::{FleetView, LaneId};

use crate::chain::Chain;
use crate::version::Version;

/// Wishes of one tick.
const MOST_WISHES: usize = 256;

/// When a version is asked again, and about which lanes it has wishes.
#[derive(Debug)]
struct Turn {
    due: Duration,
    wished: Vec<LaneId>,
}

/// The moment at which versions are asked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TickContext {
    /// Since any fixed time.
    pub(crate) now: Duration,
    /// Wall clock in milliseconds since the Unix epoch.
    pub(crate) now_ms: u64,
    pub(crate) seed: u64,
}

/// The turns of all versions, by fingerprint.
#[derive(Debug, Default)]
pub(crate) struct Schedule(HashMap<String, Turn>);

impl Schedule {
    /// When somebody is to be asked next: at once, where somebody never was.
    pub(crate) fn next(&self, chain: &Chain) -> Option<Duration> {
        let due = |version: &Arc<Version>| {
            self.0.get(&version.fingerprint).map_or(Duration::ZERO, |turn| turn.due)
        };
        ticking(chain).map(|(version, _)| due(version)).min()
    }

    /// Ask whoever's time has come for wishes, in the order of the chain, and take back those of versions that are gone. A wish
    /// of `None` takes the one before back.
    pub(crate) fn tick(
        &mut self,
        chain: &Chain,
        at: TickContext,
        view: &dyn Fn() -> Arc<FleetView>,
        hint: &mut dyn FnMut(LaneId, Option<LaneHint>, Duration),
    ) {
        let mut gone: Vec<Turn> = Vec::new();
        self.0.retain(|fingerprint, turn| {
            let stays = ticking(chain).any(|(version, _)| version.fingerprint == *fingerprint);
            if !stays {
                gone.push(Turn { due: turn.due, wished: std::mem::take(&mut turn.wished) });
            }
            stays
        });
        gone.iter()
            .flat_map(|turn| &turn.wished)
            .for_each(|lane| hint(*lane, None, Duration::ZERO));
        for (version, interval) in ticking(chain) {
            let new = || Turn { due: at.now, wished: Vec::new() };
            let turn = self.0.entry(version.fingerprint.clone()).or_insert_with(new);
            if at.now >= turn.due {
                turn.due = at.now + interval;
                turn.ask(version, at, &view(), hint);
            }
        }
    }
}

impl Turn {
    fn ask(
        &mut self,
        version: &Version,
        at: TickContext,
        view: &Arc<FleetView>,
        hint: &mut dyn FnMut(LaneId, Option<LaneHint>, Duration),
    ) {
        let hints = match version.tick(view, at.now_ms, at.seed) {
            Ok(hints) => hints,
            Err(error) => {
                tracing::warn!(policy = %version.reference, "has no wishes: {error}");
                return;
            }
        };
        let before = std::mem::take(&mut self.wished);
        for it in hints.iter().filter(|it| view.stat(it.lane).is_some()).take(MOST_WISHES) {
            tracing::debug!(policy = %version.reference, hint = ?it, "a wish");
            hint(it.lane, Some(it.hint), it.lasts);
            self.wished.push(it.lane);
        }
        for lane in before.into_iter().filter(|lane| !self.wished.contains(lane)) {
            hint(lane, None, Duration::ZERO);
        }
    }
}

/// The versions that want to be asked, and how often.
fn ticking(chain: &Chain) -> impl Iterator<Item = (&Arc<Version>, Duration)> {
    chain.in_service().filter_map(|version| Some((version, version.tick_interval()?)))
}
