//! What of a response is changed on its way to the client: the name of the model, and the usage of
//! a stream that the client has not asked for.

use bytes::Bytes;
use http::{HeaderMap, header};
use pointsman_openai::{ModelSplice, Request, StreamRewrite, Translate};

use crate::settings::ResponseModel;

/// The changes of one response.
#[derive(Debug)]
pub(crate) enum Rewrite {
    /// The changes of a stream of events.
    Stream(StreamRewrite),
    /// The changes of any other body.
    Body(ModelSplice),
    /// The whole response becomes that of another endpoint.
    Translation(Box<dyn Translate>),
}

impl Rewrite {
    /// Takes a chunk of the engine's body, and returns what is passed on instead.
    pub(crate) fn chunk(&mut self, chunk: Bytes) -> Bytes {
        match self {
            Self::Stream(rewrite) => rewrite.chunk(chunk),
            Self::Body(splice) => splice.chunk(chunk),
            Self::Translation(translation) => translation.chunk(&chunk),
        }
    }

    /// Returns what is still held at the end of the engine's body. `is_complete` is false for a
    /// stream that broke off.
    pub(crate) fn finish(&mut self, is_complete: bool) -> Bytes {
        match self {
            Self::Stream(rewrite) => rewrite.finish(),
            Self::Body(_) => Bytes::new(),
            Self::Translation(translation) => translation.finish(is_complete),
        }
    }
}

/// The changes that a response needs as far as they are known before it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WantedRewrite<'a> {
    /// The name of the model for the client.
    model: Option<&'a str>,
    /// The client has not asked for the usage of the stream, but the host has.
    hides_usage: bool,
}

impl<'a> WantedRewrite<'a> {
    /// Returns the changes that the response to a request needs.
    pub(crate) fn new(request: &'a Request, names: ResponseModel, hides_usage: bool) -> Self {
        // What the engine is sent says little: vLLM answers by the first of its names. The first
        // event or the first bytes of a response decide whether the rest is looked at.
        let asked = request.response_model();
        Self { model: (names == ResponseModel::Asked).then_some(asked), hides_usage }
    }

    /// Returns the changes of a stream of events.
    pub(crate) fn of_stream(self) -> Option<Rewrite> {
        StreamRewrite::new(self.model, self.hides_usage).map(Rewrite::Stream)
    }

    /// Returns the changes of another body with these headers that begins with `first`.
    pub(crate) fn of_body(self, headers: &HeaderMap, first: &[u8]) -> Option<Rewrite> {
        let model = self.model.filter(|_| is_json(headers))?;
        ModelSplice::new(model, first).map(Rewrite::Body)
    }
}

/// Returns true if a body is JSON and not encoded.
fn is_json(headers: &HeaderMap) -> bool {
    let value = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let kind = value(header::CONTENT_TYPE).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let encoding = value(header::CONTENT_ENCODING).unwrap_or("identity");
    (kind == "application/json" || kind.ends_with("+json"))
        && encoding.trim().eq_ignore_ascii_case("identity")
}
