//! The messages of metrics.

use prost::Message;

use crate::messages::{Attribute, Resource, Scope};
use crate::open_metrics::{Family, Kind, Sample, families};

/// `AGGREGATION_TEMPORALITY_CUMULATIVE`: values count from the start of the process.
const CUMULATIVE: i32 = 2;

#[derive(Clone, PartialEq, Message)]
struct MetricsRequest {
    #[prost(message, repeated, tag = "1")]
    resource_metrics: Vec<ResourceMetrics>,
}

#[derive(Clone, PartialEq, Message)]
struct ResourceMetrics {
    #[prost(message, optional, tag = "1")]
    resource: Option<Resource>,
    #[prost(message, repeated, tag = "2")]
    scope_metrics: Vec<ScopeMetrics>,
}

#[derive(Clone, PartialEq, Message)]
struct ScopeMetrics {
    #[prost(message, optional, tag = "1")]
    scope: Option<Scope>,
    #[prost(message, repeated, tag = "2")]
    metrics: Vec<Metric>,
}

#[derive(Clone, PartialEq, Message)]
struct Metric {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    description: String,
    #[prost(oneof = "Data", tags = "5, 7, 9")]
    data: Option<Data>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum Data {
    #[prost(message, tag = "5")]
    Gauge(Gauge),
    #[prost(message, tag = "7")]
    Sum(Sum),
    #[prost(message, tag = "9")]
    Histogram(Histogram),
}

#[derive(Clone, PartialEq, Message)]
struct Gauge {
    #[prost(message, repeated, tag = "1")]
    points: Vec<NumberPoint>,
}

#[derive(Clone, PartialEq, Message)]
struct Sum {
    #[prost(message, repeated, tag = "1")]
    points: Vec<NumberPoint>,
    #[prost(int32, tag = "2")]
    temporality: i32,
    #[prost(bool, tag = "3")]
    is_monotonic: bool,
}

#[derive(Clone, PartialEq, Message)]
struct Histogram {
    #[prost(message, repeated, tag = "1")]
    points: Vec<HistogramPoint>,
    #[prost(int32, tag = "2")]
    temporality: i32,
}

#[derive(Clone, PartialEq, Message)]
struct NumberPoint {
    #[prost(fixed64, tag = "2")]
    start: u64,
    #[prost(fixed64, tag = "3")]
    time: u64,
    /// Optional, so that zero is written: a point without a value is one that was not recorded.
    #[prost(double, optional, tag = "4")]
    value: Option<f64>,
    #[prost(message, repeated, tag = "7")]
    attributes: Vec<Attribute>,
}

#[derive(Clone, PartialEq, Message)]
struct HistogramPoint {
    #[prost(fixed64, tag = "2")]
    start: u64,
    #[prost(fixed64, tag = "3")]
    time: u64,
    #[prost(fixed64, tag = "4")]
    count: u64,
    #[prost(double, optional, tag = "5")]
    sum: Option<f64>,
    #[prost(fixed64, repeated, tag = "6")]
    buckets: Vec<u64>,
    #[prost(double, repeated, tag = "7")]
    bounds: Vec<f64>,
    #[prost(message, repeated, tag = "9")]
    attributes: Vec<Attribute>,
}

/// Encodes an `ExportMetricsServiceRequest` from metrics in the text format of OpenMetrics. Times
/// are nanoseconds since the Unix epoch: when the process started, and now.
pub fn metrics_request(resource: &Resource, text: &str, (start, now): (u64, u64)) -> Vec<u8> {
    let metrics = families(text).iter().map(|family| metric(family, (start, now))).collect();
    let scope_metrics = ScopeMetrics { scope: Some(Scope::this_program()), metrics };
    let resource = Some(resource.clone());
    let resource_metrics = ResourceMetrics { resource, scope_metrics: vec![scope_metrics] };
    MetricsRequest { resource_metrics: vec![resource_metrics] }.encode_to_vec()
}

fn metric(family: &Family<'_>, times: (u64, u64)) -> Metric {
    let points = |suffix: &str| {
        let samples = family.samples.iter().filter(|sample| sample.suffix == suffix);
        samples.map(|sample| number(sample, times)).collect()
    };
    let data = match family.kind {
        Kind::Gauge => Data::Gauge(Gauge { points: points("") }),
        Kind::Counter => {
            let (points, temporality) = (points("_total"), CUMULATIVE);
            Data::Sum(Sum { points, temporality, is_monotonic: true })
        }
        Kind::Histogram => {
            let points = histograms(&family.samples, times);
            Data::Histogram(Histogram { points, temporality: CUMULATIVE })
        }
    };
    Metric { name: family.name.to_owned(), description: family.help.to_owned(), data: Some(data) }
}

fn number(sample: &Sample<'_>, (start, time): (u64, u64)) -> NumberPoint {
    let attributes = attributes(&sample.labels);
    NumberPoint { start, time, value: Some(sample.value), attributes }
}

fn attributes(labels: &[(&str, String)]) -> Vec<Attribute> {
    labels.iter().map(|(name, value)| Attribute::new(name, value)).collect()
}

/// Collects the samples of histograms. Those of one histogram follow each other, and end with its
/// buckets.
fn histograms(samples: &[Sample<'_>], (start, time): (u64, u64)) -> Vec<HistogramPoint> {
    let mut points: Vec<HistogramPoint> = Vec::new();
    let mut before = 0;
    for sample in samples {
        let mut labels = sample.labels.clone();
        labels.retain(|(name, _)| *name != "le");
        let attributes = attributes(&labels);
        // Counts are integers that a double represents exactly.
        let value = sample.value as u64;
        if points.last().is_none_or(|point| point.attributes != attributes) {
            points.push(HistogramPoint { start, time, attributes, ..HistogramPoint::default() });
            before = 0;
        }
        let Some(point) = points.last_mut() else { continue };
        match sample.suffix {
            "_sum" => point.sum = Some(sample.value),
            "_count" => point.count = value,
            "_bucket" => {
                // The text has cumulative counts.
                point.buckets.push(value.saturating_sub(before));
                before = value;
                let bound = sample.labels.iter().find(|(name, _)| *name == "le");
                let bound = bound.and_then(|(_, bound)| bound.parse::<f64>().ok());
                point.bounds.extend(bound.filter(|bound| bound.is_finite()));
            }
            _ => {}
        }
    }
    points
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text::encode;
    use prometheus_client::metrics::counter::Counter;
    use prometheus_client::metrics::family::Family as Metrics;
    use prometheus_client::metrics::gauge::Gauge as ValueGauge;
    use prometheus_client::metrics::histogram::Histogram as Buckets;
    use prometheus_client::registry::Registry;

    use super::*;

    #[test]
    fn a_registry_is_exported_completely() {
        let mut registry = Registry::default();
        let counters = Metrics::<Vec<(String, String)>, Counter>::default();
        let label = |value: &str| vec![("lane".to_owned(), value.to_owned())];
        counters.get_or_create(&label("a\"b\\c\nd, e=\"f\"}")).inc_by(3);
        counters.get_or_create(&label("")).inc_by(0);
        registry.register("requests", "All requests", counters);
        let gauge = ValueGauge::<i64>::default();
        gauge.set(-2);
        registry.register("waiting", "Requests that wait", gauge);
        let histograms = Metrics::<Vec<(String, String)>, Buckets>::new_with_constructor(|| {
            Buckets::new([0.5, 1.0])
        });
        for value in [0.1, 0.7, 0.8, 5.0] {
            histograms.get_or_create(&label("a")).observe(value);
        }
        histograms.get_or_create(&label("b")).observe(0.6);
        registry.register("seconds", "Durations", histograms);
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        let bytes = metrics_request(&Resource::default(), &text, (1, 2));
        let decoded = MetricsRequest::decode(bytes.as_slice()).unwrap();
        let metrics = &decoded.resource_metrics[0].scope_metrics[0].metrics;
        assert_eq!(metrics.len(), 3, "{text}");
        let Some(Data::Sum(sum)) = &metrics[0].data else { panic!("{metrics:?}") };
        let mut values: Vec<_> = sum.points.iter().map(|point| point.value).collect();
        values.sort_by(|one, other| one.partial_cmp(other).unwrap());
        assert_eq!(values, [Some(0.0), Some(3.0)], "{text}");
        let expected = [Attribute::new("lane", "a\"b\\c\nd, e=\"f\"}")];
        assert!(sum.points.iter().any(|point| point.attributes == expected), "{text}\n{sum:?}");
        assert!(sum.points.iter().all(|point| (point.start, point.time) == (1, 2)));
        let Some(Data::Gauge(gauge)) = &metrics[1].data else { panic!("{metrics:?}") };
        assert_eq!(gauge.points[0].value, Some(-2.0));
        let Some(Data::Histogram(histogram)) = &metrics[2].data else { panic!("{metrics:?}") };
        assert_eq!(histogram.points.len(), 2, "{text}");
        let is_a = |point: &&HistogramPoint| point.attributes == [Attribute::new("lane", "a")];
        let a = histogram.points.iter().find(is_a).unwrap();
        assert_eq!((a.count, &a.buckets[..], &a.bounds[..]), (4, &[1, 2, 1][..], &[0.5, 1.0][..]));
        assert!((a.sum.unwrap() - 6.6).abs() < 1e-9);
    }
}
