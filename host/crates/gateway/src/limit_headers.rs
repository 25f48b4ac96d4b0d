//! Headers that tell a client what the limits of its key leave, as OpenAI and Anthropic send them.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderName, HeaderValue};
use pointsman_domain::{Allowance, Remaining};
use pointsman_openai::ErrorForm;

/// Beginnings of the headers of both APIs.
const PREFIXES: [&str; 2] = ["x-ratelimit-", "anthropic-ratelimit-"];

/// The names of limit, rest and reset of one kind.
type Names = [HeaderName; 3];

const OPENAI: [Names; 2] = [
    [
        HeaderName::from_static("x-ratelimit-limit-requests"),
        HeaderName::from_static("x-ratelimit-remaining-requests"),
        HeaderName::from_static("x-ratelimit-reset-requests"),
    ],
    [
        HeaderName::from_static("x-ratelimit-limit-tokens"),
        HeaderName::from_static("x-ratelimit-remaining-tokens"),
        HeaderName::from_static("x-ratelimit-reset-tokens"),
    ],
];
const ANTHROPIC: [Names; 2] = [
    [
        HeaderName::from_static("anthropic-ratelimit-requests-limit"),
        HeaderName::from_static("anthropic-ratelimit-requests-remaining"),
        HeaderName::from_static("anthropic-ratelimit-requests-reset"),
    ],
    [
        HeaderName::from_static("anthropic-ratelimit-tokens-limit"),
        HeaderName::from_static("anthropic-ratelimit-tokens-remaining"),
        HeaderName::from_static("anthropic-ratelimit-tokens-reset"),
    ],
];

/// Sets the headers of a key with limits, in place of those of the engine: they would be about the
/// host's own key.
pub(crate) fn set(headers: &mut HeaderMap, allowance: &Allowance, form: ErrorForm) {
    let is_engines = |name: &HeaderName| PREFIXES.iter().any(|p| name.as_str().starts_with(p));
    let engines: Vec<HeaderName> =
        headers.keys().filter(|name| is_engines(name)).cloned().collect();
    for name in engines {
        headers.remove(name);
    }
    let names = if form == ErrorForm::Anthropic { ANTHROPIC } else { OPENAI };
    for (names, remaining) in names.into_iter().zip([allowance.requests, allowance.tokens]) {
        let Some(Remaining { limit, left, reset_ms }) = remaining else { continue };
        let reset = match form {
            ErrorForm::Anthropic => time_in(reset_ms),
            ErrorForm::OpenAi | ErrorForm::Responses | ErrorForm::Ollama => duration(reset_ms),
        };
        let values = [Some(limit.into()), Some(left.into()), HeaderValue::try_from(reset).ok()];
        headers.extend(names.into_iter().zip(values).filter_map(|(name, value)| {
            let value: HeaderValue = value?;
            Some((name, value))
        }));
    }
}

/// Returns a point in time as Anthropic writes it, rounded up to a second.
fn time_in(ms: u64) -> String {
    let time = SystemTime::now() + Duration::from_millis(ms.saturating_add(999));
    humantime::format_rfc3339_seconds(time).to_string()
}

/// Returns a duration as OpenAI writes it: `120ms`, `1.5s`, `6m0s`, `1h0m0s`.
fn duration(ms: u64) -> String {
    if ms > 0 && ms < 1000 {
        return format!("{ms}ms");
    }
    let (seconds, ms) = (ms / 1000, ms % 1000);
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    let fraction = format!(".{ms:03}");
    let fraction = fraction.trim_end_matches('0').trim_end_matches('.');
    match (hours, minutes) {
        (0, 0) => format!("{seconds}{fraction}s"),
        (0, minutes) => format!("{minutes}m{seconds}{fraction}s"),
        (hours, minutes) => format!("{hours}h{minutes}m{seconds}{fraction}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_written_as_openai_does() {
        for (ms, expected) in [
            (0, "0s"),
            (120, "120ms"),
            (1000, "1s"),
            (8640, "8.64s"),
            (59_999, "59.999s"),
            (360_000, "6m0s"),
            (61_500, "1m1.5s"),
            (3_600_000, "1h0m0s"),
        ] {
            assert_eq!(duration(ms), expected);
        }
    }

    #[test]
    fn headers_of_the_host_replace_those_of_the_engine() {
        let remaining = Remaining { limit: 60, left: 59, reset_ms: 1000 };
        let allowance = Allowance { requests: Some(remaining), ..Allowance::default() };
        for form in [ErrorForm::OpenAi, ErrorForm::Anthropic] {
            let mut headers = HeaderMap::new();
            for name in ["x-ratelimit-limit-tokens", "anthropic-ratelimit-tokens-limit"] {
                headers.insert(HeaderName::from_static(name), HeaderValue::from_static("1"));
            }
            set(&mut headers, &allowance, form);
            let [limit, left, reset] = match form {
                ErrorForm::Anthropic => &ANTHROPIC[0],
                ErrorForm::OpenAi | ErrorForm::Responses | ErrorForm::Ollama => &OPENAI[0],
            };
            assert_eq!(headers.len(), 3);
            assert!(headers[limit] == "60" && headers[left] == "59", "{headers:?}");
            let reset = headers[reset].to_str().unwrap();
            assert_eq!(reset == "1s", form == ErrorForm::OpenAi, "{reset}");
            assert_eq!(humantime::parse_rfc3339(reset).is_ok(), form == ErrorForm::Anthropic);
        }
    }
}
