//! What the messages of traces and metrics share.

use prost::Message;

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
    pub fn new(key: &str, value: &str) -> Self {
        Self { key: key.to_owned(), value: Some(AnyValue { text: Some(value.to_owned()) }) }
    }
}

#[derive(Clone, PartialEq, Message)]
struct AnyValue {
    #[prost(string, optional, tag = "1")]
    text: Option<String>,
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
