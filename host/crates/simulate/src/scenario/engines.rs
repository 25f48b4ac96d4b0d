//! `[engines]`: the performance models of a scenario's engines.

use std::time::Duration;

use pointsman_settings::{Code, Location, Section};

use super::fleet::HostLane;
use super::quantity::{
    Unit, conflict, distribution, distribution_or_sequence, number, required_distribution,
};
use crate::fleet::{DecodeRates, EngineModel, ServiceModel};
use crate::random::Distribution;

/// The engine models: defaults, and the keys of individual lanes.
#[derive(Debug, Clone, Default)]
pub struct Engines {
    default: EngineKeys,
    /// The name of a lane, the position of its table, and its keys.
    pub(super) lanes: Vec<(String, Location, EngineKeys)>,
}

/// The keys of one table. A missing key is taken from `[engines.default]` or has a default.
#[derive(Debug, Clone, Default)]
pub(super) struct EngineKeys {
    load: Option<Distribution>,
    stop: Option<Distribution>,
    service_time: Option<ServiceTime>,
    overhead: Option<Distribution>,
    prefill: Option<f64>,
    decode: Option<DecodeRates>,
    kv_tokens: Option<u64>,
    prefix_cache: Option<bool>,
    hang_detection_time: Option<Duration>,
    first_byte_timeout: Option<Duration>,
}

/// The key `service-time`.
#[derive(Debug, Clone)]
struct ServiceTime {
    first_token: Distribution,
    rest: Distribution,
    use_recorded: bool,
}

/// Reads `[engines]`.
pub(super) fn read(section: &Section<'_>) -> Engines {
    let mut engines = Engines::default();
    for name in section.keys() {
        let table = section.section(name);
        let keys = read_keys(&table);
        table.report_unknown();
        match name {
            "default" => engines.default = keys,
            lane => engines.lanes.push((lane.to_owned(), section.location(lane), keys)),
        }
    }
    engines
}

fn read_keys(section: &Section<'_>) -> EngineKeys {
    let duration =
        |key| section.has(key).then(|| section.positive_duration(key, Duration::from_secs(1)));
    let keys = EngineKeys {
        load: distribution_or_sequence(section, "load"),
        stop: distribution_or_sequence(section, "stop"),
        service_time: read_service_time(section),
        overhead: distribution(section, "overhead", Unit::Time),
        prefill: number(section, "prefill", 1e-3, 1e9),
        decode: read_decode(section),
        kv_tokens: section.has("kv-tokens").then(|| section.integer("kv-tokens", 1..=i64::MAX, 1)),
        prefix_cache: section.has("prefix-cache").then(|| section.bool("prefix-cache", false)),
        hang_detection_time: duration("hang-detection-time"),
        first_byte_timeout: duration("first-byte-timeout"),
    };
    if let Some(rate) = ["overhead", "prefill", "decode"].into_iter().find(|key| section.has(key))
        && section.has("service-time")
    {
        conflict(section, rate, "service-time");
    }
    keys
}

fn read_service_time(section: &Section<'_>) -> Option<ServiceTime> {
    if !section.has("service-time") {
        return None;
    }
    let service = section.section("service-time");
    let first_token = required_distribution(&service, "first-token", Unit::Time);
    let rest = distribution(&service, "rest", Unit::Time);
    let use_recorded = service.bool("use-recorded", false);
    service.report_unknown();
    Some(ServiceTime {
        first_token: first_token?,
        rest: rest.unwrap_or(Distribution::Fixed(0.0)),
        use_recorded,
    })
}

/// Reads pairs of a number of responses and their total tokens per second, or a single rate.
fn read_decode(section: &Section<'_>) -> Option<DecodeRates> {
    let value = section.json("decode")?;
    if let Some(rate) = value.as_f64() {
        // Reports a rate that is out of range.
        number(section, "decode", 1e-3, 1e9)?;
        return Some(DecodeRates(vec![(1, rate)]));
    }
    let point = |point: &serde_json::Value| {
        let [responses, rate] = point.as_array()?.as_slice() else { return None };
        let responses =
            u32::try_from(responses.as_u64()?).ok().filter(|responses| *responses > 0)?;
        Some((responses, rate.as_f64().filter(|rate| (1e-3..=1e9).contains(rate))?))
    };
    let points: Option<Vec<(u32, f64)>> =
        value.as_array().and_then(|points| points.iter().map(point).collect());
    match points.filter(|points| !points.is_empty()) {
        None => {
            let message = "expected a list of pairs of a number of parallel responses and their \
                           total tokens per second, for example [[1, 28], [8, 140]]";
            section.error_at("decode", Code::InvalidValue.with(message));
        }
        Some(points) if points.windows(2).any(|pair| pair[1].0 <= pair[0].0) => {
            let message = "invalid order: the number of parallel responses must increase";
            section.error_at("decode", Code::InvalidValue.with(message));
        }
        Some(points) => return Some(DecodeRates(points)),
    }
    None
}

impl Engines {
    /// Returns the engine model of a lane and its first-byte timeout.
    pub(super) fn for_lane(&self, lane: &HostLane) -> (EngineModel, Duration) {
        let empty = EngineKeys::default();
        let own = self
            .lanes
            .iter()
            .find(|(name, ..)| *name == lane.info.name)
            .map_or(&empty, |(_, _, keys)| keys);
        let all = &self.default;
        let expected_load = Distribution::Fixed(lane.setup.expected_load.as_secs_f64());
        let either = |own: &Option<Distribution>, all: &Option<Distribution>, default| {
            own.as_ref().or(all.as_ref()).cloned().unwrap_or(default)
        };
        // Rates of the lane itself override a default service time.
        let has_rates = own.overhead.is_some() || own.prefill.is_some() || own.decode.is_some();
        let fixed = own.service_time.as_ref().or(all.service_time.as_ref().filter(|_| !has_rates));
        let service = match fixed.cloned() {
            Some(ServiceTime { first_token, rest, use_recorded }) => {
                ServiceModel::Fixed { first_token, rest, use_recorded }
            }
            None => ServiceModel::Rates {
                overhead: either(&own.overhead, &all.overhead, Distribution::Fixed(0.02)),
                prefill: own.prefill.or(all.prefill).unwrap_or(2500.0),
                decode: own
                    .decode
                    .as_ref()
                    .or(all.decode.as_ref())
                    .cloned()
                    .unwrap_or_else(default_decode),
            },
        };
        let model = EngineModel {
            load_time: either(&own.load, &all.load, expected_load),
            stop_time: either(&own.stop, &all.stop, Distribution::Fixed(5.0)),
            service,
            kv_tokens: own.kv_tokens.or(all.kv_tokens),
            prefix_cache: own.prefix_cache.or(all.prefix_cache).unwrap_or(false),
            hang_detection_time: own
                .hang_detection_time
                .or(all.hang_detection_time)
                .unwrap_or(lane.hang_detection_time),
        };
        let first_byte_timeout = own.first_byte_timeout.or(all.first_byte_timeout);
        (model, first_byte_timeout.unwrap_or(lane.first_byte))
    }
}

/// Returns the decode rates of a model with 32 billion parameters of 4 bits on a small GPU.
fn default_decode() -> DecodeRates {
    DecodeRates(vec![(1, 28.0), (8, 140.0)])
}
