//! Reads the limits of keys, groups and tenants.

use pointsman_settings::{Code, Section, missing};

use crate::limits::{Budget, Limits, Period};

/// Reads a table of limits.
pub(super) fn read_limits(parent: &Section<'_>, key: &str) -> Limits {
    let section = parent.section(key);
    // Zero would refuse all requests. Who wants that revokes the key.
    let positive = 1..=i64::from(u32::MAX);
    let limits = Limits {
        requests_per_minute: section.optional_integer("requests-per-minute", positive.clone()),
        tokens_per_minute: amount(&section, "tokens-per-minute"),
        concurrent: section.optional_integer("concurrent", positive),
        queued: section.optional_integer("queued", 0..=i64::from(u32::MAX)),
        budgets: read_budgets(&section),
    };
    section.report_unknown();
    limits
}

fn read_budgets(section: &Section<'_>) -> Vec<Budget> {
    let mut budgets: Vec<Budget> = Vec::new();
    for section in section.sections("budget") {
        let period = section.required_string("period", "\"day\"").map(|text| match text {
            "day" => Some(Period::Day),
            "week" => Some(Period::Week),
            "month" => Some(Period::Month),
            _ => {
                let message =
                    format!("unknown period \"{text}\": expected \"day\", \"week\" or \"month\"");
                section.error_at("period", Code::InvalidValue.with(message));
                None
            }
        });
        let tokens = amount(&section, "tokens");
        let requests = amount(&section, "requests");
        let engine_seconds = amount(&section, "engine-seconds");
        section.report_unknown();
        if !["tokens", "requests", "engine-seconds"].iter().any(|key| section.has(key)) {
            section.error(missing("`tokens = 1_000_000`, `requests` or `engine-seconds`"));
        }
        let Some(period) = period.flatten() else { continue };
        if budgets.iter().any(|budget| budget.period == period) {
            let message = "another budget has the same period; write both amounts in one";
            section.error_at("period", Code::Duplicate.with(message));
        }
        budgets.push(Budget { period, tokens, requests, engine_seconds });
    }
    budgets.sort_by_key(|budget| budget.period);
    budgets
}

fn amount(section: &Section<'_>, key: &str) -> Option<u64> {
    section.has(key).then(|| section.integer(key, 1..=i64::MAX, 1))
}
