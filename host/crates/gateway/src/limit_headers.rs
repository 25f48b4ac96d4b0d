//! Headers that tell a client what the limits of its key leave, as OpenAI and Anthropic send them.

use std::fmt::Write as _;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use pointsman_domain::{Allowance, Remaining};
use pointsman_openai::ErrorForm;

/// Beginnings of the headers of both APIs.
const PREFIXES: [&str; 2] = ["x-ratelimit-", "anthropic-ratelimit-"];

/// The names of limit, rest and reset of one kind.
type Names = [HeaderName; 3];

static OPENAI: [Names; 2] = [
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
static ANTHROPIC: [Names; 2] = [
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
    let names = if form == ErrorForm::Anthropic { &ANTHROPIC } else { &OPENAI };
    // All values are parts of one text, which is allocated once.
    let mut text = String::with_capacity(128);
    let mut ends = Vec::with_capacity(6);
    for (names, remaining) in names.iter().zip([allowance.requests, allowance.tokens]) {
        let Some(Remaining { limit, left, reset_ms }) = remaining else { continue };
        let [limit_name, left_name, reset_name] = names;
        for (name, number) in [(limit_name, limit), (left_name, left)] {
            write!(text, "{number}").ok(); // A string accepts everything.
            ends.push((name, text.len()));
        }
        match form {
            ErrorForm::Anthropic => text.push_str(&time_in(reset_ms)),
            ErrorForm::OpenAi | ErrorForm::Responses | ErrorForm::Ollama => {
                push_duration(&mut text, reset_ms);
            }
        }
        ends.push((reset_name, text.len()));
    }
    let (text, mut start) = (Bytes::from(text), 0);
    for (name, end) in ends {
        if let Ok(value) = HeaderValue::from_maybe_shared(text.slice(start..end)) {
            headers.insert(name.clone(), value);
        }
        start = end;
    }
}

/// Returns a point in time as Anthropic writes it, rounded up to a second.
fn time_in(ms: u64) -> String {
    let time = SystemTime::now() + Duration::from_millis(ms.saturating_add(999));
    humantime::format_rfc3339_seconds(time).to_string()
}

/// Writes a duration as OpenAI does: `120ms`, `1.5s`, `6m0s`, `1h0m0s`.
fn push_duration(text: &mut String, ms: u64) {
    if ms > 0 && ms < 1000 {
        write!(text, "{ms}ms").ok();
        return;
    }
    let (seconds, ms) = (ms / 1000, ms % 1000);
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match (hours, minutes) {
        (0, 0) => write!(text, "{seconds}"),
        (0, minutes) => write!(text, "{minutes}m{seconds}"),
        (hours, minutes) => write!(text, "{hours}h{minutes}m{seconds}"),
    }
    .ok();
    if ms > 0 {
        write!(text, ".{ms:03}").ok();
        text.truncate(text.trim_end_matches('0').len());
    }
    text.push('s');
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
            let mut text = String::from("1");
            push_duration(&mut text, ms);
            assert_eq!(text, format!("1{expected}"));
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
