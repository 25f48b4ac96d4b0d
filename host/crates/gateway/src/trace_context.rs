//! The trace context of a request (W3C Trace Context): from the client, or new, and for engines.
//!
//! No span is made while a request is served: the flow knows all times. What is here is what
//! has to be known before the end, which is who the parent is, whether the trace is sampled, and
//! the id of the span that an engine gets as its parent.

use std::fmt;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};

const TRACE_PARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACE_STATE: HeaderName = HeaderName::from_static("tracestate");
/// Length of a header `traceparent` of version 00; later versions may only append to it.
const PARENT_LENGTH: usize = 55;
/// Maximum length of a header `tracestate`, which is at least what has to be passed on.
const MAX_STATE: usize = 512;

/// Which requests are traced, and where their ids come from.
#[derive(Debug, Clone)]
pub struct TraceSettings {
    /// The fraction of the requests that are traced, from 0.0 to 1.0.
    pub ratio: f64,
    /// A request that belongs to a trace is traced if its parent is.
    pub follows_parent: bool,
    /// The source of ids.
    pub ids: TraceIds,
}

/// A source of random ids. Clones share it.
#[derive(Clone, Default)]
pub struct TraceIds(Arc<(RandomState, AtomicU64)>);

impl fmt::Debug for TraceIds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The keys are secret: who knows them could foresee the ids.
        f.debug_struct("TraceIds").finish_non_exhaustive()
    }
}

impl TraceIds {
    /// Returns a random number that is not zero, which stands for an invalid id.
    fn next(&self) -> u64 {
        let (state, counter) = &*self.0;
        state.hash_one(counter.fetch_add(1, Ordering::Relaxed)).max(1)
    }
}

/// The position of a request in its trace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceContext {
    /// The id of the trace.
    pub trace_id: u128,
    /// The id of the request's span.
    pub span_id: u64,
    /// The id of the client's span.
    pub parent: Option<u64>,
    /// The client's `tracestate`.
    pub state: Option<HeaderValue>,
    /// The trace is exported.
    pub is_sampled: bool,
}

impl TraceContext {
    /// Continues the trace of the client, or begins one.
    pub(crate) fn new(settings: &TraceSettings, headers: &HeaderMap) -> Self {
        let span_id = settings.ids.next();
        let Some((trace_id, parent, is_sampled)) = parent(headers) else {
            let trace_id = u128::from(settings.ids.next()) << 64 | u128::from(settings.ids.next());
            let is_sampled = samples(settings.ratio, trace_id);
            return Self { trace_id, span_id, parent: None, state: None, is_sampled };
        };
        let is_sampled = match settings.follows_parent {
            true => is_sampled,
            false => samples(settings.ratio, trace_id),
        };
        // Several headers are a list, which is not passed on: nothing that is known needs that.
        let mut states = headers.get_all(TRACE_STATE).iter();
        let state = states.next().filter(|state| state.len() <= MAX_STATE && !state.is_empty());
        let state = state.filter(|state| states.next().is_none() && state.to_str().is_ok());
        Self { trace_id, span_id, parent: Some(parent), state: state.cloned(), is_sampled }
    }

    /// Returns the id of a span of the request; for an attempt, counted from 1, this is its number.
    /// Not stored, because the engine gets it long before the span is made.
    pub fn child_span(&self, number: u32) -> u64 {
        // The finalizer of SplitMix64: distinct inputs have distinct results.
        let step = u64::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut id = self.span_id.wrapping_add(step);
        id = (id ^ (id >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        id = (id ^ (id >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (id ^ (id >> 31)).max(1)
    }

    /// Appends the id of the trace, in hexadecimal digits.
    pub fn push_trace_id(&self, text: &mut String) {
        let mut digits = [0; 32];
        write_hex(&mut digits, self.trace_id);
        // Digits are valid UTF-8.
        text.push_str(str::from_utf8(&digits).unwrap_or_default());
    }

    /// Returns the headers of an attempt.
    pub(crate) fn headers(&self, attempt: u32) -> TraceHeaders {
        let mut parent = *b"00-................................-................-00";
        write_hex(&mut parent[3..35], self.trace_id);
        write_hex(&mut parent[36..52], self.child_span(attempt).into());
        if self.is_sampled {
            parent[PARENT_LENGTH - 1] = b'1';
        }
        TraceHeaders { parent, state: self.state.clone() }
    }
}

/// The trace context of an attempt, for its engine.
#[derive(Debug)]
pub(crate) struct TraceHeaders {
    parent: [u8; PARENT_LENGTH],
    state: Option<HeaderValue>,
}

impl TraceHeaders {
    /// Replaces the trace context of the client.
    pub(crate) fn replace_in(&self, headers: &mut HeaderMap) {
        // Hexadecimal digits and dashes are always a valid value.
        let parent = HeaderValue::from_bytes(&self.parent).ok();
        for (name, value) in [(TRACE_PARENT, parent), (TRACE_STATE, self.state.clone())] {
            match value {
                Some(value) => drop(headers.insert(name, value)),
                None => drop(headers.remove(name)),
            }
        }
    }
}

/// Writes the lowest hexadecimal digits of a number, as many as there is room: in a tenth of the
/// time that the formatter of the standard library takes, for each request that is traced.
fn write_hex(digits: &mut [u8], mut number: u128) {
    const DIGITS: [u8; 16] = *b"0123456789abcdef";
    for digit in digits.iter_mut().rev() {
        *digit = DIGITS[number as usize & 0xf];
        number >>= 4;
    }
}

/// Returns true for this fraction of all trace ids. All hosts choose the same ones.
fn samples(ratio: f64, trace_id: u128) -> bool {
    // The lower half, as the SDKs of OpenTelemetry do, without its highest bit: a `u64` cast
    // saturates, and a ratio of 1.0 has to include every id.
    let bound = (ratio * (1_u64 << 63) as f64) as u64;
    (trace_id as u64 >> 1) < bound
}

/// Returns trace, span and sampling of the client; `None` if it has no valid `traceparent`.
fn parent(headers: &HeaderMap) -> Option<(u128, u64, bool)> {
    let mut values = headers.get_all(TRACE_PARENT).iter();
    let text = values.next()?.to_str().ok()?;
    let is_only = values.next().is_none();
    let (known, rest) = text.split_at_checked(PARENT_LENGTH)?;
    let mut parts = known.split('-');
    let mut part = |length: usize| {
        let is_lower_hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        parts.next().filter(|part| part.len() == length && part.bytes().all(is_lower_hex))
    };
    let (version, trace, span, flags) = (part(2)?, part(32)?, part(16)?, part(2)?);
    let is_complete = match version {
        "00" => rest.is_empty(),
        "ff" => false,
        _ => rest.is_empty() || rest.starts_with('-'),
    };
    let trace_id = u128::from_str_radix(trace, 16).ok()?;
    let span_id = u64::from_str_radix(span, 16).ok()?;
    let flags = u8::from_str_radix(flags, 16).ok()?;
    let is_valid = is_only && is_complete && trace_id != 0 && span_id != 0;
    is_valid.then_some((trace_id, span_id, flags & 1 == 1))
}

/// What a trace needs to know of a request besides what its flow knows.
#[derive(Debug, Clone)]
pub struct RequestTrace {
    /// The position of the request in its trace.
    pub context: TraceContext,
    /// The calls of policies. Empty unless the trace is sampled.
    pub policy_calls: Vec<PolicyCallSpan>,
    /// The attempts whose lane was not loaded when they began to wait.
    pub loads: Vec<LoadSpan>,
    /// The engines to which the request was sent.
    pub engines: Vec<EngineSpan>,
}

/// A wait of a request for a lane that was not loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadSpan {
    /// The number of the attempt, counted from 1.
    pub attempt: u32,
    /// The state of the lane at the beginning.
    pub lane_state: &'static str,
    /// The number of the load that served the request, if it was served.
    pub switch: Option<u64>,
}

/// An engine to which a request was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineSpan {
    /// The number of the attempt, counted from 1.
    pub attempt: u32,
    /// Host and port of the engine.
    pub authority: String,
    /// The model name that the engine got, if it is another one than the client's.
    pub model: Option<String>,
}

/// One call of the chain of policies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PolicyCallSpan {
    /// The hook that was called.
    pub hook: &'static str,
    /// Age of the request at the beginning of the call.
    pub begun: Duration,
    /// Age of the request at its end.
    pub ended: Duration,
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

    fn settings(ratio: f64, follows_parent: bool) -> TraceSettings {
        TraceSettings { ratio, follows_parent, ids: TraceIds::default() }
    }

    fn context(settings: &TraceSettings, parent: &str, state: Option<&str>) -> TraceContext {
        let mut headers = HeaderMap::new();
        headers.insert(TRACE_PARENT, parent.parse().unwrap());
        if let Some(state) = state {
            headers.insert(TRACE_STATE, state.parse().unwrap());
        }
        TraceContext::new(settings, &headers)
    }

    #[test]
    fn valid_parents_are_continued_and_others_ignored() {
        let settings = settings(1.0, true);
        let id = "00f067aa0ba902b7";
        let upper = TRACE.to_uppercase();
        let zeros = "0".repeat(32);
        for (parent, expected) in [
            (format!("00-{TRACE}-{id}-01"), Some(true)),
            (format!("00-{TRACE}-{id}-00"), Some(false)),
            (format!("00-{TRACE}-{id}-ff"), Some(true)),
            (format!("01-{TRACE}-{id}-01-later"), Some(true)),
            (format!("00-{TRACE}-{id}-01-later"), None),
            (format!("01-{TRACE}-{id}-01later"), None),
            (format!("ff-{TRACE}-{id}-01"), None),
            (format!("00-{upper}-{id}-01"), None),
            (format!("00-{zeros}-{id}-01"), None),
            (format!("00-{TRACE}-0000000000000000-01"), None),
            (format!("00-{TRACE}-{id}"), None),
            (String::new(), None),
            ("-".repeat(55), None),
        ] {
            let context = context(&settings, &parent, Some("a=b"));
            let is_continued = context.parent == Some(0x00f0_67aa_0ba9_02b7);
            assert_eq!(is_continued.then_some(context.is_sampled), expected, "{parent}");
            assert_eq!(context.state.is_some(), expected.is_some(), "{parent}");
            assert_eq!(format!("{:x}", context.trace_id) == TRACE, expected.is_some(), "{parent}");
        }
        let long = "x".repeat(MAX_STATE + 1);
        let context = context(&settings, &format!("00-{TRACE}-{id}-01"), Some(&long));
        assert_eq!((context.state, context.parent.is_some()), (None, true));
    }

    #[test]
    fn samples_are_of_the_given_size_and_may_follow_the_parent() {
        for (ratio, expected) in [(0.0, 0..=0), (0.25, 2200..=2800), (1.0, 10_000..=10_000)] {
            let settings = settings(ratio, true);
            let new = || TraceContext::new(&settings, &HeaderMap::new());
            let sampled = (0..10_000).filter(|_| new().is_sampled).count();
            assert!(expected.contains(&sampled), "{ratio}: {sampled}");
        }
        assert!(samples(1.0, u128::MAX));
        let parent = format!("00-{TRACE}-00f067aa0ba902b7-01");
        assert!(context(&settings(0.0, true), &parent, None).is_sampled);
        assert!(!context(&settings(0.0, false), &parent, None).is_sampled);
    }

    #[test]
    fn engines_get_the_span_of_their_attempt() {
        let context = context(
            &settings(1.0, true),
            &format!("00-{TRACE}-00f067aa0ba902b7-01"),
            Some("vendor=1"),
        );
        let mut headers = HeaderMap::new();
        headers.insert(TRACE_STATE, "old=1".parse().unwrap());
        for attempt in [1, 2] {
            context.headers(attempt).replace_in(&mut headers);
            let expected = format!("00-{TRACE}-{:016x}-01", context.child_span(attempt));
            assert_eq!(headers[TRACE_PARENT], expected);
            assert_eq!(headers[TRACE_STATE], "vendor=1");
        }
        assert_ne!(context.child_span(1), context.child_span(2));
        assert_ne!(context.child_span(1), context.span_id);
    }
}
