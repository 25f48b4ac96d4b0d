//! The `[[guards]]` of the configuration: rules that no policy can break.

use std::sync::Arc;

use pointsman_domain::{AppliedGuard, Endpoint, Guard, GuardConditions, GuardRules, Guards};
use pointsman_settings::{Code, Section, missing, nearest};

/// Maximum number of guards. Each is a value of a label of metrics.
const MAX_GUARDS: usize = 64;
/// Maximum length of a name, which clients get in a header.
const MAX_NAME: usize = 64;
/// Range of priorities that a guard may name.
const PRIORITIES: std::ops::RangeInclusive<i64> = i32::MIN as i64..=i32::MAX as i64;
/// Headers that are removed when a request is read, so that a condition would never be met.
const CREDENTIALS: [&str; 5] =
    ["authorization", "proxy-authorization", "x-api-key", "api-key", "cookie"];

/// Reads all guards. Errors are reported; a guard with errors is left out.
pub(super) fn read(root: &Section<'_>) -> Guards {
    let mut guards: Vec<Guard> = Vec::new();
    let sections = root.sections("guards");
    if let Some(section) = sections.get(MAX_GUARDS) {
        section.error(Code::OutOfRange.with(format!("more than {MAX_GUARDS} guards")));
    }
    for section in sections {
        let name = section.required_string("name", "\"eu-only\"");
        if let Some(name) = name {
            check_name(&section, name);
            if guards.iter().any(|guard| *guard.applied.name == *name) {
                let message = format!("guard \"{name}\" already exists");
                section.error_at("name", Code::Duplicate.with(message));
            }
        }
        let when = read_conditions(&section.section("when"));
        let rules = read_rules(&section);
        section.report_unknown();
        let Some(name) = name else { continue };
        guards.push(Guard { when, applied: Arc::new(AppliedGuard { name: name.into(), rules }) });
    }
    Guards(guards)
}

fn check_name(section: &Section<'_>, name: &str) {
    let is_valid = name.len() <= MAX_NAME
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    if !is_valid {
        let message = format!(
            "invalid name: expected at most {MAX_NAME} letters, digits, `-`, `_` and `.`, because \
             clients get it in a header"
        );
        section.error_at("name", message);
    }
}

fn read_conditions(section: &Section<'_>) -> GuardConditions {
    let mut headers = section.string_pairs("headers");
    for (name, _) in &mut headers {
        name.make_ascii_lowercase();
        let is_valid = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
        if CREDENTIALS.contains(&name.as_str()) {
            let message = format!("header `{name}` has credentials; use `tenants` or `groups`");
            section.error_at("headers", message);
        } else if name.is_empty() || !name.bytes().all(is_valid) {
            section.error_at("headers", format!("invalid header name {name:?}"));
        }
    }
    let min_body = section.bytes("min-body").unwrap_or(0);
    let conditions = GuardConditions {
        tenants: read_names(section, "tenants"),
        groups: read_names(section, "groups"),
        headers,
        endpoints: read_endpoints(section),
        min_body,
        min_prompt_tokens: section
            .optional_integer("min-prompt-tokens", 1..=i64::from(u32::MAX))
            .unwrap_or(0),
    };
    section.report_unknown();
    conditions
}

/// Reads a list of names. An empty one would mean all requests, which is not what it looks like.
fn read_names(section: &Section<'_>, key: &str) -> Vec<String> {
    let Some(names) = section.strings(key) else { return Vec::new() };
    if names.is_empty() || names.iter().any(String::is_empty) {
        section.error_at(key, "must not be empty; remove it for requests of all");
    }
    names
}

fn read_endpoints(section: &Section<'_>) -> Vec<Endpoint> {
    let labels = || Endpoint::ALL.into_iter().map(Endpoint::label);
    let read = |name: String| {
        let endpoint = Endpoint::from_label(&name);
        if endpoint.is_none() {
            let hint = match nearest(&name, labels()) {
                Some(near) => format!("did you mean \"{near}\"?"),
                None => format!("expected one of {}", labels().collect::<Vec<_>>().join(", ")),
            };
            let message = format!("unknown endpoint \"{}\"; {hint}", name.escape_debug());
            section.error_at("endpoints", Code::UnknownName.with(message));
        }
        endpoint
    };
    read_names(section, "endpoints").into_iter().filter_map(read).collect()
}

fn read_rules(section: &Section<'_>) -> GuardRules {
    let rules = GuardRules {
        only_labels: section.string_pairs("only-labels"),
        never_labels: section.string_pairs("never-labels"),
        never_external: section.bool("never-external", false),
        keep_model: section.bool("keep-model", false),
        max_output_tokens: section.optional_integer("max-output-tokens", 1..=i64::from(u32::MAX)),
        priority: read_priority(section),
    };
    if rules == GuardRules::default() {
        section.error(missing("a rule, for example `never-external = true`"));
    }
    if let Some((key, value)) = rules.only_labels.iter().find(|l| rules.never_labels.contains(l)) {
        let message =
            format!("label \"{key} = {value}\" is also in `only-labels`: no lane is left");
        section.error_at("never-labels", Code::Conflict.with(message));
    }
    rules
}

fn read_priority(section: &Section<'_>) -> Option<(i32, i32)> {
    if !section.has("min-priority") && !section.has("max-priority") {
        return None;
    }
    let min = section.integer("min-priority", PRIORITIES, i32::MIN);
    let max = section.integer("max-priority", PRIORITIES, i32::MAX);
    if min > max {
        section.error_at("max-priority", Code::Conflict.with("is lower than `min-priority`"));
    }
    Some((min, max))
}
