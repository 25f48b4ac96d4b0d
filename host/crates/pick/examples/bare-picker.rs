//! The least that a picker in Rust does: it names the same endpoint for each request, and passes
//! bodies on as they are. `cargo xtask bench pick` runs it as the floor of what a picker costs.
//!
//! ```text
//!   bare-picker PORT ENDPOINT
//! ```

use std::error::Error;
use std::pin::Pin;

use envoy_types::pb::envoy::config::core::v3::{HeaderValue, HeaderValueOption};
use envoy_types::pb::envoy::extensions::filters::http::ext_proc::v3::processing_mode::BodySendMode;
use envoy_types::pb::envoy::service::ext_proc::v3::external_processor_server::{
    ExternalProcessor, ExternalProcessorServer,
};
use envoy_types::pb::envoy::service::ext_proc::v3::processing_request::Request as Message;
use envoy_types::pb::envoy::service::ext_proc::v3::processing_response::Response as Answer;
use envoy_types::pb::envoy::service::ext_proc::v3::{
    BodyMutation, BodyResponse, CommonResponse, HeaderMutation, HeadersResponse, HttpBody,
    ProcessingRequest, ProcessingResponse, StreamedBodyResponse, TrailersResponse,
    body_mutation::Mutation,
};
use envoy_types::pb::google::protobuf::{Struct, Value, value::Kind};
use futures_util::{Stream, StreamExt as _};
use tokio::net::TcpListener;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};

const DESTINATION: &str = "x-gateway-destination-endpoint";

struct Picker {
    endpoint: String,
}

type Answers = Pin<Box<dyn Stream<Item = Result<ProcessingResponse, Status>> + Send>>;

#[tonic::async_trait]
impl ExternalProcessor for Picker {
    type ProcessStream = Answers;

    async fn process(
        &self,
        request: Request<Streaming<ProcessingRequest>>,
    ) -> Result<Response<Answers>, Status> {
        let endpoint = self.endpoint.clone();
        // Only the first message says it.
        let mut is_buffered = false;
        let answers = request.into_inner().map(move |message| {
            let message = message?;
            let mode = message.protocol_config.as_ref().map(|config| config.request_body_mode);
            is_buffered |= mode == Some(BodySendMode::Buffered as i32);
            Ok(answer(message, &endpoint, is_buffered))
        });
        Ok(Response::new(Box::pin(answers)))
    }
}

fn answer(message: ProcessingRequest, endpoint: &str, is_buffered: bool) -> ProcessingResponse {
    let mut answer = ProcessingResponse::default();
    answer.response = message.request.map(|message| match message {
        Message::RequestHeaders(_) => {
            answer.dynamic_metadata = Some(metadata(endpoint));
            let header_mutation = Some(mutation(endpoint));
            let response = Some(CommonResponse { header_mutation, ..CommonResponse::default() });
            Answer::RequestHeaders(HeadersResponse { response })
        }
        Message::RequestBody(_) if is_buffered => Answer::RequestBody(BodyResponse::default()),
        Message::RequestBody(body) => Answer::RequestBody(same(body)),
        Message::RequestTrailers(_) => Answer::RequestTrailers(TrailersResponse::default()),
        Message::ResponseHeaders(_) => Answer::ResponseHeaders(HeadersResponse::default()),
        Message::ResponseBody(body) => Answer::ResponseBody(same(body)),
        Message::ResponseTrailers(_) => Answer::ResponseTrailers(TrailersResponse::default()),
    });
    answer
}

fn same(HttpBody { body, end_of_stream, .. }: HttpBody) -> BodyResponse {
    let streamed = StreamedBodyResponse { body, end_of_stream, ..Default::default() };
    let mutation = Some(Mutation::StreamedResponse(streamed));
    let body_mutation = Some(BodyMutation { mutation });
    BodyResponse { response: Some(CommonResponse { body_mutation, ..CommonResponse::default() }) }
}

fn mutation(endpoint: &str) -> HeaderMutation {
    let (key, raw_value) = (DESTINATION.to_owned(), endpoint.as_bytes().to_vec());
    let header = Some(HeaderValue { key, raw_value, ..HeaderValue::default() });
    let set_headers = vec![HeaderValueOption { header, ..HeaderValueOption::default() }];
    HeaderMutation { set_headers, ..HeaderMutation::default() }
}

fn metadata(endpoint: &str) -> Struct {
    let nested = |name: &str, kind| Struct {
        fields: [(name.to_owned(), Value { kind: Some(kind) })].into_iter().collect(),
    };
    let inner = nested(DESTINATION, Kind::StringValue(endpoint.to_owned()));
    nested("envoy.lb", Kind::StructValue(inner))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [port, endpoint] = arguments.as_slice() else {
        return Err("expected PORT ENDPOINT".into());
    };
    let listener = TcpListener::bind(("127.0.0.1", port.parse::<u16>()?)).await?;
    let picker = ExternalProcessorServer::new(Picker { endpoint: endpoint.clone() });
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    Server::builder().add_service(picker).serve_with_incoming(incoming).await?;
    Ok(())
}
