//! `[queue]` and `[switching]`: the rules of the host, which bound what policies can advise.

use std::time::Duration;

use pointsman_domain::dispatch::{QueueLimits, Rules};

use crate::diagnostics::Code;
use crate::section::Section;
use crate::value::format_duration;

const SECOND: Duration = Duration::from_secs(1);

/// Reads the dispatcher's rules and the maximum time that a request waits in a queue.
pub fn rules(queue: &Section<'_>, switching: &Section<'_>) -> (Rules, Duration) {
    let per_lane = queue.integer("per-lane", 0..=1_000_000, 64);
    let total = queue.integer("total", 0..=1_000_000, 256);
    let max_wait = queue.duration("max-wait", 60 * SECOND);
    let aging = queue.duration("aging", 5 * SECOND);
    queue.report_unknown();

    let default = (max_wait / 2).max(SECOND);
    let starvation_timeout = switching.duration("starvation-timeout", default);
    // With a `max-wait` of a few seconds the default may exceed it: then requests time out first,
    // and the starvation timeout has no effect.
    if switching.has("starvation-timeout") && starvation_timeout >= max_wait {
        let message = format!(
            "{} is not less than `max-wait` of [queue] ({}), after which requests stop waiting; \
             lower \
             it, or remove it to use half of `max-wait`",
            format_duration(starvation_timeout),
            format_duration(max_wait)
        );
        switching.error_at("starvation-timeout", Code::Conflict.with(message));
    }
    let defaults = Rules::default();
    let rules = Rules {
        queue: QueueLimits { per_lane, total },
        aging,
        min_residency: read_min_residency(switching).unwrap_or(defaults.min_residency),
        linger: defaults.linger,
        max_linger: switching.duration("linger", defaults.max_linger),
        starvation_timeout,
        drain_timeout: switching
            .has("drain-timeout")
            .then(|| switching.duration("drain-timeout", Duration::ZERO)),
    };
    switching.report_unknown();
    (rules, max_wait)
}

/// Reads the minimum residency, in thousandths of the expected cost of a switch.
fn read_min_residency(switching: &Section<'_>) -> Option<u32> {
    let text = switching.decimal("min-residency")?;
    match text.parse::<f64>() {
        Ok(factor) if (0.0..=100.0).contains(&factor) => Some((factor * 1000.0).round() as u32),
        _ => {
            let message = format!(
                "{text} is out of range: expected 0 to 100, the multiple of a switch's expected \
                 cost \
                 for which a lane with work stays loaded"
            );
            switching.error_at("min-residency", Code::OutOfRange.with(message));
            None
        }
    }
}
