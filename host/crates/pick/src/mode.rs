//! How the proxy sends bodies.

use envoy_types::pb::envoy::extensions::filters::http::ext_proc::v3::processing_mode::BodySendMode;
use envoy_types::pb::envoy::service::ext_proc::v3::ProtocolConfiguration;
use tonic::Status;

/// How the proxy sends the body of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RequestMode {
    /// In chunks, without waiting for responses.
    FullDuplex,
    /// As a whole, after the response to the head.
    Buffered,
}

/// `FULL_DUPLEX_STREAMED`, which the generated code may not have yet.
const FULL_DUPLEX_STREAMED: i32 = 4;

/// Returns how the proxy sends the bodies of requests. Without a configuration, which old proxies
/// do not send, it is as the protocol demands.
///
/// # Errors
/// If a body is sent in a mode that the picker does not support.
pub(crate) fn request_mode(
    configuration: Option<&ProtocolConfiguration>,
) -> Result<RequestMode, Status> {
    let Some(configuration) = configuration else { return Ok(RequestMode::FullDuplex) };
    let unsupported = |key: &str, mode: i32, expected: &str| {
        let mode = BodySendMode::try_from(mode).map_or("unknown", |mode| mode.as_str_name());
        Status::failed_precondition(format!("unsupported `{key}: {mode}`: expected {expected}"))
    };
    if configuration.response_body_mode != FULL_DUPLEX_STREAMED {
        let mode = configuration.response_body_mode;
        return Err(unsupported("response_body_mode", mode, "FULL_DUPLEX_STREAMED"));
    }
    match configuration.request_body_mode {
        FULL_DUPLEX_STREAMED => Ok(RequestMode::FullDuplex),
        mode if mode == BodySendMode::Buffered as i32 => Ok(RequestMode::Buffered),
        mode => {
            let expected = "FULL_DUPLEX_STREAMED or BUFFERED";
            Err(unsupported("request_body_mode", mode, expected))
        }
    }
}
