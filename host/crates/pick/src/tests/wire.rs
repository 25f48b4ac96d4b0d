//! Bytes of messages, so that a newer version of the generated code does not change them unseen.

use envoy_types::pb::envoy::service::ext_proc::v3::HeaderMutation;
use prost::Message as _;

use crate::message::{self, Of};

fn hex(message: &super::ProcessingResponse) -> String {
    message.encode_to_vec().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn endpoints_are_in_header_and_metadata() {
    let (common, metadata) = message::with_endpoints(HeaderMutation::default(), "10.0.0.1:80");
    let mut answer = message::head(Of::Request, common);
    answer.dynamic_metadata = Some(metadata);
    let text = String::from_utf8_lossy(&answer.encode_to_vec()).into_owned();
    assert_eq!(text.matches("x-gateway-destination-endpoint").count(), 2, "{text}");
    assert_eq!(hex(&answer), ENDPOINTS);
}

#[test]
fn last_chunk_and_immediate_response() {
    let chunk = message::chunks(Of::Response, &"ab".into(), true).next().unwrap();
    assert_eq!(hex(&chunk), "220c0a0a1a081a060a0261621001");
    let headers = http::HeaderMap::new();
    let immediate = message::immediate(http::StatusCode::TOO_MANY_REQUESTS, &headers, "no".into());
    assert_eq!(hex(&immediate), "3a0b0a0308ad0312001a026e6f");
}

/// Made by the classes that protoc generates for Python.
const ENDPOINTS: &str = "\
    0a370a3512330a310a2d0a1e782d676174657761792d64657374696e6174696f6e2d656e64706f696e74\
    1a0b31302e302e302e313a3830180242410a3f0a08656e766f792e6c6212332a310a2f0a1e782d676174\
    657761792d64657374696e6174696f6e2d656e64706f696e74120d1a0b31302e302e302e313a3830";
