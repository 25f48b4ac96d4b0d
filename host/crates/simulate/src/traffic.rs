//! The requests of a simulation and the trait of their sources.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use pointsman_domain::Endpoint;

/// A traffic class that is reported separately, such as `interactive`: an index into
/// [`Traffic::classes`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClassId(pub u16);

/// A simulated request, as it arrives.
#[derive(Debug, Clone, PartialEq)]
pub struct SimRequest {
    /// The arrival time, since the start of the simulation.
    pub at: Duration,
    /// The class in which the request is reported.
    pub class: ClassId,
    /// The tenant, if the client identifies itself.
    pub tenant: Option<Arc<str>>,
    /// The session. Requests of the same session share prompt prefixes.
    pub session: u64,
    /// The index of the request within its session.
    pub turn: u32,
    /// The endpoint.
    pub endpoint: Endpoint,
    /// The model name.
    pub model: Arc<str>,
    /// Headers, with names in lower case.
    pub headers: Arc<[(String, String)]>,
    /// The number of images in the prompt, if the endpoint is that of chats.
    pub media: u32,
    /// The start of the prompt, for policies that inspect the text.
    pub text: Arc<str>,
    /// The length of the prompt.
    pub prompt_tokens: u32,
    /// The length of the prompt's shared prefix: shared with the previous request of the session
    /// or, for the first request of a session, with other sessions of the class.
    pub shared_tokens: u32,
    /// The length of the complete response.
    pub output_tokens: u32,
    /// The `max_tokens` parameter.
    pub max_tokens: Option<u32>,
    /// Whether the response is to be streamed.
    pub stream: bool,
    /// The time after which the client disconnects if it has not received the first byte.
    pub client_timeout: Option<Duration>,
    /// The recorded body; without one, a body is generated from the other fields.
    pub body: Option<Bytes>,
    /// The recorded id; without one, an id is made from the request's number.
    pub id: Option<Arc<str>>,
    /// The recorded time that an engine worked on the request: to the first byte of the response,
    /// and from there to its end.
    pub recorded_times: Option<(Duration, Duration)>,
}

#[cfg(test)]
impl SimRequest {
    /// Creates a request for a stream of ten tokens, without a tenant.
    pub(crate) fn plain(at: Duration, model: &str) -> Self {
        Self {
            at,
            class: ClassId(0),
            tenant: None,
            session: 0,
            turn: 0,
            endpoint: Endpoint::ChatCompletions,
            model: model.into(),
            headers: [].into(),
            media: 0,
            text: "".into(),
            prompt_tokens: 100,
            shared_tokens: 0,
            output_tokens: 10,
            max_tokens: None,
            stream: true,
            client_timeout: None,
            body: None,
            id: None,
            recorded_times: None,
        }
    }
}

/// A source of requests.
pub trait Traffic {
    /// Returns the names of the classes, indexed by [`ClassId`].
    fn classes(&self) -> &[String];

    /// Returns the next request that arrives independently of earlier ones. Arrival times never
    /// decrease.
    fn next(&mut self) -> Option<SimRequest>;

    /// Returns the request that the same client sends after `request` ended at `ended_at`. The
    /// arrival time is not before `ended_at`.
    fn follow_up(&mut self, request: &SimRequest, ended_at: Duration) -> Option<SimRequest>;
}
