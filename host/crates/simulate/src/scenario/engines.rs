//! How the engines of a scenario behave.

use std::time::Duration;

use pointsman_settings::{Location, Section};

use super::fleet::HostLane;
use super::quantity::{Unit, number, spread, spread_or_turns};
use crate::fleet::{Decode, EngineModel, Service};
use crate::random::Spread;

/// What is said about engines: by lane, and for all others.
#[derive(Debug, Clone, Default)]
pub struct Engines {
    default: Keys,
    /// Name of the lane, where it stands, and its keys.
    pub(super) lanes: Vec<(String, Location, Keys)>,
}

/// What one table says; what it leaves out is said elsewhere, or has a default.
#[derive(Debug, Clone, Default)]
pub(super) struct Keys {
    load: Option<Spread>,
    stop: Option<Spread>,
    fixed: Option<Fixed>,
    overhead: Option<Spread>,
    prefill: Option<f64>,
    decode: Option<Decode>,
    kv_tokens: Option<u64>,
    prefix_cache: Option<bool>,
    notices_hang: Option<Duration>,
    first_byte: Option<Duration>,
}

/// `service`.
#[derive(Debug, Clone)]
struct Fixed {
    first: Spread,
    rest: Spread,
    recorded: bool,
}

/// `[engines]`.
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

fn read_keys(section: &Section<'_>) -> Keys {
    let pause =
        |key| section.has(key).then(|| section.positive_duration(key, Duration::from_secs(1)));
    let keys = Keys {
        load: spread_or_turns(section, "load"),
        stop: spread_or_turns(section, "stop"),
        fixed: read_fixed(section),
        overhead: spread(section, "overhead", Unit::Time),
        prefill: number(section, "prefill", 1e-3, 1e9),
        decode: read_decode(section),
        kv_tokens: section.has("kv-tokens").then(|| section.integer("kv-tokens", 1..=i64::MAX, 1)),
        prefix_cache: section.has("prefix-cache").then(|| section.bool("prefix-cache", false)),
        notices_hang: pause("notices-hang"),
        first_byte: pause("first-byte"),
    };
    if let Some(other) = ["overhead", "prefill", "decode"].into_iter().find(|key| section.has(key))
        && section.has("service")
    {
        section.error_at(
            other,
            "stands beside `service`, which says how long requests take; write one of the two",
        );
    }
    keys
}

fn read_fixed(section: &Section<'_>) -> Option<Fixed> {
    if !section.has("service") {
        return None;
    }
    let service = section.section("service");
    let first = super::quantity::required_spread(&service, "first", Unit::Time);
    let rest = spread(&service, "rest", Unit::Time);
    let recorded = service.bool("recorded", false);
    service.report_unknown();
    Some(Fixed { first: first?, rest: rest.unwrap_or(Spread::Fixed(0.0)), recorded })
}

/// Pairs of answers at once and tokens a second, or one number for any number of answers.
fn read_decode(section: &Section<'_>) -> Option<Decode> {
    const EXAMPLE: &str = "a list of answers at once and the tokens a second that all of them get, such as [[1, 28], [8, 140]]";
    let value = section.json("decode")?;
    if let Some(rate) = value.as_f64() {
        number(section, "decode", 1e-3, 1e9)?;
        return Some(Decode(vec![(1, rate)]));
    }
    let point = |point: &serde_json::Value| {
        let [answers, rate] = point.as_array()?.as_slice() else { return None };
        let answers = u32::try_from(answers.as_u64()?).ok().filter(|answers| *answers > 0)?;
        Some((answers, rate.as_f64().filter(|rate| (1e-3..=1e9).contains(rate))?))
    };
    let points: Option<Vec<(u32, f64)>> =
        value.as_array().and_then(|points| points.iter().map(point).collect());
    match points.filter(|points| !points.is_empty()) {
        None => section.error_at("decode", format!("must be {EXAMPLE}")),
        Some(points) if points.windows(2).any(|pair| pair[1].0 <= pair[0].0) => {
            section.error_at("decode", "must go from few answers to many");
        }
        Some(points) => return Some(Decode(points)),
    }
    None
}

impl Engines {
    /// How the engine of a lane behaves, and the longest wait for the first byte.
    pub(super) fn of(&self, lane: &HostLane) -> (EngineModel, Duration) {
        let nothing = Keys::default();
        let own = self
            .lanes
            .iter()
            .find(|(name, ..)| *name == lane.info.name)
            .map_or(&nothing, |(_, _, keys)| keys);
        let all = &self.default;
        let expected = Spread::Fixed(lane.setup.expected_load.as_secs_f64());
        let either = |own: &Option<Spread>, all: &Option<Spread>, default| {
            own.as_ref().or(all.as_ref()).cloned().unwrap_or(default)
        };
        let rates = own.overhead.is_some() || own.prefill.is_some() || own.decode.is_some();
        let fixed = own.fixed.as_ref().or(all.fixed.as_ref().filter(|_| !rates));
        let service = match fixed.cloned() {
            Some(Fixed { first, rest, recorded }) => Service::Fixed { first, rest, recorded },
            None => Service::Rates {
                overhead: either(&own.overhead, &all.overhead, Spread::Fixed(0.02)),
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
            load: either(&own.load, &all.load, expected),
            stop: either(&own.stop, &all.stop, Spread::Fixed(5.0)),
            service,
            kv_tokens: own.kv_tokens.or(all.kv_tokens),
            prefix_cache: own.prefix_cache.or(all.prefix_cache).unwrap_or(false),
            notices_hang: own.notices_hang.or(all.notices_hang).unwrap_or(lane.notices_hang),
        };
        (model, own.first_byte.or(all.first_byte).unwrap_or(lane.first_byte))
    }
}

/// That of a model of 32 billion parameters with 4 bits each on one small GPU.
fn default_decode() -> Decode {
    Decode(vec![(1, 28.0), (8, 140.0)])
}
