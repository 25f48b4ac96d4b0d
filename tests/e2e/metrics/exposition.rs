//! What `/metrics` says of each metric, in the text format of Prometheus.

use std::collections::{BTreeMap, BTreeSet};

/// A metric as it is described and as its samples are.
#[derive(Debug, Default)]
pub(super) struct Metric {
    pub(super) kind: String,
    pub(super) help: String,
    /// The labels of the samples, without `le`; `None` without a sample.
    pub(super) labels: Option<BTreeSet<String>>,
}

/// Returns the metrics by name; those of counters end with `_total`.
pub(super) fn parse(text: &str) -> BTreeMap<String, Metric> {
    let mut metrics: BTreeMap<String, Metric> = BTreeMap::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap();
            metrics.entry(name.to_owned()).or_default().help = help.to_owned();
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            metrics.entry(name.to_owned()).or_default().kind = kind.to_owned();
        } else {
            let (name, labels) = sample(line);
            let name = family(&metrics, name);
            let metric = metrics.get_mut(name).unwrap_or_else(|| panic!("not described: {line}"));
            match &metric.labels {
                None => metric.labels = Some(labels),
                Some(others) => assert_eq!(*others, labels, "series of {name} differ"),
            }
        }
    }
    metrics
}

/// Returns the name of the metric that a sample belongs to.
fn family<'a>(metrics: &BTreeMap<String, Metric>, sample: &'a str) -> &'a str {
    let parts = ["_bucket", "_sum", "_count"].iter();
    let histogram = parts.filter_map(|part| sample.strip_suffix(part));
    let is_histogram =
        |name: &&str| metrics.get(*name).is_some_and(|metric| metric.kind == "histogram");
    histogram.into_iter().find(is_histogram).unwrap_or(sample)
}

/// Returns the name and the labels of a line.
fn sample(line: &str) -> (&str, BTreeSet<String>) {
    let Some((name, mut rest)) = line.split_once('{') else {
        return (line.split(' ').next().unwrap(), BTreeSet::new());
    };
    let mut labels = BTreeSet::new();
    while let Some((label, value)) = rest.split_once("=\"") {
        let label = label.trim_start_matches(',');
        if label != "le" {
            labels.insert(label.to_owned());
        }
        let mut is_escaped = false;
        let end = value.find(|next| {
            let ends = next == '"' && !is_escaped;
            is_escaped = next == '\\' && !is_escaped;
            ends
        });
        rest = &value[end.unwrap() + 1..];
    }
    assert!(rest.starts_with("} "), "{line}");
    (name, labels)
}
