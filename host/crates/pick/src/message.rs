//! The picker's messages to the proxy.

use bytes::Bytes;
use envoy_types::pb::envoy::config::core::v3::Metadata;
use envoy_types::pb::envoy::service::ext_proc::v3::{
    BodyMutation, BodyResponse, CommonResponse, HeaderMutation, HeadersResponse, ImmediateResponse,
    ProcessingResponse, StreamedBodyResponse, TrailersResponse, body_mutation,
    processing_response::Response as Kind,
};
use envoy_types::pb::envoy::r#type::v3::HttpStatus;
use envoy_types::pb::google::protobuf::value::Kind as ValueKind;
use envoy_types::pb::google::protobuf::{Struct, Value};
use http::{HeaderMap, StatusCode};

use crate::headers::{self, DESTINATION};

/// The namespace of the endpoints in the metadata.
const NAMESPACE: &str = "envoy.lb";
/// The namespace of the only endpoints that the proxy can use.
const SUBSET_NAMESPACE: &str = "envoy.lb.subset_hint";
/// The only endpoints that the proxy can use.
const SUBSET: &str = "x-gateway-destination-endpoint-subset";
/// The endpoint that has served the request.
const SERVED: &str = "x-gateway-destination-endpoint-served";

/// Maximum number of bytes in a chunk of a body. Some proxies take at most 64 KiB.
const MAX_CHUNK: usize = 62_000;

/// Returns the message that names the endpoints with the head of a request.
pub(crate) fn with_endpoints(
    mut mutation: HeaderMutation,
    endpoints: &str,
) -> (CommonResponse, Struct) {
    headers::set(&mut mutation, DESTINATION, endpoints);
    let common = CommonResponse { header_mutation: Some(mutation), ..CommonResponse::default() };
    let value = |kind| Value { kind: Some(kind) };
    let inner = [(DESTINATION.to_owned(), value(ValueKind::StringValue(endpoints.to_owned())))];
    let inner = Struct { fields: inner.into_iter().collect() };
    let outer = [(NAMESPACE.to_owned(), value(ValueKind::StructValue(inner)))];
    (common, Struct { fields: outer.into_iter().collect() })
}

/// Returns the only endpoints that the proxy can use; `None` for all.
pub(crate) fn subset(metadata: Option<&Metadata>) -> Option<Vec<String>> {
    let value = metadata?.filter_metadata.get(SUBSET_NAMESPACE)?.fields.get(SUBSET)?;
    let text = |value: &Value| match &value.kind {
        Some(ValueKind::StringValue(text)) => Some(text.clone()),
        _ => None,
    };
    Some(match &value.kind {
        Some(ValueKind::ListValue(list)) => list.values.iter().filter_map(text).collect(),
        Some(ValueKind::StringValue(list)) => {
            let endpoints = list.split(',').map(str::trim).filter(|endpoint| !endpoint.is_empty());
            endpoints.map(str::to_owned).collect()
        }
        // Set, and names no endpoint.
        _ => Vec::new(),
    })
}

/// Returns the endpoint that has served a request; `None` if the proxy does not say it.
pub(crate) fn served(metadata: Option<&Metadata>) -> Option<String> {
    let value = metadata?.filter_metadata.get(NAMESPACE)?.fields.get(SERVED)?;
    match &value.kind {
        Some(ValueKind::StringValue(endpoint)) => {
            Some(endpoint.clone()).filter(|endpoint| !endpoint.is_empty())
        }
        _ => None,
    }
}

/// Whose message it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Of {
    Request,
    Response,
}

/// Returns the answer to the head of a message.
pub(crate) fn head(of: Of, common: CommonResponse) -> ProcessingResponse {
    let headers = HeadersResponse { response: Some(common) };
    let kind = match of {
        Of::Request => Kind::RequestHeaders(headers),
        Of::Response => Kind::ResponseHeaders(headers),
    };
    ProcessingResponse { response: Some(kind), ..ProcessingResponse::default() }
}

/// Returns the answer to a body that was sent as a whole.
pub(crate) fn whole_body(mut common: CommonResponse, body: Bytes) -> ProcessingResponse {
    let mutation = Some(body_mutation::Mutation::Body(body.into()));
    common.body_mutation = Some(BodyMutation { mutation });
    let body = Kind::RequestBody(BodyResponse { response: Some(common) });
    ProcessingResponse { response: Some(body), ..ProcessingResponse::default() }
}

/// Returns the chunks of a part of a body, of which the last one ends it if `is_last`.
pub(crate) fn chunks(
    of: Of,
    data: &Bytes,
    is_last: bool,
) -> impl Iterator<Item = ProcessingResponse> {
    // An empty chunk only ends the body.
    let count = data.len().div_ceil(MAX_CHUNK).max(usize::from(is_last));
    (0..count).map(move |index| {
        let (start, end) = (index * MAX_CHUNK, ((index + 1) * MAX_CHUNK).min(data.len()));
        let end_of_stream = is_last && index + 1 == count;
        let body = data.get(start..end).unwrap_or_default().to_vec();
        let streamed = StreamedBodyResponse { body, end_of_stream, ..Default::default() };
        let mutation = Some(body_mutation::Mutation::StreamedResponse(streamed));
        let body_mutation = Some(BodyMutation { mutation });
        let response = Some(CommonResponse { body_mutation, ..CommonResponse::default() });
        let kind = match of {
            Of::Request => Kind::RequestBody(BodyResponse { response }),
            Of::Response => Kind::ResponseBody(BodyResponse { response }),
        };
        ProcessingResponse { response: Some(kind), ..ProcessingResponse::default() }
    })
}

/// Returns the answer to trailers, which stay as they are.
pub(crate) fn trailers(of: Of) -> ProcessingResponse {
    let trailers = TrailersResponse::default();
    let kind = match of {
        Of::Request => Kind::RequestTrailers(trailers),
        Of::Response => Kind::ResponseTrailers(trailers),
    };
    ProcessingResponse { response: Some(kind), ..ProcessingResponse::default() }
}

/// Returns the message by which the proxy responds to the client itself.
pub(crate) fn immediate(
    status: StatusCode,
    headers: &HeaderMap,
    body: Bytes,
) -> ProcessingResponse {
    let mut mutation = headers::mutation(&HeaderMap::new(), headers);
    mutation.remove_headers.clear();
    let response = ImmediateResponse {
        status: Some(HttpStatus { code: i32::from(status.as_u16()) }),
        headers: Some(mutation),
        body: body.into(),
        ..ImmediateResponse::default()
    };
    let kind = Kind::ImmediateResponse(response);
    ProcessingResponse { response: Some(kind), ..ProcessingResponse::default() }
}
