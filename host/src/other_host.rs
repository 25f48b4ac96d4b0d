//! Another host, as the status of a lane describes it, in words for operators.

use std::time::UNIX_EPOCH;

use pointsman_report::table::clean;
use serde_json::Value;

/// The other host that has a lane, as a part of the status of the host that uses it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OtherHost<'a>(&'a Value);

impl<'a> OtherHost<'a> {
    /// Reads the `host` of a lane; `None` for a lane of the host itself.
    pub(crate) fn read(value: &'a Value) -> Option<Self> {
        value.is_object().then_some(Self(value))
    }

    fn text(self, name: &str) -> Option<&'a str> {
        self.0[name].as_str().filter(|text| !text.is_empty())
    }

    /// Returns the URL.
    pub(crate) fn url(self) -> String {
        clean(self.text("url").unwrap_or("-"))
    }

    /// Returns the name, or the URL of a host without one.
    pub(crate) fn name(self) -> String {
        clean(self.text("name").or_else(|| self.text("url")).unwrap_or("-"))
    }

    /// Returns `live`, `degraded` or `down`.
    pub(crate) fn liveness(self) -> String {
        clean(self.text("liveness").unwrap_or("-"))
    }

    /// Returns for how long the host has sent nothing at `now`, and why the last connection ended;
    /// empty for a host that is live. `now` is in milliseconds since 1970.
    pub(crate) fn silence(self, now: u64) -> String {
        if self.text("liveness") == Some("live") {
            return String::new();
        }
        let silent = self.0["silent_ms"].as_u64().or_else(|| {
            // Saturates: the clock of another machine may be ahead.
            Some(now.saturating_sub(self.0["last_event_unix_ms"].as_u64()?))
        });
        let silent = match silent {
            Some(silent) => format!("no event for {}", duration(silent)),
            None => "no event yet".to_owned(),
        };
        match self.text("error") {
            Some(error) => format!("{silent} [{}]", clean(error)),
            None => silent,
        }
    }

    /// Returns how the lane is there; empty if the host has not told.
    pub(crate) fn lane_there(self) -> String {
        let there = &self.0["there"];
        let Some(state) = there["state"].as_str() else { return String::new() };
        let count = |name: &str| there[name].as_u64().unwrap_or_default();
        let problem = there["problem_code"].as_str();
        format!(
            "{}, {} of {} slots, {} queued{}",
            clean(state),
            count("running"),
            count("slots"),
            count("queued"),
            problem.map(|code| format!(" [{}]", clean(code))).unwrap_or_default(),
        )
    }

    /// Returns which lane of which host it is, how it is there, and for how long the host is silent
    /// at `now`.
    pub(crate) fn summary(self, now: u64) -> String {
        let lane = format!("`{}` of {}", clean(self.text("lane").unwrap_or("-")), self.name());
        let parts = [lane, self.lane_there(), self.silence(now)];
        let parts: Vec<String> = parts.into_iter().filter(|part| !part.is_empty()).collect();
        parts.join(", ")
    }

    /// Describes the host and the lane there in one line.
    pub(crate) fn describe(self, now: u64) -> String {
        format!("lane {}; the host ({}) is {}", self.summary(now), self.url(), self.liveness())
    }
}

/// Returns a time in milliseconds as a short text.
pub(crate) fn duration(ms: u64) -> String {
    match ms / 1000 {
        0..120 => format!("{}.{} s", ms / 1000, ms % 1000 / 100),
        seconds @ 120..7200 => format!("{} min", seconds / 60),
        seconds => format!("{} h", seconds / 3600),
    }
}

/// Returns the time in milliseconds since 1970.
pub(crate) fn unix_ms_now() -> u64 {
    u64::try_from(UNIX_EPOCH.elapsed().unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn hosts_are_described_without_control_characters() {
        let live = json!({
            "url": "http://10.0.0.2:8080", "name": "gpu\u{1b}-2", "lane": "big",
            "liveness": "live", "last_event_unix_ms": null, "error": null,
            "there": { "state": "ready", "running": 1, "slots": 4, "queued": 2,
                       "problem_code": null },
        });
        let line = OtherHost::read(&live).unwrap().describe(0);
        for part in ["`big`", "http://10.0.0.2:8080", "live", "ready, 1 of 4 slots, 2 queued"] {
            assert!(line.contains(part), "{part}: {line}");
        }
        assert!(!line.contains('\u{1b}') && !line.contains("no event"), "{line}");
        let silent = json!({
            "url": "http://10.0.0.2:8080", "name": null, "lane": "big", "liveness": "degraded",
            "last_event_unix_ms": 1_000, "error": "peer_silent", "there": null,
        });
        let host = OtherHost::read(&silent).unwrap();
        assert_eq!(host.silence(3_100), "no event for 2.1 s [peer_silent]");
        assert_eq!([duration(150_000), duration(7_200_000)], ["2 min", "2 h"]);
        assert_eq!(host.name(), host.url());
        assert!(OtherHost::read(&Value::Null).is_none());
    }
}
