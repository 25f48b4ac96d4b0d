//! What an engine says of itself. The host looks at intervals, so what policies see is a little old.

use std::time::Duration;

/// Between two looks, as the host does it.
const LOOK: Duration = Duration::from_secs(1);

/// What an engine said when it was last looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Told {
    /// When.
    pub(crate) at: Duration,
    /// Requests that wait in it.
    pub(crate) waiting: u32,
    /// Part of its key-value cache that is in use, in thousandths.
    pub(crate) kv_used: u16,
    /// Tokens that each answer gets in a second.
    pub(crate) decode_tps: u32,
}

impl Told {
    /// How old that is, in milliseconds.
    pub(crate) fn stale(&self, now: Duration) -> u32 {
        u32::try_from(now.saturating_sub(self.at).as_millis()).unwrap_or(u32::MAX)
    }
}

/// How an engine is at a look.
#[derive(Debug)]
pub(super) struct Now {
    pub(super) at: Duration,
    pub(super) running: usize,
    pub(super) waiting: usize,
    pub(super) kv_used: u16,
    /// Microseconds since tokens were last counted, and how many were written in each of them.
    pub(super) since: f64,
    pub(super) writes: f64,
}

#[derive(Debug, Clone, Copy)]
struct Look {
    told: Told,
    running: usize,
    written: f64,
}

/// The looks at an engine that serves; looks at one that does not tell nothing.
#[derive(Debug, Default)]
pub(super) struct Figures {
    since: Option<Duration>,
    /// Tokens of answers, in all.
    written: f64,
    last: Option<Look>,
}

impl Figures {
    pub(super) fn since(now: Duration) -> Self {
        Self { since: Some(now), ..Self::default() }
    }

    pub(super) fn wrote(&mut self, tokens: f64) {
        self.written += tokens;
    }

    /// When the last look was.
    pub(super) fn last_look(&self, now: Duration) -> Option<Duration> {
        let since = self.since?;
        let whole = now.saturating_sub(since).as_secs();
        Some(since + Duration::from_secs(whole))
    }

    pub(super) fn is_news(&self, at: Duration) -> bool {
        self.last.is_none_or(|last| last.told.at < at)
    }

    /// The speed of answers is that between two looks, at both of which there were some. Nothing has changed since the look
    /// before, if that was not told.
    pub(super) fn look(&mut self, now: &Now) {
        let written = self.written + now.since * now.writes;
        let before = match self.last {
            Some(last) if last.told.at + LOOK == now.at => Some((last.running, last.written)),
            Some(_) => Some((now.running, written - now.writes * 1e6)),
            None => None,
        };
        let decode_tps = before.map_or(0.0, |(running, before)| match (running, now.running) {
            (0, _) | (_, 0) => 0.0,
            (before_running, running) => {
                ((written - before) / ((before_running + running) as f64 / 2.0)).round()
            }
        });
        let told = Told {
            at: now.at,
            waiting: u32::try_from(now.waiting).unwrap_or(u32::MAX),
            kv_used: now.kv_used,
            decode_tps: decode_tps as u32,
        };
        self.last = Some(Look { told, running: now.running, written });
    }

    pub(super) fn told(&self) -> Option<Told> {
        self.last.map(|last| last.told)
    }
}
