//! `[[traffic]]`: the streams of requests of a scenario.

mod source;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use pointsman_settings::{Code, Location, Section, missing, percentage};
use toml::de::DeValue;

use self::source::read_source;
use super::quantity::{Unit, conflict, distribution, number, required_distribution};
use crate::arrivals::{
    HeaderValue, Headers, Media, Models, Tenants, TraceFormat, TrafficSource, TrafficStream,
};
use crate::random::Distribution;

/// Reads `[[traffic]]`. Each stream comes with the position of its trace file.
pub(super) fn read(
    root: &Section<'_>,
    folder: &Path,
    duration: Duration,
) -> Vec<(Arc<TrafficStream>, Location)> {
    let sections = root.sections("traffic");
    if sections.is_empty() {
        let message = "no traffic defined: add a `[[traffic]]` with a `model` and a `rate`";
        root.error_at("traffic", Code::MissingKey.with(message));
    }
    sections
        .iter()
        .filter_map(|section| {
            let stream = read_stream(section, folder, duration)?;
            Some((Arc::new(stream), section.location("file")))
        })
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
    let (headers, media) = (read_headers(section), read_media(section));
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
        headers: headers?,
        media: media?,
        from: section.duration("from", Duration::ZERO),
        until: section.duration("until", duration).min(duration),
    };
    if section.has("until") && stream.until <= stream.from {
        section.error_at("until", Code::Conflict.with("must be later than `from`"));
    }
    section.report_unknown();
    Some(stream)
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
        ["models"] => read_weights(section, "models").map(Models::Weighted),
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

/// Reads a table of weights, and returns them cumulated.
fn read_weights(section: &Section<'_>, key: &str) -> Option<Vec<(Arc<str>, f64)>> {
    let table = section.section(key);
    let weights =
        table.keys().into_iter().map(|name| Some((name, number(&table, name, 0.0, 1e9)?)));
    let weights = cumulative_weights(weights.collect::<Option<Vec<_>>>()?);
    if weights.is_none() {
        let message = "no weight is greater than zero: expected for example { one = 3, other = 1 }";
        section.error_at(key, Code::OutOfRange.with(message));
    }
    weights
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

/// Reads the headers: each has a value for all requests, or values with weights of which each
/// session gets one.
fn read_headers(section: &Section<'_>) -> Option<Headers> {
    // A value may be a table, which `section` does not say of a table with any keys.
    let table = section.section("headers");
    let mut headers = Vec::new();
    for name in table.keys() {
        let value = match table.value(name)?.get_ref() {
            DeValue::Table(_) => HeaderValue::Weighted(read_weights(&table, name)?),
            _ => HeaderValue::Text(table.string(name)?.to_owned()),
        };
        let values: Vec<&str> = match &value {
            HeaderValue::Text(text) => vec![text],
            HeaderValue::Weighted(weights) => weights.iter().map(|(value, _)| &**value).collect(),
        };
        let invalid = values.into_iter().find(|value| {
            name.parse::<http::HeaderName>().is_err() || value.parse::<http::HeaderValue>().is_err()
        });
        if let Some(value) = invalid {
            section.error_at("headers", format!("invalid HTTP header \"{name}: {value}\""));
        }
        headers.push((name.to_ascii_lowercase(), value));
    }
    let same = headers.iter().map(|(name, value)| match value {
        HeaderValue::Text(text) if !text.contains(HeaderValue::SESSION) => {
            Some((name.clone(), text.clone()))
        }
        HeaderValue::Text(_) | HeaderValue::Weighted(_) => None,
    });
    Some(same.collect::<Option<_>>().map_or(Headers::PerSession(headers), Headers::Same))
}

/// Reads the number of images: a distribution, or the share of requests with one, as a percentage.
/// Returns `Some(None)` if there are none.
fn read_media(section: &Section<'_>) -> Option<Option<Media>> {
    let Some(value) = section.value("media") else { return Some(None) };
    if let DeValue::String(_) = value.get_ref() {
        let share = f64::from(section.parsed("media", percentage)?) / 1000.0;
        return Some(Some(Media { share, count: Distribution::Fixed(1.0) }));
    }
    let count = distribution(section, "media", Unit::Count)?;
    let most = match &count {
        Distribution::Fixed(count) => *count,
        Distribution::OneOf(counts) => counts.iter().copied().fold(0.0, f64::max),
        // The others have no maximum, or one that they seldom reach: their values are limited.
        _ => 0.0,
    };
    if most > f64::from(Media::MAX) {
        let message = format!("out of range: expected at most {} images in a request", Media::MAX);
        section.error_at("media", Code::OutOfRange.with(message));
        return None;
    }
    Some(Some(Media { share: 1.0, count }))
}
