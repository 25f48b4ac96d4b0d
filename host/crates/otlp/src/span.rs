//! Spans, which are encoded as they are made: a traced request has up to eight of them, with some
//! forty attributes that would otherwise be allocated one by one.

use prost::Message as _;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, int32, key_len};

use crate::messages::{Resource, Scope};

/// Field numbers of `Span`.
mod field {
    pub(super) const TRACE_ID: u32 = 1;
    pub(super) const SPAN_ID: u32 = 2;
    pub(super) const TRACE_STATE: u32 = 3;
    pub(super) const PARENT_SPAN_ID: u32 = 4;
    pub(super) const NAME: u32 = 5;
    pub(super) const KIND: u32 = 6;
    pub(super) const START: u32 = 7;
    pub(super) const END: u32 = 8;
    pub(super) const ATTRIBUTES: u32 = 9;
    pub(super) const LINKS: u32 = 13;
    pub(super) const STATUS: u32 = 15;
    pub(super) const FLAGS: u32 = 16;
}

/// The field of `ScopeSpans` that has a span.
const SPANS: u32 = 2;
/// Bytes of most spans.
const TYPICAL_SIZE: usize = 384;
/// Spans of most requests.
const TYPICAL_COUNT: usize = 4;

/// The kind of a span.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpanKind {
    /// Work within the host.
    Internal = 1,
    /// A request that the host serves.
    Server = 2,
    /// A request that the host sends.
    Client = 3,
}

/// Whether what a span stands for has failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpanStatus {
    /// It has not, as far as the host knows.
    Unset,
    /// It has failed.
    Error,
}

/// The value of a span's attribute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpanValue<'a> {
    /// A text.
    Text(&'a str),
    /// A boolean.
    Bool(bool),
    /// An integer; larger ones than `i64::MAX` are cut.
    Integer(u64),
}

impl<'a> From<&'a str> for SpanValue<'a> {
    fn from(text: &'a str) -> Self {
        Self::Text(text)
    }
}

impl From<bool> for SpanValue<'_> {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl From<u64> for SpanValue<'_> {
    fn from(number: u64) -> Self {
        Self::Integer(number)
    }
}

/// Spans in the wire format, for [`trace_request`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spans {
    /// The field `spans` of `ScopeSpans`, once for each span.
    encoded: Vec<u8>,
    /// The span that is being made. Its size is written before it, and known when it is complete.
    span: Span,
}

impl Default for Spans {
    fn default() -> Self {
        Self {
            encoded: Vec::with_capacity(TYPICAL_COUNT * TYPICAL_SIZE),
            span: Span(Vec::with_capacity(TYPICAL_SIZE)),
        }
    }
}

impl Spans {
    /// Begins a span of a trace that has the id `span_id` and, unless it is the first one of its
    /// trace, a parent. The span ends with the next one, or with [`Self::finish`]. Its name is that
    /// of all parts together; times are nanoseconds since the Unix epoch.
    pub fn begin(
        &mut self,
        (trace_id, span_id, parent): (u128, u64, Option<u64>),
        name: &[&str],
        kind: SpanKind,
        (start, end): (u64, u64),
    ) -> &mut Span {
        self.end();
        let span = &mut self.span;
        span.data(field::TRACE_ID, &trace_id.to_be_bytes());
        span.data(field::SPAN_ID, &span_id.to_be_bytes());
        if let Some(parent) = parent {
            span.data(field::PARENT_SPAN_ID, &parent.to_be_bytes());
        }
        span.head(field::NAME, name.iter().map(|part| part.len()).sum());
        name.iter().for_each(|part| span.0.extend_from_slice(part.as_bytes()));
        int32::encode(field::KIND, &(kind as i32), &mut span.0);
        span.fixed64(field::START, start);
        // A clock that was set back must not make a negative duration.
        span.fixed64(field::END, end.max(start));
        span.sampled(field::FLAGS);
        span
    }

    /// Returns the spans, with the last one.
    pub fn finish(mut self) -> EncodedSpans {
        self.end();
        EncodedSpans(self.encoded)
    }

    fn end(&mut self) {
        if !self.span.0.is_empty() {
            append_data(&mut self.encoded, SPANS, &self.span.0);
            self.span.0.clear();
        }
    }
}

/// Spans that are complete, in the wire format.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EncodedSpans(Vec<u8>);

impl EncodedSpans {
    /// Appends others.
    pub fn append(&mut self, others: &Self) {
        self.0.extend_from_slice(&others.0);
    }
}

/// A span that is being made, in the wire format.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span(Vec<u8>);

impl Span {
    /// Adds an attribute.
    pub fn set<'a>(&mut self, key: &str, value: impl Into<SpanValue<'a>>) {
        const VALUE: u32 = 2;
        const TEXT: u32 = 1;
        const BOOL: u32 = 2;
        const INTEGER: u32 = 3;
        let (tag, number, text) = match value.into() {
            SpanValue::Text(text) => (TEXT, 0, Some(text)),
            SpanValue::Bool(value) => (BOOL, u64::from(value), None),
            SpanValue::Integer(number) => (INTEGER, number.min(i64::MAX as u64), None),
        };
        let value_len = match text {
            Some(text) => data_len(tag, text.len()),
            None => key_len(tag) + encoded_len_varint(number),
        };
        let attribute_len = data_len(1, key.len()) + data_len(VALUE, value_len);
        self.0.reserve(data_len(field::ATTRIBUTES, attribute_len));
        self.head(field::ATTRIBUTES, attribute_len);
        self.data(1, key.as_bytes());
        self.head(VALUE, value_len);
        match text {
            Some(text) => self.data(tag, text.as_bytes()),
            None => {
                encode_key(tag, WireType::Varint, &mut self.0);
                encode_varint(number, &mut self.0);
            }
        }
    }

    /// Adds a link to a span of any trace, which is exported as well.
    pub fn link(&mut self, trace_id: u128, span_id: u64) {
        const TRACE_ID: u32 = 1;
        const SPAN_ID: u32 = 2;
        const FLAGS: u32 = 6;
        let (trace_id, span_id) = (trace_id.to_be_bytes(), span_id.to_be_bytes());
        let ids_len = data_len(TRACE_ID, trace_id.len()) + data_len(SPAN_ID, span_id.len());
        self.head(field::LINKS, ids_len + key_len(FLAGS) + size_of::<u32>());
        self.data(TRACE_ID, &trace_id);
        self.data(SPAN_ID, &span_id);
        self.sampled(FLAGS);
    }

    /// Sets whether what the span stands for has failed.
    pub fn set_status(&mut self, status: SpanStatus) {
        const CODE: u32 = 3;
        const ERROR: i32 = 2;
        match status {
            SpanStatus::Unset => {}
            SpanStatus::Error => {
                self.head(field::STATUS, int32::encoded_len(CODE, &ERROR));
                int32::encode(CODE, &ERROR, &mut self.0);
            }
        }
    }

    /// Sets the W3C `tracestate` of the trace.
    pub fn set_trace_state(&mut self, state: &str) {
        self.data(field::TRACE_STATE, state.as_bytes());
    }

    fn head(&mut self, tag: u32, len: usize) {
        append_head(&mut self.0, tag, len);
    }

    fn data(&mut self, tag: u32, data: &[u8]) {
        append_data(&mut self.0, tag, data);
    }

    /// Appends the flags of a span that is sampled.
    fn sampled(&mut self, tag: u32) {
        encode_key(tag, WireType::ThirtyTwoBit, &mut self.0);
        self.0.extend_from_slice(&1_u32.to_le_bytes());
    }

    fn fixed64(&mut self, tag: u32, value: u64) {
        encode_key(tag, WireType::SixtyFourBit, &mut self.0);
        self.0.extend_from_slice(&value.to_le_bytes());
    }
}

/// Appends a field.
fn append_data(to: &mut Vec<u8>, tag: u32, data: &[u8]) {
    append_head(to, tag, data.len());
    to.extend_from_slice(data);
}

/// Appends the head of a field that has `len` bytes.
fn append_head(to: &mut Vec<u8>, tag: u32, len: usize) {
    // Nearly all of them: both numbers have one byte.
    if tag < 16 && len < 128 {
        let key = tag << 3 | WireType::LengthDelimited as u32;
        to.extend_from_slice(&[key as u8, len as u8]);
        return;
    }
    encode_key(tag, WireType::LengthDelimited, to);
    encode_varint(len as u64, to);
}

/// Returns the length of a field with `len` bytes of data, together with its head.
fn data_len(tag: u32, len: usize) -> usize {
    key_len(tag) + encoded_len_varint(len as u64) + len
}

/// Encodes an `ExportTraceServiceRequest`.
pub fn trace_request(resource: &Resource, spans: &EncodedSpans) -> Vec<u8> {
    const RESOURCE_SPANS: u32 = 1;
    const RESOURCE: u32 = 1;
    const SCOPE_SPANS: u32 = 2;
    const SCOPE: u32 = 1;
    let scope = Scope::this_program();
    let scope_spans = data_len(SCOPE, scope.encoded_len()) + spans.0.len();
    let resource_spans =
        data_len(RESOURCE, resource.encoded_len()) + data_len(SCOPE_SPANS, scope_spans);
    let mut request = Vec::with_capacity(data_len(RESOURCE_SPANS, resource_spans));
    append_head(&mut request, RESOURCE_SPANS, resource_spans);
    append_data(&mut request, RESOURCE, &resource.encode_to_vec());
    append_head(&mut request, SCOPE_SPANS, scope_spans);
    append_data(&mut request, SCOPE, &scope.encode_to_vec());
    request.extend_from_slice(&spans.0);
    request
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::messages::Attribute;

    #[derive(Clone, PartialEq, prost::Message)]
    struct TraceRequest {
        #[prost(message, repeated, tag = "1")]
        resource_spans: Vec<ResourceSpans>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    struct ResourceSpans {
        #[prost(message, optional, tag = "1")]
        resource: Option<Resource>,
        #[prost(message, repeated, tag = "2")]
        scope_spans: Vec<ScopeSpans>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    struct ScopeSpans {
        #[prost(message, optional, tag = "1")]
        scope: Option<Scope>,
        #[prost(bytes, repeated, tag = "2")]
        spans: Vec<Vec<u8>>,
    }

    #[test]
    fn spans_have_the_wire_format_of_the_protocol() {
        let mut spans = Spans::default();
        let ids = (0x0102, 0x0304, Some(0x05));
        let span = spans.begin(ids, &["n", "m"], SpanKind::Client, (7, 6));
        span.set("k", 300_u64);
        span.set("t", "x");
        span.set("b", true);
        span.link(0x0607, 0x08);
        span.set_status(SpanStatus::Error);
        span.set_trace_state("a=1");
        let expected = [
            // trace_id, span_id, parent_span_id
            &[0x0a, 16][..],
            &0x0102_u128.to_be_bytes(),
            &[0x12, 8],
            &0x0304_u64.to_be_bytes(),
            &[0x22, 8],
            &0x05_u64.to_be_bytes(),
            // name, kind, start, and an end that is not before it
            &[0x2a, 2, b'n', b'm', 0x30, 3],
            &[0x39, 7, 0, 0, 0, 0, 0, 0, 0, 0x41, 7, 0, 0, 0, 0, 0, 0, 0],
            // flags 1
            &[0x85, 0x01, 1, 0, 0, 0],
            // attributes: "k" is 300, "t" is "x", "b" is true
            &[0x4a, 8, 0x0a, 1, b'k', 0x12, 3, 0x18, 0xac, 0x02],
            &[0x4a, 8, 0x0a, 1, b't', 0x12, 3, 0x0a, 1, b'x'],
            &[0x4a, 7, 0x0a, 1, b'b', 0x12, 2, 0x10, 1],
            // a link: trace_id, span_id, flags 1
            &[0x6a, 33, 0x0a, 16],
            &0x0607_u128.to_be_bytes(),
            &[0x12, 8],
            &0x08_u64.to_be_bytes(),
            &[0x35, 1, 0, 0, 0],
            // status 2, trace state
            &[0x7a, 2, 0x18, 2, 0x1a, 3, b'a', b'=', b'1'],
        ];
        assert_eq!(span.0, expected.concat());
    }

    #[test]
    fn a_request_has_the_resource_the_scope_and_all_spans() {
        let resource = Resource { attributes: vec![Attribute::new("service.name", "s")] };
        for count in [0, 1, 300] {
            let name = "n".repeat(count);
            let mut spans = Spans::default();
            let mut encoded = Vec::new();
            for id in 0..count as u64 {
                let span = spans.begin((1, id, None), &[&name], SpanKind::Server, (1, 2));
                encoded.push(span.0.clone());
            }
            let spans = spans.finish();
            let mut twice = spans.clone();
            twice.append(&spans);
            let request = trace_request(&resource, &twice);
            let expected = [&encoded[..], &encoded[..]].concat();
            let decoded = TraceRequest::decode(request.as_slice()).unwrap();
            let [of_resource] = &decoded.resource_spans[..] else { panic!("{decoded:?}") };
            assert_eq!(of_resource.resource.as_ref(), Some(&resource));
            let [of_scope] = &of_resource.scope_spans[..] else { panic!("{decoded:?}") };
            assert_eq!(of_scope.scope, Some(Scope::this_program()));
            assert_eq!(of_scope.spans, expected, "{count}");
        }
    }
}
