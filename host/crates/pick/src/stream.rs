//! One request of a proxy: the messages of its stream, in the order of the protocol.
//!
//! ```text
//!   request head, body ──> begin ──┬──> endpoints ──> response head, body ──> client's response
//!                                  └──> immediate response
//!   a stream that ends before that is a client that hangs up
//! ```
//!
//! The backend's future is polled all the time: it may respond at any time before the head of the
//! engine's response was passed on.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use envoy_types::pb::envoy::service::ext_proc::v3::{
    CommonResponse, HttpBody, HttpHeaders, ProcessingRequest, ProcessingResponse,
    processing_request::Request as Message,
};
use futures_util::{Stream, StreamExt as _};
use http::{HeaderMap, Request, Response};
use http_body_util::BodyExt as _;
use pointsman_fleet::{ProxiedBody, ProxiedRequest, ProxiedResponse, ProxiedSender, proxied_body};
use tokio::sync::mpsc;
use tonic::Status;

use crate::backend::{Backend, Exchange, ResponseBody, ServedResponse};
use crate::headers::{self, MessageHead};
use crate::message::{self, Of};
use crate::metrics::{Decision, PickMetrics};
use crate::mode::{RequestMode, request_mode};

/// Maximum time until the first message of a stream: a proxy opens one when it has a request.
const FIRST_MESSAGE_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum size in bytes of a response that the host makes itself.
const MAX_IMMEDIATE_BODY: usize = 4 << 20;

/// Answers the messages of one stream.
pub(crate) struct ExchangeStream<S> {
    messages: S,
    answers: mpsc::Sender<ProcessingResponse>,
    metrics: PickMetrics,
}

/// Why a stream ends early.
enum Ended {
    /// The proxy has ended it: the client is gone.
    ByProxy,
    With(Status),
}

impl From<Status> for Ended {
    fn from(status: Status) -> Self {
        Self::With(status)
    }
}

/// A message that the protocol does not allow here.
fn unexpected(expected: &str) -> Ended {
    Status::invalid_argument(format!("unexpected message: expected {expected}")).into()
}

/// The end of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum BodyEnd {
    Open,
    Ended,
    WithTrailers,
}

impl<S> ExchangeStream<S>
where
    S: Stream<Item = Result<ProcessingRequest, Status>> + Unpin + Send,
{
    pub(crate) fn new(
        messages: S,
        answers: mpsc::Sender<ProcessingResponse>,
        metrics: PickMetrics,
    ) -> Self {
        Self { messages, answers, metrics }
    }

    /// Answers the messages until the request has ended.
    ///
    /// # Errors
    /// If the proxy does not keep to the protocol, or the engine's response breaks off.
    pub(crate) async fn run(mut self, backend: Arc<impl Backend>) -> Result<(), Status> {
        match self.serve(backend).await {
            Ok(()) | Err(Ended::ByProxy) => Ok(()),
            Err(Ended::With(status)) => Err(status),
        }
    }

    async fn serve(&mut self, backend: Arc<impl Backend>) -> Result<(), Ended> {
        let first = tokio::time::timeout(FIRST_MESSAGE_TIMEOUT, self.next()).await;
        let first = first.map_err(|_| Status::deadline_exceeded("expected request headers"))??;
        let mode = request_mode(first.protocol_config.as_ref())?;
        let subset = message::subset(first.metadata_context.as_ref());
        let Some(Message::RequestHeaders(HttpHeaders { headers, end_of_stream, .. })) =
            first.request
        else {
            return Err(unexpected("request headers"));
        };
        let head = headers::read(headers)?;
        if mode == RequestMode::Buffered && !end_of_stream {
            self.send(message::head(Of::Request, CommonResponse::default())).await?;
        }
        let (body, received) = proxied_body();
        let undecided = self.metrics.begin();
        let exchange = backend.begin(request(&head, received), subset);
        let received = self.receive(exchange, body, end_of_stream).await;
        undecided.end(match &received {
            Ok(Ok(_)) => Decision::Picked,
            Ok(Err(_)) => Decision::Answered,
            Err(Ended::ByProxy) => Decision::ClientGone,
            Err(Ended::With(_)) => Decision::Failed,
        });
        match received? {
            Ok((exchange, sent, end)) => {
                let is_whole = mode == RequestMode::Buffered && !end_of_stream;
                self.pass_on_request(&head.headers, sent, is_whole, end).await?;
                self.respond(exchange).await
            }
            Err(served) => self.respond_immediately(served).await,
        }
    }

    /// Returns the next message.
    async fn next(&mut self) -> Result<ProcessingRequest, Ended> {
        match self.messages.next().await {
            Some(Ok(message)) => Ok(message),
            // A client that hangs up while the proxy waits.
            Some(Err(_)) | None => Err(Ended::ByProxy),
        }
    }

    async fn send(&self, answer: ProcessingResponse) -> Result<(), Ended> {
        self.answers.send(answer).await.map_err(|_| Ended::ByProxy)
    }

    /// Receives the body of a request until it is known to which endpoints it is sent, or how it is
    /// answered without one.
    async fn receive(
        &mut self,
        mut exchange: Exchange,
        body: ProxiedSender,
        is_over: bool,
    ) -> Result<Result<(Exchange, ProxiedRequest, BodyEnd), ServedResponse>, Ended> {
        let mut body = Some(body);
        let (mut end, mut is_refused) = (BodyEnd::Open, false);
        if is_over {
            body.take().into_iter().for_each(ProxiedSender::end);
            end = BodyEnd::Ended;
        }
        loop {
            tokio::select! {
                biased;
                sent = &mut exchange.side.request, if !is_refused => match sent {
                    Ok(sent) => return Ok(Ok((exchange, sent, end))),
                    // The response follows.
                    Err(_) => is_refused = true,
                },
                served = &mut exchange.serving => return Ok(Err(served)),
                message = next_with_space(&mut self.messages, body.as_ref()) => {
                    match message?.request {
                        Some(Message::RequestBody(chunk)) if end == BodyEnd::Open => {
                            end = feed(&mut body, chunk);
                        }
                        Some(Message::RequestTrailers(_)) if end == BodyEnd::Open => {
                            body.take().into_iter().for_each(ProxiedSender::end);
                            end = BodyEnd::WithTrailers;
                        }
                        _ => return Err(unexpected("the body of the request")),
                    }
                }
            }
        }
    }

    /// Tells the proxy the endpoints, and the request as the engine gets it.
    async fn pass_on_request(
        &self,
        old: &HeaderMap,
        sent: ProxiedRequest,
        is_whole: bool,
        end: BodyEnd,
    ) -> Result<(), Ended> {
        let ProxiedRequest { endpoint, fallbacks, request, .. } = sent;
        let (parts, body) = request.into_parts();
        let mut mutation = headers::mutation(old, &parts.headers);
        let path = parts.uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
        headers::set(&mut mutation, ":path", path);
        headers::set(&mut mutation, headers::MAX_RETRIES, &fallbacks.len().to_string());
        let endpoints: Vec<String> = std::iter::once(endpoint).chain(fallbacks).collect();
        let (common, metadata) = message::with_endpoints(mutation, &endpoints.join(","));
        let body = body.collect().await;
        let body = body.map_err(|error| Status::internal(format!("failed to read: {error}")))?;
        let body = body.to_bytes();
        let metadata = Some(metadata);
        if is_whole {
            let answer = message::whole_body(common, body);
            return self.send(ProcessingResponse { dynamic_metadata: metadata, ..answer }).await;
        }
        let answer = message::head(Of::Request, common);
        self.send(ProcessingResponse { dynamic_metadata: metadata, ..answer }).await?;
        for chunk in message::chunks(Of::Request, &body, end != BodyEnd::WithTrailers) {
            self.send(chunk).await?;
        }
        if end == BodyEnd::WithTrailers {
            self.send(message::trailers(Of::Request)).await?;
        }
        Ok(())
    }

    /// Passes on the engine's response, as far as it is the client's.
    async fn respond(&mut self, exchange: Exchange) -> Result<(), Ended> {
        let Exchange { mut serving, side, guard } = exchange;
        let message = tokio::select! {
            biased;
            // The time is over, or the operator has cancelled the request.
            served = &mut serving => return self.respond_immediately(served).await,
            message = self.next() => message?,
        };
        let served = message::served(message.metadata_context.as_ref());
        let Some(Message::ResponseHeaders(HttpHeaders { headers, end_of_stream, .. })) =
            message.request
        else {
            return Err(unexpected("response headers"));
        };
        let head = headers::read(headers)?;
        let (body, received) = proxied_body();
        let mut body = Some(body);
        let mut end = BodyEnd::Open;
        let response = response(&head, received);
        // Fails only if the attempt has ended meanwhile, and the request with it.
        side.response.send(ProxiedResponse { served, response }).ok();
        if end_of_stream {
            body.take().into_iter().for_each(ProxiedSender::end);
            end = BodyEnd::Ended;
        }
        let served = loop {
            tokio::select! {
                biased;
                served = &mut serving => break served,
                message = next_with_space(&mut self.messages, body.as_ref()) => {
                    end = receive_response(&mut body, message?, end)?;
                }
            }
        };
        let is_engines = served.is_from_engine && served.response.status() == head.status;
        if !is_engines {
            return self.respond_immediately(served).await;
        }
        let (parts, rest) = served.response.into_parts();
        let mutation = headers::mutation(&head.headers, &parts.headers);
        let common =
            CommonResponse { header_mutation: Some(mutation), ..CommonResponse::default() };
        self.send(message::head(Of::Response, common)).await?;
        if !end_of_stream {
            self.pass_on_body(rest, body, end).await?;
        }
        drop(guard);
        Ok(())
    }

    /// Passes on the body of the client's response, while the engine's arrives.
    async fn pass_on_body(
        &mut self,
        mut rest: ResponseBody,
        mut body: Option<ProxiedSender>,
        mut end: BodyEnd,
    ) -> Result<(), Ended> {
        // A message costs the proxy more than this program. So the last chunk ends the body too,
        // if that is known without waiting.
        let mut held = Bytes::new();
        loop {
            tokio::select! {
                biased;
                message = next_with_space(&mut self.messages, body.as_ref()) => {
                    end = receive_response(&mut body, message?, end)?;
                }
                frame = rest.frame() => match frame {
                    Some(Ok(frame)) => {
                        self.send_chunks(&held, false).await?;
                        held = frame.into_data().unwrap_or_default();
                    }
                    Some(Err(error)) => {
                        return Err(Status::aborted(format!("response aborted: {error}")).into());
                    }
                    None => break,
                },
                () = std::future::ready(()), if !held.is_empty() => {
                    self.send_chunks(&std::mem::take(&mut held), false).await?;
                }
            }
        }
        drop(rest);
        let has_trailers = end == BodyEnd::WithTrailers;
        self.send_chunks(&held, !has_trailers).await?;
        if has_trailers {
            self.send(message::trailers(Of::Response)).await?;
        }
        // What the engine still sends is not the client's.
        while end == BodyEnd::Open {
            end = receive_response(&mut None, self.next().await?, end)?;
        }
        Ok(())
    }

    /// Sends a part of the client's response, which ends it if `is_last`.
    async fn send_chunks(&self, data: &Bytes, is_last: bool) -> Result<(), Ended> {
        for chunk in message::chunks(Of::Response, data, is_last) {
            self.send(chunk).await?;
        }
        Ok(())
    }

    /// Lets the proxy respond with what the host has made itself.
    async fn respond_immediately(&mut self, served: ServedResponse) -> Result<(), Ended> {
        self.metrics.responded_immediately(served.code);
        let (parts, body) = served.response.into_parts();
        let body = http_body_util::Limited::new(body, MAX_IMMEDIATE_BODY).collect().await;
        let body = body.map_err(|error| Status::internal(format!("response aborted: {error}")))?;
        self.send(message::immediate(parts.status, &parts.headers, body.to_bytes())).await
    }
}

/// Returns the next message once the body has space for what it brings.
async fn next_with_space<S>(
    messages: &mut S,
    body: Option<&ProxiedSender>,
) -> Result<ProcessingRequest, Ended>
where
    S: Stream<Item = Result<ProcessingRequest, Status>> + Unpin,
{
    if let Some(body) = body {
        body.ready().await;
    }
    match messages.next().await {
        Some(Ok(message)) => Ok(message),
        Some(Err(_)) | None => Err(Ended::ByProxy),
    }
}

/// Adds a chunk to a body, and returns whether it has ended.
fn feed(body: &mut Option<ProxiedSender>, chunk: HttpBody) -> BodyEnd {
    if let Some(body) = body
        && !chunk.body.is_empty()
    {
        body.send(chunk.body.into());
    }
    if !chunk.end_of_stream {
        return BodyEnd::Open;
    }
    body.take().into_iter().for_each(ProxiedSender::end);
    BodyEnd::Ended
}

/// Takes a message of the engine's response.
fn receive_response(
    body: &mut Option<ProxiedSender>,
    message: ProcessingRequest,
    end: BodyEnd,
) -> Result<BodyEnd, Ended> {
    match message.request {
        Some(Message::ResponseBody(chunk)) if end == BodyEnd::Open => Ok(feed(body, chunk)),
        Some(Message::ResponseTrailers(_)) if end == BodyEnd::Open => {
            body.take().into_iter().for_each(ProxiedSender::end);
            Ok(BodyEnd::WithTrailers)
        }
        _ => Err(unexpected("the body of the response")),
    }
}

fn request(head: &MessageHead, body: ProxiedBody) -> Request<ProxiedBody> {
    let mut request = Request::new(body);
    *request.method_mut() = head.method.clone();
    *request.uri_mut() = head.uri.clone();
    *request.headers_mut() = head.headers.clone();
    request
}

fn response(head: &MessageHead, body: ProxiedBody) -> Response<ProxiedBody> {
    let mut response = Response::new(body);
    *response.status_mut() = head.status;
    *response.headers_mut() = head.headers.clone();
    // The proxy has read the body: it has one length.
    response.headers_mut().remove(http::header::TRANSFER_ENCODING);
    response
}
