//! The body of a response on its way to the client: with the host's own id and fields, and kept
//! when it is complete.

use std::pin::Pin;
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll, ready};

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http::header;
use http_body::Frame;
use memchr::memmem::Finder;
use pointsman_openai::EventBuffer;
use serde_json::Value;

use super::stored::Responses;
use super::turn::TurnSlot;
use crate::headers::EngineLength;

/// Maximum number of bytes that are held to be changed: of an event, or of a body that is not a
/// stream. What is longer is passed on as it is, and not stored.
const MAX_HELD: usize = 64 << 20;

/// The body of a response.
struct TurnBody {
    inner: Body,
    slot: TurnSlot,
    responses: Arc<Responses>,
    is_stream: bool,
    held: EventBuffer,
    /// Nothing is changed any more.
    is_plain: bool,
    is_over: bool,
    /// The number of the next event.
    sequence: u64,
}

/// Returns the response with the host's id and fields, which is stored when it is complete.
pub(super) fn wrap(response: Response, slot: TurnSlot, responses: Arc<Responses>) -> Response {
    let (mut parts, inner) = response.into_parts();
    let kind = parts.headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    let is_stream = kind.is_some_and(|kind| kind.starts_with("text/event-stream"));
    parts.headers.remove(header::CONTENT_LENGTH);
    parts.extensions.remove::<EngineLength>();
    let body = TurnBody {
        inner,
        slot,
        responses,
        is_stream,
        held: EventBuffer::default(),
        is_plain: parts.headers.contains_key(header::CONTENT_ENCODING),
        is_over: false,
        sequence: 0,
    };
    Response::from_parts(parts, Body::new(body))
}

impl TurnBody {
    /// Takes a chunk, and returns what the client gets now.
    fn push(&mut self, chunk: Bytes) -> Bytes {
        if self.is_plain {
            return chunk;
        }
        self.held.push(&chunk);
        let mut out = Vec::new();
        while self.is_stream
            && let Some(event) = self.held.next_event()
        {
            out.extend(self.event(event));
        }
        if self.held.held() > MAX_HELD {
            tracing::warn!(event = "response_not_stored", "response is too long to be stored");
            self.is_plain = true;
            out.extend(self.held.take_rest());
        }
        out.into()
    }

    /// Returns what is left at the end of the body.
    fn end(&mut self) -> Bytes {
        let rest = self.held.take_rest();
        if self.is_stream {
            return self.event(rest).into();
        }
        match serde_json::from_slice::<Value>(&rest) {
            Ok(mut response) if response.get("object").is_some_and(|kind| kind == "response") => {
                self.own(&mut response);
                self.responses.complete(&self.slot, &mut response);
                response.to_string().into()
            }
            Ok(_) | Err(_) => rest.into(),
        }
    }

    /// Returns an event as the client gets it.
    fn event(&mut self, event: Vec<u8>) -> Vec<u8> {
        static RESPONSE: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"\"response\""));
        static ERROR: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"\"error\""));
        static NUMBER: LazyLock<Finder<'static>> =
            LazyLock::new(|| Finder::new(b"\"sequence_number\""));
        let number = self.sequence;
        self.sequence += u64::from(NUMBER.find(&event).is_some());
        if RESPONSE.find(&event).is_none() && ERROR.find(&event).is_none() {
            return event;
        }
        let data = EventBuffer::data(&event);
        let Ok(mut data) = serde_json::from_slice::<Value>(&data) else { return event };
        let kind = data.get("type").and_then(Value::as_str).unwrap_or_default().to_owned();
        match data.get_mut("response").filter(|response| response.is_object()) {
            Some(response) => {
                self.own(response);
                let ends = ["response.completed", "response.incomplete", "response.failed"];
                if ends.contains(&kind.as_str()) {
                    self.responses.complete(&self.slot, response);
                }
            }
            None if kind == "error" => data["sequence_number"] = number.into(),
            None => return event,
        }
        format!("event: {kind}\ndata: {data}\n\n").into_bytes()
    }

    /// Writes what is the host's into a response.
    fn own(&self, response: &mut Value) {
        let Some(turn) = self.slot.turn() else { return };
        for (name, value) in &turn.own_fields {
            response[*name] = value.clone();
        }
    }
}

impl http_body::Body for TurnBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = &mut *self;
        while !this.is_over {
            let out = match ready!(Pin::new(&mut this.inner).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => this.push(data),
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                Some(Err(error)) => {
                    this.is_over = true;
                    return Poll::Ready(Some(Err(error)));
                }
                None => {
                    this.is_over = true;
                    this.end()
                }
            };
            if !out.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(out))));
            }
        }
        Poll::Ready(None)
    }

    fn is_end_stream(&self) -> bool {
        self.is_over
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;
    use pointsman_store::{Options, Store};
    use serde_json::json;

    use super::super::stored::{ResponseLimits, response_namespace};
    use super::*;

    fn responses() -> Arc<Responses> {
        let limits = ResponseLimits::default();
        let namespaces = vec![response_namespace(&limits)];
        let on_loss = Box::new(|_: pointsman_store::Loss<'_>| ());
        let store = Store::open(Options { path: None, namespaces, on_loss }).unwrap();
        Arc::new(Responses::new(&store, &limits))
    }

    async fn through(kind: &str, body: &str, chunk: usize) -> String {
        let chunks: Vec<Result<Bytes, std::io::Error>> =
            body.as_bytes().chunks(chunk).map(|chunk| Ok(Bytes::copy_from_slice(chunk))).collect();
        let mut response = Response::new(Body::from_stream(futures_util::stream::iter(chunks)));
        response.headers_mut().insert(header::CONTENT_TYPE, kind.parse().unwrap());
        let slot = TurnSlot::default();
        slot.set(super::super::turn::Turn::for_tests("resp_own"));
        let body = wrap(response, slot, responses()).into_body().collect().await.unwrap();
        String::from_utf8(body.to_bytes().to_vec()).unwrap()
    }

    /// As an engine streams that has the API itself.
    #[tokio::test]
    async fn ids_of_engines_are_replaced_in_every_event() {
        let delta = "event: response.output_text.delta\ndata: {\"type\": \
            \"response.output_text.delta\", \"sequence_number\": 1,  \"delta\":\"x\"}\n\n";
        let event = |kind: &str| {
            let response = json!({ "id": "resp_engine", "status": "x", "big": 1 });
            let data = json!({ "type": kind, "sequence_number": 0, "response": response });
            format!("event: {kind}\ndata: {data}\n\n")
        };
        let stream = [
            ": ping\n\n".to_owned(),
            event("response.created"),
            delta.to_owned(),
            event("response.completed"),
        ]
        .concat();
        for chunk in [1, 7, 1000] {
            let seen = through("text/event-stream; charset=utf-8", &stream, chunk).await;
            assert!(!seen.contains("resp_engine"), "{seen}");
            assert_eq!(seen.matches("\"id\":\"resp_own\"").count(), 2);
            assert!(seen.contains(delta) && seen.starts_with(": ping\n\n"), "{seen}");
        }
        let whole = json!({ "id": "resp_engine", "object": "response", "x": [1] }).to_string();
        let seen: Value =
            serde_json::from_str(&through("application/json", &whole, 3).await).unwrap();
        assert_eq!((&seen["id"], &seen["x"]), (&json!("resp_own"), &json!([1])));
        let other = r#"{"x" : 1}"#;
        assert_eq!(through("application/json", other, 3).await, other);
    }
}
