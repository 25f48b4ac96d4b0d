//! One attempt on one lane: acquire a lease, send the request, and wait for the first byte.
//!
//! Until the first byte arrives, nothing has been sent to the client and the request can still go
//! to another lane. From then on the response belongs to the client. The first byte of a stream is
//! that of its first event with data: comments are not part of a response.

use std::pin::pin;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use http_body_util::BodyExt;
use pointsman_domain::dispatch::AcquireError;
use pointsman_domain::request_flow::Declined;
use pointsman_domain::{Endpoint, RequestView as _, Serving, SlotRequest};
use pointsman_fleet::{
    ConversationPrompt, EngineBody, EngineError, Fleet, Lease, Owner, RequestBody, Segment,
};
use pointsman_openai::{
    EndpointShape, EngineErrorBody, EngineRequestBody, ErrorBody, ErrorForm, FormContent, Request,
    StreamEnd, StreamKind, StreamWatch, Translate,
};
use tokio::time::Instant;

use crate::decision::apply;
use crate::engine_status::{MAX_ERROR_BODY, attempt_error, check_status, declined, is_for_client};
use crate::failure::AttemptError;
use crate::policy_threads::LARGE_BODY;
use crate::proxying::Proxied;
use crate::request_tracker::RequestTracker;
use crate::rewrite::{Rewrite, WantedRewrite};
use crate::settings::ResponseModel;
use crate::trace_context::TraceHeaders;
use crate::{headers, idempotency, large_thread, request_id};

/// Maximum number of bytes of a stream that are held until its first event. An event that is
/// longer than the observer parses counts as one long before.
const MAX_HELD_BYTES: usize = 2 << 20;

/// The headers of a request that continue its trace, and those that another host gets.
type Carried = (Option<TraceHeaders>, HeaderMap);

/// An engine's response, of which the first byte has arrived.
#[derive(Debug)]
pub(crate) struct EngineResponse {
    pub(crate) lane: String,
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    /// The observer of a stream of server-sent events, which has observed `first`.
    pub(crate) watch: Option<StreamWatch>,
    /// The first bytes of the body; `None` if the body is empty.
    pub(crate) first: Option<Bytes>,
    /// The remaining body; `None` if there is none.
    pub(crate) rest: Option<EngineBody>,
    /// What is changed of both on the way to the client.
    pub(crate) rewrite: Option<Rewrite>,
}

/// Makes one attempt: waits for the slot, sends the request and awaits the first byte. The tracker
/// learns of each success; a failure is for the caller to feed to it, and so is a response that is
/// the client's only if no other lane serves the request, which comes with the reason.
///
/// # Errors
/// If the lane grants no slot in time, or the engine fails before its first byte.
pub(crate) async fn attempt(
    fleet: &Fleet,
    request: &Request,
    tracker: &mut RequestTracker,
    slot_request: SlotRequest,
    names: ResponseModel,
) -> Result<(EngineResponse, Option<Declined>), AttemptError> {
    tracker.record_attempt();
    let slot_request = match &tracker.proxy {
        Some(proxy) => proxy.slot_request(tracker.lane_name(), slot_request)?,
        None => slot_request,
    };
    let lease = tracker.acquire(fleet, slot_request).await?;
    let onward = tracker.onward_headers(fleet, &lease, request);
    // Boxed, because its state takes some kilobytes that a queued request does not need yet.
    Box::pin(send(tracker, (lease, onward), request, names)).await
}

async fn send(
    tracker: &mut RequestTracker,
    (lease, onward): (Lease, HeaderMap),
    request: &Request,
    names: ResponseModel,
) -> Result<(EngineResponse, Option<Declined>), AttemptError> {
    let request = apply(request, tracker.flow().step_edits());
    // Before the grant: the edits of the step may have changed what the guards limit.
    let request = tracker.guard.enforced(request)?;
    let lane = lease.lane_name().to_owned();
    tracker.note_engine(&lease, lease.engine_model(request.model()));
    let carried = (tracker.trace_headers(), onward);
    let proxy = tracker.proxied(&request);
    let Some((lease, timeout)) = tracker.grant(lease, request.streaming()) else {
        // Never: a request that waits accepts a slot.
        return Err(AttemptError::Acquire(AcquireError::Closing));
    };
    let form = EndpointShape::for_endpoint(request.endpoint()).errors;
    let (sent_request, translation) = for_engine(lease, &request).await?;
    let slot = place(lease, &sent_request).await;
    let end = Instant::now() + timeout;
    let receive = async |sent: EngineRequestBody| {
        let (lane, proxy) = (lane.clone(), proxy.as_ref());
        let received = first_byte(lease, &sent_request, (lane, proxy, &carried), names, sent);
        let received = pin!(received);
        let received = tokio::time::timeout_at(end, received).await;
        received.unwrap_or(Err(AttemptError::FirstByteTimeout(timeout)))
    };
    let model = lease.engine_model(request.model());
    let sent = sent_request.body_for_engine(model, lease.asks_stream_usage(), slot);
    let adds_usage = sent.adds_usage;
    let mut response = receive(sent).await?;
    // A proxy sends a request once.
    if adds_usage && proxy.is_none() && refuses_usage(&response) {
        tracing::warn!(
            "the engine does not accept `stream_options`, sending the request again; set \
             `stream-usage = false` for this lane"
        );
        // Not remembered: the error may quote the client, who must not turn this off for others.
        response = receive(sent_request.body_for_engine(model, false, slot)).await?;
    }
    // Before the translation, which does not keep what the engine calls its errors.
    let body = response.first.as_deref().unwrap_or_default();
    let declined = declined(lease, response.status, body);
    if let Some(translation) = translation {
        translate(&mut response, translation, form);
    }
    if declined.is_none() {
        tracker.first_byte(response.status, &request);
    }
    Ok((response, declined))
}

/// Chooses the slot of the engine for a request, and restores its conversation there. Returns
/// `None` if the engine chooses: it keeps no conversations, serves a request in several slots, or a
/// policy has chosen.
async fn place(lease: &Lease, request: &Request) -> Option<u32> {
    let generates = matches!(
        request.endpoint(),
        Endpoint::ChatCompletions
            | Endpoint::Completions
            | Endpoint::Responses
            | Endpoint::Messages
            | Endpoint::LlamaCompletion
            | Endpoint::LlamaInfill
    );
    let is_placed = lease.keeps_conversations() && generates && request.choices() <= 1;
    if !is_placed || request.names_slot() {
        return None;
    }
    let (tenant, key) = (request.tenant().map(Arc::from), request.key_name().map(Arc::from));
    // llama.cpp does not save images.
    let is_text = !request.info().has_media;
    let blocks = if is_text { request.conversation_hashes() } else { Vec::new() }.into();
    lease.place(ConversationPrompt { owner: Owner { tenant, key }, blocks }).await
}

/// Returns the request as the engine can serve it, and what translates the response. The slots of
/// the lanes limit how many large requests are translated at a time.
async fn for_engine(
    lease: &Lease,
    request: &Request,
) -> Result<(Request, Option<Box<dyn Translate>>), AttemptError> {
    if lease.serving(request.endpoint()) != Serving::Translated {
        return Ok((request.clone(), None));
    }
    let translated = if request.body().len() > LARGE_BODY {
        let request = request.clone();
        large_thread::run(move || request.translated()).await
    } else {
        request.translated()
    };
    match translated.map_err(AttemptError::Untranslatable)? {
        Some(translation) => Ok((translation.request, Some(translation.response))),
        None => Ok((request.clone(), None)),
    }
}

/// Makes the response one of the endpoint that the client asked.
fn translate(response: &mut EngineResponse, translation: Box<dyn Translate>, form: ErrorForm) {
    if response.status.is_success() {
        let content_type = HeaderValue::from_static(translation.content_type());
        response.headers.insert(header::CONTENT_TYPE, content_type);
        response.rewrite = Some(Rewrite::Translation(translation));
        return;
    }
    let said = EngineErrorBody::read(response.first.as_deref().unwrap_or_default());
    let message = said.message.clone().unwrap_or_else(|| response.status.to_string());
    let error = ErrorBody::invalid_request(&message).with_details_of(&said);
    let body = form.body(&error, response.status.as_u16());
    response.headers.remove(header::CONTENT_LENGTH);
    response.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.first = Some(body.into());
    // The rest of an error that is longer than what is read of its body.
    response.rest = None;
    response.rewrite = None;
}

/// Returns true if an engine rejects a request because it asks for the usage of the stream, as
/// strict APIs do that do not know the option.
fn refuses_usage(response: &EngineResponse) -> bool {
    const OPTION: &[u8] = b"stream_options";
    let body = response.first.as_deref().unwrap_or_default();
    matches!(response.status, StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY)
        && body.windows(OPTION.len()).any(|part| part == OPTION)
}

async fn first_byte(
    lease: &Lease,
    request: &Request,
    (lane, proxy, carried): (String, Option<&Proxied>, &Carried),
    names: ResponseModel,
    sent: EngineRequestBody,
) -> Result<EngineResponse, AttemptError> {
    // Engines that the host runs read nothing from it that a client should choose.
    let path = request.path(lease.is_external());
    let wanted = WantedRewrite::new(request, names, sent.adds_usage);
    let (content_type, body) = typed_body(sent);
    let headers = headers_for_engine(request, content_type, carried);
    let response = match proxy {
        None => lease.send(&path, headers, body).await?,
        Some(proxy) => lease.send_by_proxy(proxy.proxying(&lane), &path, headers, body).await?,
    };
    let (head, mut body) = check_status(lease, response).await?.into_parts();
    let (status, headers) = (head.status, head.headers);
    if status.is_success() && is_observable_stream(&headers) {
        let kind = EndpointShape::for_endpoint(request.endpoint()).stream;
        let mut watch = StreamWatch::new(kind, request.choices());
        let first = first_event(&mut body, &mut watch).await?;
        // After an event with content the stream is the client's, whether or not both arrived at a
        // time.
        if watch.end() == StreamEnd::Failed && watch.events() == 1 {
            return first_error(lease, lane, headers, &watch);
        }
        let (watch, first, rest) = (Some(watch), Some(first), Some(body));
        let names_model =
            matches!(kind, StreamKind::Chunks | StreamKind::Messages | StreamKind::Transcripts);
        let rewrite = names_model.then(|| wanted.of_stream()).flatten();
        return Ok(EngineResponse { lane, status, headers, watch, first, rest, rewrite });
    }
    let mut first = BytesMut::new();
    while let Some(data) = next_data(&mut body).await? {
        first.extend_from_slice(&data);
        // A client that waits for a stream gets an engine's error as an event, which needs all of
        // it. An empty frame is not a first byte.
        let wants_more = status.is_client_error() && first.len() < MAX_ERROR_BODY;
        if !first.is_empty() && !wants_more {
            break;
        }
    }
    let first = Some(first.freeze()).filter(|first| !first.is_empty());
    let begin = first.as_deref().unwrap_or_default();
    let rewrite = status.is_success().then(|| wanted.of_body(&headers, begin)).flatten();
    Ok(EngineResponse { lane, status, headers, watch: None, first, rest: Some(body), rewrite })
}

/// Returns true if the body consists of server-sent events that can be observed. An encoded body
/// is passed on as it is: nothing can be appended to it either.
fn is_observable_stream(headers: &HeaderMap) -> bool {
    let is = |name, expected: &str| {
        let value = headers.get(name).and_then(|value| value.to_str().ok());
        let value = value.map(|value| value.split(';').next().unwrap_or_default().trim());
        value.map(|value| value.eq_ignore_ascii_case(expected))
    };
    is(header::CONTENT_TYPE, "text/event-stream") == Some(true)
        && is(header::CONTENT_ENCODING, "identity") != Some(false)
}

/// Returns the next data of a body.
async fn next_data(body: &mut EngineBody) -> Result<Option<Bytes>, EngineError> {
    while let Some(frame) = body.frame().await.transpose()? {
        // Trailers are not data.
        if let Ok(data) = frame.into_data() {
            return Ok(Some(data));
        }
    }
    Ok(None)
}

/// Awaits the first event that has data. Comments and blank lines before it are dropped: engines
/// send them while they read a prompt, and they must not keep the request from another lane.
async fn first_event(
    body: &mut EngineBody,
    watch: &mut StreamWatch,
) -> Result<Bytes, AttemptError> {
    body.require_reports();
    let mut held = BytesMut::new();
    while !watch.has_begun() {
        let Some(data) = next_data(body).await? else {
            return match watch.end_of_body() {
                StreamEnd::Complete | StreamEnd::Failed => Ok(held.freeze()),
                StreamEnd::Unfinished { .. } => Err(EngineError::Unfinished.into()),
            };
        };
        held.extend_from_slice(&watch.chunk(data));
        if watch.is_silent() {
            held.clear();
        } else if watch.has_only_comments() && held.len() > MAX_ERROR_BODY {
            // The beginning of a comment, of which the rest remains one.
            held.truncate(0);
            held.extend_from_slice(b":");
        } else if held.len() > MAX_HELD_BYTES && !watch.has_begun() {
            let cause = "the stream has too many lines before its first event";
            return Err(EngineError::Broken(cause.into()).into());
        }
    }
    body.report_data();
    Ok(held.freeze())
}

/// Returns what follows if the first event of a stream is an error. Nothing has been sent to the
/// client, so it is treated like a response with the status that the error has.
fn first_error(
    lease: &Lease,
    lane: String,
    mut headers: HeaderMap,
    watch: &StreamWatch,
) -> Result<EngineResponse, AttemptError> {
    let data = watch.error().unwrap_or_default();
    let error = EngineErrorBody::read(data);
    let Some(status) = error.status.and_then(|status| StatusCode::from_u16(status).ok()) else {
        return Err(AttemptError::ErrorEvent { said: Box::new(error) });
    };
    if !is_for_client(lease, status) {
        return Err(attempt_error(lease, status, &headers, error));
    }
    headers.remove(header::CONTENT_LENGTH);
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let first = Some(Bytes::copy_from_slice(data));
    Ok(EngineResponse { lane, status, headers, watch: None, first, rest: None, rewrite: None })
}

/// Returns the body that the engine gets, with its type.
fn typed_body(sent: EngineRequestBody) -> (HeaderValue, RequestBody) {
    let json = HeaderValue::from_static("application/json");
    let Some(form) = sent.form else { return (json, sent.body.into()) };
    let segment = |content| match content {
        FormContent::Memory(bytes) => Segment::Memory(bytes),
        FormContent::File(file, range) => Segment::File(file, range),
    };
    let body: Vec<Segment> = form.body.into_iter().map(segment).collect();
    // A boundary has only characters that headers may have.
    (HeaderValue::from_str(&form.content_type).unwrap_or(json), RequestBody::new(body))
}

/// Returns the headers of a request to an engine.
fn headers_for_engine(
    request: &Request,
    content_type: HeaderValue,
    (trace, onward): &Carried,
) -> HeaderMap {
    let mut headers = headers::for_engine(request.headers());
    headers.insert(header::CONTENT_TYPE, content_type);
    headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    request_id::set(&mut headers, request.id());
    if let Some(trace) = trace {
        trace.replace_in(&mut headers);
    }
    if !onward.is_empty() {
        // Attempts on two lanes of another host are two requests there.
        headers.remove(idempotency::HEADER);
    }
    headers.extend(onward.clone());
    headers
}
