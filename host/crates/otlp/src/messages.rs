//! The messages of traces, and what those of metrics share with them.

use prost::Message;

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

/// The value of an attribute.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Value {
    /// A text.
    #[prost(string, tag = "1")]
    Text(String),
    /// A boolean.
    #[prost(bool, tag = "2")]
    Bool(bool),
    /// An integer.
    #[prost(int64, tag = "3")]
    Integer(i64),
    /// A number.
    #[prost(double, tag = "4")]
    Number(f64),
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl From<u64> for Value {
    fn from(number: u64) -> Self {
        Self::Integer(i64::try_from(number).unwrap_or(i64::MAX))
    }
}

/// A name with a value.
#[derive(Clone, PartialEq, Message)]
pub struct Attribute {
    /// The name, for example `server.address`.
    #[prost(string, tag = "1")]
    pub key: String,
    #[prost(message, optional, tag = "2")]
    value: Option<AnyValue>,
}

impl Attribute {
    /// Creates an attribute.
    pub fn new(key: &str, value: impl Into<Value>) -> Self {
        Self { key: key.to_owned(), value: Some(AnyValue { value: Some(value.into()) }) }
    }
}

#[derive(Clone, PartialEq, Message)]
struct AnyValue {
    #[prost(oneof = "Value", tags = "1, 2, 3, 4")]
    value: Option<Value>,
}

/// What all spans and metrics of a process are about.
#[derive(Clone, PartialEq, Message)]
pub struct Resource {
    /// The attributes, among them `service.name`.
    #[prost(message, repeated, tag = "1")]
    pub attributes: Vec<Attribute>,
}

/// What has made spans or metrics.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Scope {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    version: String,
}

impl Scope {
    /// Returns this program.
    pub(crate) fn this_program() -> Self {
        Self { name: "pointsman".to_owned(), version: env!("CARGO_PKG_VERSION").to_owned() }
    }
}

/// A span. Times are nanoseconds since the Unix epoch.
#[derive(Clone, PartialEq, Message)]
pub struct Span {
    #[prost(bytes = "bytes", tag = "1")]
    trace_id: bytes::Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    span_id: bytes::Bytes,
    /// The W3C `tracestate` of the trace.
    #[prost(string, tag = "3")]
    pub trace_state: String,
    #[prost(bytes = "bytes", tag = "4")]
    parent_span_id: bytes::Bytes,
    #[prost(string, tag = "5")]
    name: String,
    #[prost(int32, tag = "6")]
    kind: i32,
    #[prost(fixed64, tag = "7")]
    start: u64,
    #[prost(fixed64, tag = "8")]
    end: u64,
    /// The attributes.
    #[prost(message, repeated, tag = "9")]
    pub attributes: Vec<Attribute>,
    #[prost(message, optional, tag = "15")]
    status: Option<Status>,
    #[prost(fixed32, tag = "16")]
    flags: u32,
}

#[derive(Clone, PartialEq, Message)]
struct Status {
    #[prost(int32, tag = "3")]
    code: i32,
}

impl Span {
    /// Creates a span of a trace that has the id `span_id` and, unless it is the first one of its
    /// trace, a parent.
    pub fn new(
        (trace_id, span_id, parent): (u128, u64, Option<u64>),
        name: impl Into<String>,
        kind: SpanKind,
        (start, end): (u64, u64),
    ) -> Self {
        let id = |id: u64| bytes::Bytes::copy_from_slice(&id.to_be_bytes());
        Self {
            trace_id: bytes::Bytes::copy_from_slice(&trace_id.to_be_bytes()),
            span_id: id(span_id),
            trace_state: String::new(),
            parent_span_id: parent.map(id).unwrap_or_default(),
            name: name.into(),
            kind: kind as i32,
            start,
            // A clock that was set back must not make a negative duration.
            end: end.max(start),
            attributes: Vec::new(),
            status: None,
            // Sampled.
            flags: 1,
        }
    }

    /// Adds an attribute.
    pub fn set(&mut self, key: &str, value: impl Into<Value>) {
        self.attributes.push(Attribute::new(key, value));
    }

    /// Sets whether what the span stands for has failed.
    pub fn set_status(&mut self, status: SpanStatus) {
        self.status = match status {
            SpanStatus::Unset => None,
            SpanStatus::Error => Some(Status { code: 2 }),
        };
    }
}

#[derive(Clone, PartialEq, Message)]
struct TraceRequest {
    #[prost(message, repeated, tag = "1")]
    resource_spans: Vec<ResourceSpans>,
}

#[derive(Clone, PartialEq, Message)]
struct ResourceSpans {
    #[prost(message, optional, tag = "1")]
    resource: Option<Resource>,
    #[prost(message, repeated, tag = "2")]
    scope_spans: Vec<ScopeSpans>,
}

#[derive(Clone, PartialEq, Message)]
struct ScopeSpans {
    #[prost(message, optional, tag = "1")]
    scope: Option<Scope>,
    #[prost(message, repeated, tag = "2")]
    spans: Vec<Span>,
}

/// Encodes an `ExportTraceServiceRequest`.
pub fn trace_request(resource: &Resource, spans: Vec<Span>) -> Vec<u8> {
    let scope_spans = ScopeSpans { scope: Some(Scope::this_program()), spans };
    let resource = Some(resource.clone());
    let resource_spans = ResourceSpans { resource, scope_spans: vec![scope_spans] };
    TraceRequest { resource_spans: vec![resource_spans] }.encode_to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_have_the_wire_format_of_the_protocol() {
        let mut span = Span::new((0x0102, 0x0304, Some(0x05)), "n", SpanKind::Client, (7, 6));
        span.set("k", 300_u64);
        span.set_status(SpanStatus::Error);
        let bytes = span.encode_to_vec();
        let expected = [
            // trace_id, span_id, parent_span_id
            &[0x0a, 16][..],
            &0x0102_u128.to_be_bytes(),
            &[0x12, 8],
            &0x0304_u64.to_be_bytes(),
            &[0x22, 8],
            &0x05_u64.to_be_bytes(),
            // name, kind, start, and an end that is not before it
            &[0x2a, 1, b'n', 0x30, 3],
            &[0x39, 7, 0, 0, 0, 0, 0, 0, 0, 0x41, 7, 0, 0, 0, 0, 0, 0, 0],
            // attributes: "k" is 300
            &[0x4a, 8, 0x0a, 1, b'k', 0x12, 3, 0x18, 0xac, 0x02],
            // status 2, flags 1
            &[0x7a, 2, 0x18, 2, 0x85, 0x01, 1, 0, 0, 0],
        ];
        assert_eq!(bytes, expected.concat());
        let resource = Resource { attributes: vec![Attribute::new("service.name", "s")] };
        let request = trace_request(&resource, vec![span.clone()]);
        let decoded = TraceRequest::decode(request.as_slice()).unwrap();
        let [of_resource] = &decoded.resource_spans[..] else { panic!("{decoded:?}") };
        assert_eq!(of_resource.resource.as_ref(), Some(&resource));
        assert_eq!(of_resource.scope_spans[0].spans, [span]);
    }
}
