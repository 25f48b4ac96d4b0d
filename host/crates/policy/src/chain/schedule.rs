//! The schedule of `on-tick`, and the hints that are valid. Time is an argument, so that a dry run
//! can use virtual time.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use pointsman_domain::dispatch::LaneHint;
use pointsman_domain::{FleetView, LaneId};
use pointsman_spec::Hook;

use crate::contract::types::PolicyHint;
use crate::version::Version;
use crate::version::call_trace::CallTrace;

/// Maximum hints of one tick.
const MAX_HINTS: usize = 256;

/// The schedule of one version.
#[derive(Debug)]
struct Entry {
    due: Duration,
    /// The lanes about which a hint of the version is valid.
    hinted: Vec<LaneId>,
}

/// The arguments of a tick.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TickContext {
    /// Relative to an arbitrary fixed instant.
    pub(crate) now: Duration,
    /// Wall clock in milliseconds since the Unix epoch.
    pub(crate) now_ms: u64,
    pub(crate) seed: u64,
}

/// The schedules of all versions, by fingerprint.
#[derive(Debug, Default)]
pub(crate) struct Schedule(HashMap<String, Entry>);

impl Schedule {
    /// Returns the time of the next tick: zero if a version has not been called yet.
    pub(crate) fn next<'a>(
        &self,
        versions: impl Iterator<Item = &'a Arc<Version>>,
    ) -> Option<Duration> {
        let due = |version: &Arc<Version>| {
            self.0.get(version.fingerprint()).map_or(Duration::ZERO, |entry| entry.due)
        };
        ticking(versions).map(|(version, _)| due(version)).min()
    }

    /// Calls `on-tick` of all versions of `versions` that are due, in that order, and revokes the
    /// hints of versions that were removed. A hint of `None` revokes the previous one.
    pub(crate) fn tick<'a>(
        &mut self,
        versions: impl Iterator<Item = &'a Arc<Version>>,
        at: TickContext,
        view: &dyn Fn() -> Arc<FleetView>,
        hint: &mut dyn FnMut(LaneId, Option<LaneHint>, Duration),
    ) {
        let ticking: Vec<_> = ticking(versions).collect();
        let mut removed: Vec<Entry> = Vec::new();
        self.0.retain(|fingerprint, entry| {
            let stays = ticking.iter().any(|(version, _)| version.fingerprint() == fingerprint);
            if !stays {
                removed.push(Entry { due: entry.due, hinted: std::mem::take(&mut entry.hinted) });
            }
            stays
        });
        removed
            .iter()
            .flat_map(|entry| &entry.hinted)
            .for_each(|lane| hint(*lane, None, Duration::ZERO));
        for (version, interval) in ticking {
            let new = || Entry { due: at.now, hinted: Vec::new() };
            let entry = self.0.entry(version.fingerprint().to_owned()).or_insert_with(new);
            if at.now >= entry.due {
                entry.due = at.now + interval;
                entry.call(version, at, &view(), hint);
            }
        }
    }
}

impl Entry {
    fn call(
        &mut self,
        version: &Version,
        at: TickContext,
        view: &Arc<FleetView>,
        hint: &mut dyn FnMut(LaneId, Option<LaneHint>, Duration),
    ) {
        let _span = version.span(Hook::Tick.name()).entered();
        let hints = match version.tick(view, at.now_ms, at.seed, &mut CallTrace::default()) {
            Ok(hints) => hints,
            Err(error) => {
                tracing::warn!(kind = error.kind(), %error, "on-tick hook failed");
                return;
            }
        };
        let before = std::mem::take(&mut self.hinted);
        let is_known = |new: &&PolicyHint| view.stat(new.lane).is_some();
        for new in hints.iter().filter(is_known).take(MAX_HINTS) {
            tracing::debug!(hint = ?new, "received lane hint");
            hint(new.lane, Some(new.hint), new.ttl);
            self.hinted.push(new.lane);
        }
        for lane in before.into_iter().filter(|lane| !self.hinted.contains(lane)) {
            hint(lane, None, Duration::ZERO);
        }
    }
}

/// Returns the versions with `on-tick`, and their intervals.
fn ticking<'a>(
    versions: impl Iterator<Item = &'a Arc<Version>>,
) -> impl Iterator<Item = (&'a Arc<Version>, Duration)> {
    versions.filter_map(|version| Some((version, version.artifact().tick_interval()?)))
}
