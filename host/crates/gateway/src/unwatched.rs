//! What is read of a response that is passed on as it is: its token usage, and for paths of engines
//! how much it is, for engines that report no usage.

use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};
use pointsman_domain::Endpoint;
use pointsman_openai::{BodyTail, EndpointShape, StreamWatch, Usage};

use crate::metering::BYTES_PER_TOKEN;

/// The observer of a response that is not watched otherwise.
#[derive(Debug, Default)]
pub(crate) struct Unwatched {
    tail: BodyTail,
    /// The events of a stream.
    events: Option<StreamWatch>,
    /// Its tokens are counted also if the engine does not report them.
    is_estimated: bool,
    bytes: usize,
}

impl Unwatched {
    /// Creates the observer of a response with this head; `path` is the endpoint of the path of an
    /// engine.
    pub(crate) fn new(status: StatusCode, headers: &HeaderMap, path: Option<Endpoint>) -> Self {
        let path = path.filter(|_| status.is_success());
        let content_type = headers.get(header::CONTENT_TYPE).map(|value| value.as_bytes());
        let is_stream = content_type.is_some_and(|kind| kind.starts_with(b"text/event-stream"));
        let events = path.filter(|_| is_stream).map(|endpoint| {
            // How many choices there are matters for the end of a stream only.
            StreamWatch::new(EndpointShape::for_endpoint(endpoint).stream, 1)
        });
        Self { events, is_estimated: path.is_some(), ..Self::default() }
    }

    /// Observes a chunk.
    pub(crate) fn chunk(&mut self, chunk: &Bytes) {
        self.tail.chunk(chunk);
        self.bytes = self.bytes.saturating_add(chunk.len());
        if let Some(events) = &mut self.events {
            // Also what the host would not pass on behind an error.
            events.chunk(chunk.clone());
        }
    }

    /// Returns the usage that the engine reported.
    pub(crate) fn usage(&self) -> Option<Usage> {
        let of_events = self.events.as_ref().and_then(StreamWatch::usage);
        of_events.or_else(|| self.tail.usage())
    }

    /// Estimates the tokens of a response whose usage is not reported: its events with text, or of
    /// a form that the host does not know, its bytes.
    pub(crate) fn output_tokens(&self) -> u64 {
        if !self.is_estimated {
            return 0;
        }
        let of_bytes = (self.bytes / BYTES_PER_TOKEN) as u64;
        let of_events = self.events.as_ref().map_or(0, StreamWatch::content_events);
        if of_events > 0 { of_events } else { of_bytes }
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    /// Returns the usage and the estimate of a response.
    fn read(
        status: u16,
        content_type: &'static str,
        path: Option<Endpoint>,
        body: &'static str,
    ) -> (Option<(u32, u32)>, u64) {
        let content_type = HeaderValue::from_static(content_type);
        let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, content_type)]);
        let status = StatusCode::from_u16(status).unwrap();
        let mut unwatched = Unwatched::new(status, &headers, path);
        for piece in body.as_bytes().chunks(7) {
            unwatched.chunk(&Bytes::from_static(piece));
        }
        let usage = unwatched.usage().map(|usage| (usage.prompt_tokens, usage.completion_tokens));
        (usage, unwatched.output_tokens())
    }

    #[test]
    fn tokens_are_reported_or_estimated() {
        const SSE: &str = "text/event-stream; charset=utf-8";
        const CHUNKS: &str = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n\
                              data: {\"choices\":[{\"delta\":{\"content\":\"b\"}}]}\n\n";
        const MESSAGE: &str = "data: {\"type\":\"message_start\",\"message\":{\"usage\":\
            {\"input_tokens\":9,\"output_tokens\":0}}}\n\n\
            data: {\"type\":\"message_delta\",\"usage\":{\"output_tokens\":4}}\n\n";
        const OLLAMA: &str =
            "{\"done\":true,\"prompt_eval_count\":26,\"eval_count\":7,\"eval_duration\":5}\n";
        let chat = Some(Endpoint::ChatCompletions);
        for (status, content_type, path, body, expected) in [
            (200, SSE, chat, CHUNKS, (None, 2)),
            (200, SSE, Some(Endpoint::Other), "data: 0123456789\n\n", (None, 4)),
            (200, SSE, Some(Endpoint::Messages), MESSAGE, (Some((9, 4)), 43)),
            (200, "application/json", Some(Endpoint::Other), "{\"text\":\"12\"}", (None, 3)),
            (200, "application/x-ndjson", Some(Endpoint::OllamaChat), OLLAMA, (Some((26, 7)), 18)),
            // Not a path of an engine, or not a response to its request.
            (200, "application/json", None, "{\"text\":\"12\"}", (None, 0)),
            (400, "application/json", Some(Endpoint::Other), "{\"error\":\"12\"}", (None, 0)),
        ] {
            let (usage, estimate) = read(status, content_type, path, body);
            // The estimate does not count if the usage is reported.
            let estimate = if usage.is_some() { expected.1 } else { estimate };
            assert_eq!((usage, estimate), expected, "{body}");
        }
    }
}
