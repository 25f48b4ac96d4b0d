//! `[[traffic]]`: the streams of requests of a scenario.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use pointsman_settings::{Code, Location, Section, missing};
use toml::de::DeValue;

use super::quantity::{
    Unit, conflict, distribution, must_be_positive, number, rate, required_distribution,
    required_interval, time_of_day,
};
use crate::random::Distribution;

/// A stream of similar requests. Lengths are in tokens.
#[derive(Debug, Clone)]
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
    /// Headers, with names in lower case.
    pub headers: Arc<[(String, String)]>,
    /// The time before which no request arrives.
    pub from: Duration,
    /// The time from which on no request arrives.
    pub until: Duration,
    /// The position of the stream in the scenario file.
    pub location: Location,
}

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

/// How requests choose their model.
#[derive(Debug, Clone, PartialEq)]
pub enum Models {
    /// At random, by cumulative weights.
    Weighted(Vec<(Arc<str>, f64)>),
    /// The turns of a session use these models in rotation.
    PerTurn(Vec<Arc<str>>),
}

/// Tenants with the cumulative weights of their requests.
#[derive(Debug, Clone, PartialEq)]
pub struct Tenants(pub Vec<(Arc<str>, f64)>);

/// Reads `[[traffic]]`.
pub(super) fn read(
    root: &Section<'_>,
    folder: &Path,
    duration: Duration,
) -> Vec<Arc<TrafficStream>> {
    let sections = root.sections("traffic");
    if sections.is_empty() {
        let message = "no traffic defined: add a `[[traffic]]` with a `model` and a `rate`";
        root.error_at("traffic", Code::MissingKey.with(message));
    }
    sections
        .iter()
        .filter_map(|section| read_stream(section, folder, duration))
        .map(Arc::new)
        .collect()
}

fn read_stream(section: &Section<'_>, folder: &Path, duration: Duration) -> Option<TrafficStream> {
    let class =
        section.string("class").filter(|class| !class.is_empty()).unwrap_or("all").to_owned();
    let source = read_source(section, folder);
    let format = match &source {
        Some(TrafficSource::Trace(trace)) => Some(trace.format),
        Some(TrafficSource::Open(_) | TrafficSource::Sessions(_)) | None => None,
    };
    let is_session = matches!(source, Some(TrafficSource::Sessions(_)));
    let models = read_models(section, format, is_session);
    let tenants = read_tenants(section);
    // With a trace file, lengths are only used for requests whose lengths it does not contain.
    let has_file = section.has("file");
    let lengths = |key, default| match has_file {
        true => distribution(section, key, Unit::Count).or(Some(default)),
        false => required_distribution(section, key, Unit::Count),
    };
    let prompt = lengths("prompt", Distribution::from_percentiles(900.0, 8000.0));
    let output = lengths("output", Distribution::from_percentiles(250.0, 1500.0));
    let stream = TrafficStream {
        class,
        source: source?,
        models,
        tenants,
        prompt: prompt?,
        shared_prefix: section.integer("shared-prefix", 0..=100_000_000, 0),
        output: output?,
        max_tokens: section.optional_integer("max-tokens", 1..=100_000_000),
        stream: section.bool("stream", true),
        client_timeout: section
            .has("client-timeout")
            .then(|| section.positive_duration("client-timeout", Duration::from_secs(60))),
        text: section.string("text").unwrap_or_default().into(),
        headers: read_headers(section),
        from: section.duration("from", Duration::ZERO),
        until: section.duration("until", duration).min(duration),
        location: section.location("file"),
    };
    if section.has("until") && stream.until <= stream.from {
        section.error_at("until", Code::Conflict.with("must be later than `from`"));
    }
    section.report_unknown();
    Some(stream)
}

/// The keys that define an arrival process.
const ARRIVAL_KEYS: [&str; 4] = ["rate", "daily", "every", "bursts"];

fn read_source(section: &Section<'_>, folder: &Path) -> Option<TrafficSource> {
    let keys: Vec<&str> = ARRIVAL_KEYS
        .into_iter()
        .chain(["sessions", "file"])
        .filter(|key| section.has(key))
        .collect();
    match keys.as_slice() {
        [] => {
            let message = "no arrivals defined: set one of `rate`, `daily`, `every`, `bursts`, \
                           `sessions` and `file`";
            section.error(Code::MissingKey.with(message));
            None
        }
        // `read_trace` decides whether the other key is allowed.
        ["file"] | [_, "file"] => read_trace(section, folder).map(TrafficSource::Trace),
        ["sessions"] => read_sessions(&section.section("sessions")).map(TrafficSource::Sessions),
        [_] => read_arrivals(section).map(TrafficSource::Open),
        [first, second, ..] => {
            conflict(section, second, first);
            None
        }
    }
}

fn read_arrivals(section: &Section<'_>) -> Option<ArrivalProcess> {
    if section.has("daily") {
        let daily = section.section("daily");
        let peak = read_rate(&daily, "peak");
        let trough = if daily.has("trough") { daily.parsed("trough", rate)? } else { 0.0 };
        let peak_at = daily.parsed("peak-at", time_of_day);
        let peak_at =
            if daily.has("peak-at") { peak_at } else { Some(Duration::from_secs(14 * 3600)) };
        daily.report_unknown();
        let peak = peak?;
        if trough > peak {
            daily.error_at("trough", Code::Conflict.with("must not be greater than `peak`"));
            return None;
        }
        return Some(ArrivalProcess::Daily { peak, trough, peak_at: peak_at? });
    }
    if section.has("every") {
        return required_interval(section, "every").map(ArrivalProcess::Every);
    }
    if section.has("bursts") {
        let bursts = section.section("bursts");
        let every = required_interval(&bursts, "every");
        let size = required_distribution(&bursts, "size", Unit::Count);
        let gap = distribution(&bursts, "gap", Unit::Time).unwrap_or(Distribution::Fixed(0.0));
        bursts.report_unknown();
        return Some(ArrivalProcess::Bursts { every: every?, size: size?, gap });
    }
    read_rate(section, "rate").map(ArrivalProcess::Poisson)
}

/// Reads a rate that must be greater than zero.
fn read_rate(section: &Section<'_>, key: &str) -> Option<f64> {
    if !section.has(key) {
        section.error_at(key, missing(format!("`{key} = \"30/h\"`")));
    }
    let rate = section.parsed(key, rate)?;
    if rate <= 0.0 {
        section.error_at(key, must_be_positive());
        return None;
    }
    Some(rate)
}

fn read_sessions(section: &Section<'_>) -> Option<Sessions> {
    let keys: Vec<&str> = ARRIVAL_KEYS.into_iter().filter(|key| section.has(key)).collect();
    let arrivals = match keys.as_slice() {
        [first, second, ..] => {
            conflict(section, second, first);
            None
        }
        [] | [_] => read_arrivals(section),
    };
    let turns = required_distribution(section, "turns", Unit::Count);
    let think_time = required_distribution(section, "think-time", Unit::Time);
    let max_prompt = section.optional_integer("max-prompt", 1..=100_000_000);
    section.report_unknown();
    Some(Sessions { arrivals: arrivals?, turns: turns?, think_time: think_time?, max_prompt })
}

fn read_trace(section: &Section<'_>, folder: &Path) -> Option<TraceFile> {
    let formats = [
        ("azure", Some(TraceFormat::Azure)),
        ("burstgpt", Some(TraceFormat::BurstGpt)),
        ("sharegpt", Some(TraceFormat::ShareGpt)),
        ("records", Some(TraceFormat::Records)),
    ];
    let file = section.required_string("file", "\"trace.csv\"").map(|file| folder.join(file));
    if !section.has("format") {
        let formats = formats.map(|(name, _)| format!("\"{name}\"")).join(", ");
        let example = format!("`format = \"azure\"`; formats are {formats}");
        section.error_at("format", missing(example));
    }
    let format = section.choice("format", &formats, None);
    let speed = if section.has("speed") { number(section, "speed", 1e-6, 1e6) } else { Some(1.0) };
    let limit = section.has("limit").then(|| section.integer("limit", 1..=i64::MAX, 1));
    let arrival_key = ARRIVAL_KEYS.into_iter().chain(["sessions"]).find(|key| section.has(key));
    let is_conversations = format == Some(TraceFormat::ShareGpt);
    let arrivals = match arrival_key {
        Some(key) if !is_conversations || key == "sessions" => {
            // The other formats contain the arrival times, and conversations are sessions already.
            conflict(section, key, "file");
            None
        }
        None if is_conversations => {
            section.error_at("rate", missing("`rate = \"30/h\"`, at which conversations start"));
            None
        }
        Some(_) => read_arrivals(section),
        None => None,
    };
    if section.has("think-time") && !is_conversations {
        let message = "not used by this format, only by \"sharegpt\"; remove it";
        section.error_at("think-time", Code::Conflict.with(message));
    }
    let think_time = distribution(section, "think-time", Unit::Time)
        .unwrap_or_else(|| Distribution::from_percentiles(10.0, 120.0));
    Some(TraceFile { file: file?, format: format?, speed: speed?, limit, arrivals, think_time })
}

fn read_models(
    section: &Section<'_>,
    format: Option<TraceFormat>,
    is_session: bool,
) -> Option<Models> {
    let keys: Vec<&str> =
        ["model", "models", "turn-models"].into_iter().filter(|key| section.has(key)).collect();
    match keys.as_slice() {
        // These formats contain the model.
        [] if matches!(format, Some(TraceFormat::BurstGpt | TraceFormat::Records)) => None,
        [] => {
            section.error_at("model", missing("`model = \"auto\"`"));
            None
        }
        ["model"] => {
            let model = section.required_string("model", "\"auto\"")?;
            Some(Models::Weighted(vec![(model.into(), 1.0)]))
        }
        ["models"] => {
            let table = section.section("models");
            let weights = table
                .keys()
                .into_iter()
                .map(|model| Some((model, number(&table, model, 0.0, 1e9)?)));
            let weights = cumulative_weights(weights.collect::<Option<Vec<_>>>()?);
            if weights.is_none() {
                let message = "no weight is greater than zero: expected for example \
                               { orchestrator = 3, coder = 1 }";
                section.error_at("models", Code::OutOfRange.with(message));
            }
            weights.map(Models::Weighted)
        }
        [_] => {
            if !is_session && format != Some(TraceFormat::ShareGpt) {
                let message = "only used with sessions; set `model`, or `models` with weights";
                section.error_at("turn-models", Code::Conflict.with(message));
            }
            let models = section.strings("turn-models")?;
            if models.is_empty() {
                let message = "must not be empty; set for example [\"orchestrator\", \"coder\"], \
                               the models of a session's turns";
                section.error_at("turn-models", Code::InvalidValue.with(message));
                return None;
            }
            Some(Models::PerTurn(models.into_iter().map(Arc::from).collect()))
        }
        [first, second, ..] => {
            conflict(section, second, first);
            None
        }
    }
}

/// Returns cumulative weights, so that a number below the last one selects a name. Returns `None`
/// if all weights are zero.
fn cumulative_weights<'n>(
    weights: impl IntoIterator<Item = (&'n str, f64)>,
) -> Option<Vec<(Arc<str>, f64)>> {
    let mut sum = 0.0;
    let sums: Vec<(Arc<str>, f64)> = weights
        .into_iter()
        .map(|(name, weight)| {
            sum += weight;
            (name.into(), sum)
        })
        .collect();
    (sum > 0.0).then_some(sums)
}

fn read_tenants(section: &Section<'_>) -> Option<Tenants> {
    let skew = if section.has("skew") { number(section, "skew", 0.0, 10.0)? } else { 0.0 };
    let tenants = section.value("tenants")?;
    let names: Vec<String> = match tenants.get_ref() {
        DeValue::Array(_) => section.strings("tenants")?,
        DeValue::Integer(_) => {
            let count = section.integer("tenants", 1..=1_000_000, 1u32);
            (1..=count).map(|number| format!("tenant-{number}")).collect()
        }
        _ => {
            section.wrong_type("tenants", tenants, "a number of tenants or a list of names");
            return None;
        }
    };
    // Zipf's law: the weight of the n-th tenant is 1/n^skew.
    let weights = names
        .iter()
        .zip(1u32..)
        .map(|(name, rank)| (name.as_str(), libm::pow(f64::from(rank), -skew)));
    let tenants = cumulative_weights(weights).map(Tenants);
    if tenants.is_none() {
        let message = "must not be empty; name at least one tenant, or remove the key";
        section.error_at("tenants", Code::InvalidValue.with(message));
    }
    tenants
}

fn read_headers(section: &Section<'_>) -> Arc<[(String, String)]> {
    let pairs = section.string_pairs("headers");
    for (name, value) in &pairs {
        let is_valid =
            name.parse::<http::HeaderName>().is_ok() && value.parse::<http::HeaderValue>().is_ok();
        if !is_valid {
            section.error_at("headers", format!("invalid HTTP header \"{name}: {value}\""));
        }
    }
    pairs.into_iter().map(|(name, value)| (name.to_ascii_lowercase(), value)).collect()
}
