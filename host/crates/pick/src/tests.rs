//! The service with a client in the same process, in the place of Envoy.

mod backend;
mod counts;
mod orders;
mod service;
mod wire;

use std::net::SocketAddr;
use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3::{self as core, Metadata};
use envoy_types::pb::envoy::service::ext_proc::v3::external_processor_client as client;
use envoy_types::pb::envoy::service::ext_proc::v3::processing_request::Request as Message;
use envoy_types::pb::envoy::service::ext_proc::v3::processing_response::Response as Answer;
use envoy_types::pb::envoy::service::ext_proc::v3::{
    CommonResponse, HttpBody, HttpHeaders, HttpTrailers, ImmediateResponse, ProcessingRequest,
    ProcessingResponse, ProtocolConfiguration, body_mutation,
};
use envoy_types::pb::google::protobuf::{Struct, Value, value};
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, Streaming};

use self::backend::TestBackend;
use self::client::ExternalProcessorClient;
use crate::metrics::PickMetrics;
use crate::service::{Limits, Shutdown, serve};

/// Values of `BodySendMode`.
const BUFFERED: i32 = 2;
const FULL_DUPLEX: i32 = 4;

/// A service that is running.
struct Picker {
    address: SocketAddr,
    shutdown: Shutdown,
    /// What the backend notes.
    notes: mpsc::UnboundedReceiver<String>,
    registry: Registry,
    tasks: JoinSet<()>,
}

impl Picker {
    async fn start() -> Self {
        Self::with_limits(Limits { max_streams: 10, max_body: 100_000 }).await
    }

    async fn with_limits(limits: Limits) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = Shutdown {
            retiring: CancellationToken::new(),
            stopping: CancellationToken::new(),
            closing: CancellationToken::new(),
        };
        let (sender, notes) = mpsc::unbounded_channel();
        let (backend, phases) = (Arc::new(TestBackend::new(sender)), shutdown.clone());
        let mut registry = Registry::default();
        let served = (backend, PickMetrics::register(&mut registry));
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { serve(listener, served, limits, phases).await.unwrap() });
        Self { address, shutdown, notes, registry, tasks }
    }

    /// Returns the value of a series, with its labels if it has some; 0 if it is not there.
    fn metric(&self, series: &str) -> f64 {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.map_or(0.0, |value| value.parse().unwrap())
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Opens a stream.
    async fn open(&self) -> Client {
        let mut client = ExternalProcessorClient::connect(self.url()).await.unwrap();
        let (messages, receiver) = mpsc::channel(64);
        let outgoing = futures_util::stream::unfold(receiver, |mut receiver| async move {
            receiver.recv().await.map(|message| (message, receiver))
        });
        let (connection, mut opening) = (Some(client.clone()), JoinSet::new());
        opening.spawn(async move { Ok(client.process(outgoing).await?.into_inner()) });
        Client { messages: Some(messages), opening, answers: None, connection }
    }

    /// Waits for the next note of the backend.
    async fn note(&mut self) -> String {
        self.notes.recv().await.unwrap()
    }
}

/// One stream, as Envoy has it for a request.
struct Client {
    messages: Option<mpsc::Sender<ProcessingRequest>>,
    /// Ends with the first answer.
    opening: JoinSet<Result<Streaming<ProcessingResponse>, Status>>,
    answers: Option<Streaming<ProcessingResponse>>,
    connection: Option<ExternalProcessorClient<tonic::transport::Channel>>,
}

impl Client {
    async fn send(&self, message: ProcessingRequest) {
        // Fails only if the service has ended the stream, which the test sees from the answers.
        self.messages.as_ref().unwrap().send(message).await.ok();
    }

    /// Sends the head of a request for this path.
    async fn head(&self, path: &str, is_over: bool) {
        self.send(head(path, FULL_DUPLEX, is_over)).await;
    }

    async fn body(&self, text: &str, is_over: bool) {
        self.send(body(Message::RequestBody, text, is_over)).await;
    }

    async fn response_head(&self, served: Option<&str>, is_over: bool) {
        let pairs = [(":status", "200"), ("content-type", "text/event-stream"), ("x-secret", "1")];
        let headers = headers(&pairs, is_over);
        let mut message = message(Message::ResponseHeaders(headers));
        message.metadata_context = served.map(|served| {
            let served = value::Kind::StringValue(served.to_owned());
            metadata("envoy.lb", "x-gateway-destination-endpoint-served", served)
        });
        self.send(message).await;
    }

    async fn response_body(&self, text: &str, is_over: bool) {
        self.send(body(Message::ResponseBody, text, is_over)).await;
    }

    /// Returns the next answer; `None` at the end.
    async fn next(&mut self) -> Result<Option<ProcessingResponse>, Status> {
        let answers = match &mut self.answers {
            Some(answers) => answers,
            None => self.answers.insert(self.opening.join_next().await.unwrap().unwrap()?),
        };
        answers.message().await
    }

    /// Returns the next answer.
    async fn answer(&mut self) -> ProcessingResponse {
        self.next().await.unwrap().expect("an answer")
    }

    /// Returns what the stream ends with.
    async fn end(&mut self) -> Result<(), Status> {
        loop {
            match self.next().await {
                Ok(Some(_)) => {}
                Ok(None) => return Ok(()),
                Err(status) => return Err(status),
            }
        }
    }

    async fn code(&mut self) -> Code {
        self.end().await.unwrap_err().code()
    }

    /// Returns the streamed body from the next answers, to its end, and the number of chunks.
    async fn streamed(&mut self) -> (String, usize) {
        let (mut text, mut chunks) = (String::new(), 0);
        loop {
            let (body, is_over) = self.chunk().await;
            chunks += usize::from(!body.is_empty());
            text.push_str(&body);
            if is_over {
                return (text, chunks);
            }
        }
    }

    /// Returns the next chunk, and whether it is the last one.
    async fn chunk(&mut self) -> (String, bool) {
        let common = match self.answer().await.response.unwrap() {
            Answer::RequestBody(body) | Answer::ResponseBody(body) => body.response.unwrap(),
            other => panic!("not a body: {other:?}"),
        };
        match common.body_mutation.unwrap().mutation.unwrap() {
            body_mutation::Mutation::StreamedResponse(chunk) => {
                (String::from_utf8(chunk.body).unwrap(), chunk.end_of_stream)
            }
            other => panic!("not streamed: {other:?}"),
        }
    }
}

fn message(request: Message) -> ProcessingRequest {
    ProcessingRequest { request: Some(request), ..ProcessingRequest::default() }
}

fn headers(pairs: &[(&str, &str)], end_of_stream: bool) -> HttpHeaders {
    let pair = |(key, value): &(&str, &str)| core::HeaderValue {
        key: (*key).to_owned(),
        raw_value: value.as_bytes().to_vec(),
        ..core::HeaderValue::default()
    };
    let headers = Some(core::HeaderMap { headers: pairs.iter().map(pair).collect() });
    HttpHeaders { headers, end_of_stream, ..HttpHeaders::default() }
}

fn head(path: &str, request_body_mode: i32, is_over: bool) -> ProcessingRequest {
    let pairs = [
        (":method", "POST"),
        (":path", path),
        (":authority", "router"),
        ("content-length", "3"),
        ("authorization", "Bearer client"),
    ];
    let mut message = message(Message::RequestHeaders(headers(&pairs, is_over)));
    message.protocol_config = Some(ProtocolConfiguration {
        request_body_mode,
        response_body_mode: FULL_DUPLEX,
        ..ProtocolConfiguration::default()
    });
    message
}

fn body(kind: fn(HttpBody) -> Message, text: &str, end_of_stream: bool) -> ProcessingRequest {
    let body = text.as_bytes().to_vec();
    message(kind(HttpBody { body, end_of_stream, ..HttpBody::default() }))
}

fn trailers(kind: fn(HttpTrailers) -> Message) -> ProcessingRequest {
    message(kind(HttpTrailers::default()))
}

fn metadata(namespace: &str, key: &str, kind: value::Kind) -> Metadata {
    let fields = [(key.to_owned(), Value { kind: Some(kind) })].into_iter().collect();
    let filter_metadata = [(namespace.to_owned(), Struct { fields })].into_iter().collect();
    Metadata { filter_metadata, ..Metadata::default() }
}

/// Returns the answer to the head of a message.
fn of_head(answer: ProcessingResponse) -> CommonResponse {
    match answer.response.unwrap() {
        Answer::RequestHeaders(headers) | Answer::ResponseHeaders(headers) => {
            headers.response.unwrap()
        }
        other => panic!("not headers: {other:?}"),
    }
}

fn immediate(answer: ProcessingResponse) -> ImmediateResponse {
    match answer.response.unwrap() {
        Answer::ImmediateResponse(response) => response,
        other => panic!("not an immediate response: {other:?}"),
    }
}

/// Returns the headers that an answer sets.
fn set(common: &CommonResponse) -> Vec<(String, String)> {
    let mutation = common.header_mutation.as_ref().unwrap();
    let pair = |option: &core::HeaderValueOption| {
        let header = option.header.clone().unwrap();
        (header.key, String::from_utf8(header.raw_value).unwrap())
    };
    mutation.set_headers.iter().map(pair).collect()
}
