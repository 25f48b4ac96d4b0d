//! `[queue]` and `[switching]`: the host's rules, within which policies advise.

use std::time::Duration;

use pointsman_domain::dispatch::{QueueLimits, Rules};

use crate::section::{Section, shown};

const SECOND: Duration = Duration::from_secs(1);

/// The rules, and the longest wait in a queue.
pub fn rules(queue: &Section<'_>, switching: &Section<'_>) -> (Rules, Duration) {
    let per_lane = queue.number("per-lane", 0..=1_000_000, 64);
    let total = queue.number("total", 0..=1_000_000, 256);
    let max_wait = queue.duration("max-wait", 60 * SECOND);
    let ageing = queue.duration("ageing", 5 * SECOND);
    queue.report_unknown();

    let longest_wait = switching.duration("longest-wait", (max_wait / 2).max(SECOND));
    // The default is more for queues that hardly wait at all, and does not matter there.
    if switching.has("longest-wait") && longest_wait >= max_wait {
        switching.mistake(
            "longest-wait",
            format!(
                "{} is not less than `max-wait` of [queue], {}, after which requests wait no longer; write less, or \
                 leave it out for half of that",
                shown(longest_wait),
                shown(max_wait)
            ),
        );
    }
    let defaults = Rules::default();
    let rules = Rules {
        queue: QueueLimits { per_lane, total },
        ageing,
        residence: read_residence(switching).unwrap_or(defaults.residence),
        linger: defaults.linger,
        linger_most: switching.duration("linger", defaults.linger_most),
        longest_wait,
        cut_after: switching
            .has("cut-after")
            .then(|| switching.duration("cut-after", Duration::ZERO)),
    };
    switching.report_unknown();
    (rules, max_wait)
}

/// In thousandths.
fn read_residence(switching: &Section<'_>) -> Option<u32> {
    let text = switching.decimal("residence")?;
    match text.parse::<f64>() {
        Ok(times) if (0.0..=100.0).contains(&times) => Some((times * 1000.0).round() as u32),
        _ => {
            switching.mistake(
                "residence",
                format!(
                    "`{text}` is not from 0 to 100; write how many times the expected cost of a switch a lane with \
                     work stays loaded, such as 1.0"
                ),
            );
            None
        }
    }
}
