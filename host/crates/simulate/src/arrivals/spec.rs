//! The description of traffic that requests are generated from.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::random::Distribution;

/// A stream of similar requests. Lengths are in tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct TrafficStream {
    /// The class in which the requests are reported.
    pub class: String,
    /// When the requests arrive.
    pub source: TrafficSource,
    /// The models that the requests name; `None` means those of the trace file.
    pub models: Option<Models>,
    /// The tenants; `None` means those of the trace file, or anonymous requests.
    pub tenants: Option<Tenants>,
    /// The length of prompts.
    pub prompt: Distribution,
    /// The length of the prefix that all prompts share.
    pub shared_prefix: u32,
    /// The length of responses.
    pub output: Distribution,
    /// The `max_tokens` parameter of the requests.
    pub max_tokens: Option<u32>,
    /// Whether the requests ask for streams.
    pub stream: bool,
    /// The time after which clients disconnect if they have not received the first byte.
    pub client_timeout: Option<Duration>,
    /// The start of the prompts.
    pub text: Arc<str>,
    /// The headers.
    pub headers: Headers,
    /// The images in the requests.
    pub media: Option<Media>,
    /// The time before which no request arrives.
    pub from: Duration,
    /// The time from which on no request arrives.
    pub until: Duration,
}

/// How requests choose their model.
#[derive(Debug, Clone, PartialEq)]
pub enum Models {
    /// At random, by cumulative weights.
    Weighted(Vec<(Arc<str>, f64)>),
    /// The turns of a session use these models in rotation.
    PerTurn(Vec<Arc<str>>),
}

/// The headers of requests, with names in lower case. All requests of a session have the same.
#[derive(Debug, Clone, PartialEq)]
pub enum Headers {
    /// These headers.
    Same(Arc<[(String, String)]>),
    /// Headers that differ between sessions.
    PerSession(Vec<(String, HeaderValue)>),
}

/// The value of a header in a session.
#[derive(Debug, Clone, PartialEq)]
pub enum HeaderValue {
    /// A text in which [`HeaderValue::SESSION`] stands for the number of the session.
    Text(String),
    /// At random, by cumulative weights.
    Weighted(Vec<(Arc<str>, f64)>),
}

impl HeaderValue {
    /// What the number of the session replaces in a value.
    pub const SESSION: &str = "{session}";
}

/// Images in requests. All requests of a session have the same, which are in its first message.
#[derive(Debug, Clone, PartialEq)]
pub struct Media {
    /// The share of the sessions that have any, from 0 to 1.
    pub share: f64,
    /// The number of images in a request of such a session.
    pub count: Distribution,
}

impl Media {
    /// The maximum number of images in a request.
    pub const MAX: u32 = 100;
}

/// Tenants with the cumulative weights of their requests.
#[derive(Debug, Clone, PartialEq)]
pub struct Tenants(pub Vec<(Arc<str>, f64)>);

/// When the requests of a stream arrive.
#[derive(Debug, Clone, PartialEq)]
pub enum TrafficSource {
    /// Independently of earlier requests (an open system).
    Open(ArrivalProcess),
    /// One after the other, from clients that wait for each response (a closed system).
    Sessions(Sessions),
    /// As recorded in a trace file.
    Trace(TraceFile),
}

/// The process by which requests or sessions arrive.
#[derive(Debug, Clone, PartialEq)]
pub enum ArrivalProcess {
    /// A Poisson process with a rate per second.
    Poisson(f64),
    /// A Poisson process whose rate follows a sine wave over the day.
    Daily {
        /// The maximum rate per second.
        peak: f64,
        /// The minimum rate per second.
        trough: f64,
        /// The time of day of the maximum.
        peak_at: Duration,
    },
    /// Arrivals with intervals from this distribution, in seconds.
    Every(Distribution),
    /// Bursts of arrivals.
    Bursts {
        /// The time from the start of a burst to the start of the next, in seconds. A burst does
        /// not start before the previous one is over.
        every: Distribution,
        /// The number of arrivals in a burst.
        size: Distribution,
        /// The time between two arrivals of a burst, in seconds.
        gap: Distribution,
    },
}

/// Sessions: clients that send their next request after they have received a response.
#[derive(Debug, Clone, PartialEq)]
pub struct Sessions {
    /// When sessions start.
    pub arrivals: ArrivalProcess,
    /// The number of requests in a session.
    pub turns: Distribution,
    /// The time from the end of a response to the next request, in seconds.
    pub think_time: Distribution,
    /// The maximum length of a prompt; a longer one is sent without the session's history.
    pub max_prompt: Option<u32>,
}

/// A trace file: recorded requests.
#[derive(Debug, Clone, PartialEq)]
pub struct TraceFile {
    /// The file, or a folder with decision records.
    pub file: PathBuf,
    /// The format.
    pub format: TraceFormat,
    /// The factor by which recorded time runs faster.
    pub speed: f64,
    /// The maximum number of requests to read.
    pub limit: Option<u64>,
    /// When conversations start, for formats without times.
    pub arrivals: Option<ArrivalProcess>,
    /// The time from a response to the next turn of a conversation, in seconds.
    pub think_time: Distribution,
}

/// The format of a trace file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TraceFormat {
    /// An Azure LLM inference trace (CSV).
    Azure,
    /// A BurstGPT trace (CSV).
    BurstGpt,
    /// Conversations as in ShareGPT (JSON).
    ShareGpt,
    /// Decision records of a host.
    Records,
}
