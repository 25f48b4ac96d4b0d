//! Who asks for what, and when.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use pointsman_domain::Endpoint;

/// A kind of traffic that is counted by itself, such as `interactive`: an index into the names of the scenario.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClassId(pub u16);

/// One request as it comes.
#[derive(Debug, Clone, PartialEq)]
pub struct Ask {
    /// When, since the begin of the simulation.
    pub at: Duration,
    /// What it is counted as.
    pub class: ClassId,
    /// Who asks.
    pub tenant: Option<Arc<str>>,
    /// Requests of one session have the same, and the beginnings of their prompts in common.
    pub session: u64,
    /// How many of its session came before it.
    pub turn: u32,
    /// The endpoint.
    pub endpoint: Endpoint,
    /// The model name.
    pub model: Arc<str>,
    /// Headers, names in lower case.
    pub headers: Arc<[(String, String)]>,
    /// What the prompt begins with, so that policies which look at texts see what they look for.
    pub text: Arc<str>,
    /// Length of the prompt.
    pub prompt_tokens: u32,
    /// Of the prompt, how many tokens the requests of its session before it had, too; of the first one, how many those of other
    /// sessions of its class begin with.
    pub shared_tokens: u32,
    /// Length of the answer.
    pub output_tokens: u32,
    /// The most tokens that it asks for.
    pub max_tokens: Option<u32>,
    /// It asks for a stream.
    pub stream: bool,
    /// The client leaves if the first byte takes longer than this.
    pub patience: Option<Duration>,
    /// The body, if it was recorded; otherwise one is made of the above.
    pub body: Option<Bytes>,
    /// The id that it had; otherwise it gets one of its number.
    pub id: Option<Arc<str>>,
    /// How long an engine worked on it, if that was recorded: to the first byte of its answer, and from there to its end.
    pub took: Option<(Duration, Duration)>,
}

#[cfg(test)]
impl Ask {
    /// A request for a stream of ten tokens, of nobody and without a session.
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
            text: "".into(),
            prompt_tokens: 100,
            shared_tokens: 0,
            output_tokens: 10,
            max_tokens: None,
            stream: true,
            patience: None,
            body: None,
            id: None,
            took: None,
        }
    }
}

/// Where requests come from.
pub trait Traffic {
    /// Names of the classes, by their ids.
    fn classes(&self) -> &[String];

    /// The next request that comes whatever becomes of those before it. Times never go back.
    fn next(&mut self) -> Option<Ask>;

    /// A request ended at this time: what the same client asks after that, not before it.
    fn after(&mut self, ask: &Ask, ended: Duration) -> Option<Ask>;
}
