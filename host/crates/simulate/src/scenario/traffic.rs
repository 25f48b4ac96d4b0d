//! `[[traffic]]`: who asks for what, and when.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use pointsman_settings::{Location, Section};
use toml::de::DeValue;

use super::quantity::{Unit, between, number, rate, required_spread, spread, time_of_day};
use crate::random::Spread;

/// One kind of requests.
#[derive(Debug, Clone)]
pub struct Stream {
    /// What its requests are counted as.
    pub class: String,
    /// When they come.
    pub source: Source,
    /// The models that they ask for; `None`: those of the file.
    pub models: Option<Models>,
    /// Who asks; `None`: nobody that anybody knows, or those of the file.
    pub tenants: Option<Tenants>,
    /// Lengths of prompts.
    pub prompt: Spread,
    /// Of them, how many tokens at the begin they have all in common.
    pub shared: u32,
    /// Lengths of answers.
    pub output: Spread,
    /// The most tokens that they ask for.
    pub max_tokens: Option<u32>,
    /// They ask for streams.
    pub stream: bool,
    /// Clients leave when the first byte takes longer.
    pub patience: Option<Duration>,
    /// What prompts begin with.
    pub text: Arc<str>,
    /// Headers, names in lower case.
    pub headers: Arc<[(String, String)]>,
    /// The first comes after this time,
    pub from: Duration,
    /// and the last before that one.
    pub until: Duration,
    /// Where it stands.
    pub place: Location,
}

/// When the requests of a stream come.
#[derive(Debug, Clone, PartialEq)]
pub enum Source {
    /// Whatever becomes of those before.
    Open(Pace),
    /// One after the other, by clients that wait for their answers.
    Sessions(Sessions),
    /// As it was recorded.
    Trace(Trace),
}

/// When requests or sessions begin.
#[derive(Debug, Clone, PartialEq)]
pub enum Pace {
    /// At any time with the same probability: so many in a second.
    Poisson(f64),
    /// The same with a probability that goes up and down with the day.
    Daily {
        /// Most in a second.
        most: f64,
        /// Fewest in a second.
        least: f64,
        /// The time of day at which they are most.
        at: Duration,
    },
    /// With these times between, in seconds.
    Every(Spread),
    /// Many at once, again and again.
    Bursts {
        /// From the begin of one to that of the next, in seconds. The next does not begin before the one before is over.
        every: Spread,
        /// How many come.
        size: Spread,
        /// Times between them, in seconds.
        gap: Spread,
    },
}

/// Clients that ask again after they have read the answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Sessions {
    /// When they begin.
    pub pace: Pace,
    /// How often one asks.
    pub turns: Spread,
    /// From the end of an answer to the next turn, in seconds.
    pub think: Spread,
    /// Prompts are no longer than this: the history is left out of the one that would be.
    pub longest: Option<u32>,
}

/// A file of requests.
#[derive(Debug, Clone, PartialEq)]
pub struct Trace {
    /// The file, or a folder with decision records.
    pub file: PathBuf,
    /// What is in it.
    pub format: Format,
    /// Times pass so many times as fast.
    pub speed: f64,
    /// At most so many of its requests.
    pub limit: Option<u64>,
    /// When conversations begin, for files that do not say.
    pub pace: Option<Pace>,
    /// From an answer to the next turn of a conversation, in seconds.
    pub think: Spread,
}

/// What is in a file of requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// The Azure LLM inference traces, as CSV.
    Azure,
    /// BurstGPT, as CSV.
    BurstGpt,
    /// Conversations as in ShareGPT, as JSON.
    ShareGpt,
    /// Decision records of a host.
    Records,
}

/// Which model a request asks for.
#[derive(Debug, Clone, PartialEq)]
pub enum Models {
    /// By weight, which are summed up here.
    Weighted(Vec<(Arc<str>, f64)>),
    /// The turns of a session, in turn.
    InTurn(Vec<Arc<str>>),
}

/// Who asks: names, and the sums of their weights.
#[derive(Debug, Clone, PartialEq)]
pub struct Tenants(pub Vec<(Arc<str>, f64)>);

pub(super) fn read(root: &Section<'_>, folder: &Path, lasts: Duration) -> Vec<Arc<Stream>> {
    let sections = root.sections("traffic");
    if sections.is_empty() {
        root.error_at(
            "traffic",
            "there is none; write at least one `[[traffic]]` with a `model` and a `rate`",
        );
    }
    sections
        .iter()
        .filter_map(|section| read_stream(section, folder, lasts))
        .map(Arc::new)
        .collect()
}

fn read_stream(section: &Section<'_>, folder: &Path, lasts: Duration) -> Option<Stream> {
    let class =
        section.string("class").filter(|class| !class.is_empty()).unwrap_or("all").to_owned();
    let source = read_source(section, folder);
    let format = match &source {
        Some(Source::Trace(trace)) => Some(trace.format),
        _ => None,
    };
    let models = read_models(section, format, matches!(source, Some(Source::Sessions(_))));
    let tenants = read_tenants(section);
    let of_file = section.has("file");
    let lengths = |key, default| match of_file {
        true => spread(section, key, Unit::Count).or(Some(default)),
        false => required_spread(section, key, Unit::Count),
    };
    // Of files, what they do not say of a request.
    let prompt = lengths("prompt", Spread::of_percentiles(900.0, 8000.0));
    let output = lengths("output", Spread::of_percentiles(250.0, 1500.0));
    let stream = Stream {
        class,
        source: source?,
        models,
        tenants,
        prompt: prompt?,
        shared: section.integer("shared", 0..=100_000_000, 0),
        output: output?,
        max_tokens: section.optional_integer("max-tokens", 1..=100_000_000),
        stream: section.bool("stream", true),
        patience: section
            .has("patience")
            .then(|| section.positive_duration("patience", Duration::from_secs(60))),
        text: section.string("text").unwrap_or_default().into(),
        headers: read_headers(section),
        from: section.duration("from", Duration::ZERO),
        until: section.duration("until", lasts).min(lasts),
        place: section.location("file"),
    };
    if section.has("until") && stream.until <= stream.from {
        section.error_at("until", "must be later than `from`");
    }
    section.report_unknown();
    Some(stream)
}

const PACES: [&str; 4] = ["rate", "daily", "every", "bursts"];

fn read_source(section: &Section<'_>, folder: &Path) -> Option<Source> {
    let ways: Vec<&str> =
        PACES.into_iter().chain(["sessions", "file"]).filter(|key| section.has(key)).collect();
    match ways.as_slice() {
        [] => {
            section.error(
                "does not say when its requests come; write one of `rate`, `daily`, `every`, `bursts`, `sessions` and `file`",
            );
            None
        }
        ["file"] | [_, "file"] => read_trace(section, folder).map(Source::Trace),
        ["sessions"] => read_sessions(&section.section("sessions")).map(Source::Sessions),
        [_] => read_pace(section).map(Source::Open),
        [_, other, ..] => {
            let what = format!("stands beside `{}`; write one of the two", ways[0]);
            section.error_at(other, what);
            None
        }
    }
}

fn read_pace(section: &Section<'_>) -> Option<Pace> {
    if section.has("daily") {
        let daily = section.section("daily");
        let most = read_rate(&daily, "most");
        let least = if daily.has("least") { daily.parsed("least", rate)? } else { 0.0 };
        let at = daily.parsed("at", time_of_day);
        let at = if daily.has("at") { at } else { Some(Duration::from_secs(14 * 3600)) };
        daily.report_unknown();
        let most = most?;
        if least > most {
            daily.error_at("least", "must not be more than `most`");
            return None;
        }
        return Some(Pace::Daily { most, least, at: at? });
    }
    if section.has("every") {
        return between(section, "every").map(Pace::Every);
    }
    if section.has("bursts") {
        let bursts = section.section("bursts");
        let (every, size) =
            (between(&bursts, "every"), required_spread(&bursts, "size", Unit::Count));
        let gap = spread(&bursts, "gap", Unit::Time).unwrap_or(Spread::Fixed(0.0));
        bursts.report_unknown();
        return Some(Pace::Bursts { every: every?, size: size?, gap });
    }
    read_rate(section, "rate").map(Pace::Poisson)
}

/// A rate that is more than nothing.
fn read_rate(section: &Section<'_>, key: &str) -> Option<f64> {
    if !section.has(key) {
        section.error_at(key, format!("is missing; write for example `{key} = \"30/h\"`"));
    }
    let rate = section.parsed(key, rate)?;
    if rate <= 0.0 {
        section.error_at(key, "must be more than nothing");
        return None;
    }
    Some(rate)
}

fn read_sessions(section: &Section<'_>) -> Option<Sessions> {
    let paces: Vec<&str> = PACES.into_iter().filter(|key| section.has(key)).collect();
    let pace = match paces.as_slice() {
        [first, second, ..] => {
            section.error_at(second, format!("stands beside `{first}`; write one of the two"));
            None
        }
        _ => read_pace(section),
    };
    let turns = required_spread(section, "turns", Unit::Count);
    let think = required_spread(section, "think", Unit::Time);
    let longest = section.optional_integer("longest", 1..=100_000_000);
    section.report_unknown();
    Some(Sessions { pace: pace?, turns: turns?, think: think?, longest })
}

fn read_trace(section: &Section<'_>, folder: &Path) -> Option<Trace> {
    let formats = [
        ("azure", Some(Format::Azure)),
        ("burstgpt", Some(Format::BurstGpt)),
        ("sharegpt", Some(Format::ShareGpt)),
        ("records", Some(Format::Records)),
    ];
    let file = section.required_string("file", "\"trace.csv\"").map(|file| folder.join(file));
    if !section.has("format") {
        section.error_at(
            "format",
            "is missing; write \"azure\", \"burstgpt\", \"sharegpt\" or \"records\"",
        );
    }
    let format = section.choice("format", &formats, None);
    let speed = if section.has("speed") { number(section, "speed", 1e-6, 1e6) } else { Some(1.0) };
    let limit = section.has("limit").then(|| section.integer("limit", 1..=i64::MAX, 1));
    let pace = PACES.into_iter().chain(["sessions"]).find(|key| section.has(key));
    let of_conversations = format == Some(Format::ShareGpt);
    let pace = match pace {
        Some(key) if !of_conversations || key == "sessions" => {
            let what =
                "stands beside `file`, which says when its requests come; write one of the two";
            section.error_at(key, what);
            None
        }
        None if of_conversations => {
            section.error_at(
                "rate",
                "is missing: conversations have no times; write when they begin, such as `rate = \"30/h\"`",
            );
            None
        }
        Some(_) => read_pace(section),
        None => None,
    };
    if section.has("think") && !of_conversations {
        section.error_at("think", "is for conversations; leave it out");
    }
    let think =
        spread(section, "think", Unit::Time).unwrap_or_else(|| Spread::of_percentiles(10.0, 120.0));
    Some(Trace { file: file?, format: format?, speed: speed?, limit, pace, think })
}

fn read_models(section: &Section<'_>, format: Option<Format>, sessions: bool) -> Option<Models> {
    let ways: Vec<&str> =
        ["model", "models", "turns"].into_iter().filter(|key| section.has(key)).collect();
    match ways.as_slice() {
        [] if matches!(format, Some(Format::BurstGpt | Format::Records)) => None,
        [] => {
            section.error_at("model", "is missing; write for example `model = \"auto\"`");
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
            let sums = sums(weights.collect::<Option<Vec<_>>>()?);
            if sums.is_none() {
                section.error_at(
                    "models",
                    "needs weights that are more than nothing, such as { orchestrator = 3, coder = 1 }",
                );
            }
            sums.map(Models::Weighted)
        }
        [_] => {
            if !sessions && format != Some(Format::ShareGpt) {
                section
                    .error_at("turns", "is for sessions; write `model`, or `models` with weights");
            }
            let turns = section.strings("turns")?;
            if turns.is_empty() {
                section.error_at(
                    "turns",
                    "is empty; write the models of a session's turns, such as [\"orchestrator\", \"coder\"]",
                );
                return None;
            }
            Some(Models::InTurn(turns.into_iter().map(Arc::from).collect()))
        }
        [first, second, ..] => {
            section.error_at(second, format!("stands beside `{first}`; write one of the two"));
            None
        }
    }
}

/// Sums of weights, so that a number below the last one picks a name.
fn sums<'n>(weights: impl IntoIterator<Item = (&'n str, f64)>) -> Option<Vec<(Arc<str>, f64)>> {
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
    let names: Vec<String> = match section.value("tenants")?.get_ref() {
        DeValue::Array(_) => section.strings("tenants")?,
        DeValue::Integer(_) => {
            let tenants = section.integer("tenants", 1..=1_000_000, 1u32);
            (1..=tenants).map(|tenant| format!("tenant-{tenant}")).collect()
        }
        _ => {
            section
                .error_at("tenants", "must be how many there are, such as 40, or a list of names");
            return None;
        }
    };
    // After Zipf: the first asks most, the second 1/2^skew of that, and so on.
    let weights = names
        .iter()
        .zip(1u32..)
        .map(|(name, rank)| (name.as_str(), libm::pow(f64::from(rank), -skew)));
    let tenants = sums(weights).map(Tenants);
    if tenants.is_none() {
        section.error_at("tenants", "is empty; name at least one, or leave it out");
    }
    tenants
}

fn read_headers(section: &Section<'_>) -> Arc<[(String, String)]> {
    let pairs = section.string_pairs("headers");
    for (name, value) in &pairs {
        let good =
            name.parse::<http::HeaderName>().is_ok() && value.parse::<http::HeaderValue>().is_ok();
        if !good {
            section
                .error_at("headers", format!("`{name}` with the value \"{value}\" is no header"));
        }
    }
    pairs.into_iter().map(|(name, value)| (name.to_ascii_lowercase(), value)).collect()
}
