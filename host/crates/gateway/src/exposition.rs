//! The formats of `/metrics`: OpenMetrics for scrapers that accept it, as Prometheus does, and
//! Prometheus's older text format for all others. Samples are the same in both, and the lines that
//! describe metrics differ.

use http::HeaderMap;
use http::header::ACCEPT;

/// A format of metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exposition {
    /// OpenMetrics 1.0.
    OpenMetrics,
    /// Text format 0.0.4 of Prometheus.
    Text,
}

impl Exposition {
    /// Returns the format for a request with these headers.
    pub(crate) fn for_request(headers: &HeaderMap) -> Self {
        let mut values = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
        let accepts = |value: &str| {
            value.split(',').any(|range| {
                let (name, _) = range.split_once(';').unwrap_or((range, ""));
                name.trim().eq_ignore_ascii_case("application/openmetrics-text")
            })
        };
        if values.any(accepts) { Self::OpenMetrics } else { Self::Text }
    }

    /// Returns the value of the header `content-type`.
    pub(crate) fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
        }
    }

    /// Converts OpenMetrics, in which the counter `x` has the sample `x_total`. In the older
    /// format, the description of a counter has the name of the sample.
    pub(crate) fn convert(self, openmetrics: String) -> String {
        match self {
            Self::OpenMetrics => openmetrics,
            Self::Text => to_text(&openmetrics),
        }
    }
}

fn to_text(openmetrics: &str) -> String {
    let mut text = String::with_capacity(openmetrics.len());
    // The description of a metric begins with its help.
    let mut help = "";
    for line in openmetrics.split_inclusive('\n') {
        let Some(description) = line.strip_prefix("# ") else {
            text.push_str(line);
            continue;
        };
        if let Some(rest) = description.strip_prefix("HELP ") {
            help = rest;
        } else if let Some((name, kind)) =
            description.strip_prefix("TYPE ").and_then(|rest| rest.trim_end().split_once(' '))
        {
            let (suffix, kind) = match kind {
                "counter" => ("_total", kind),
                "unknown" => ("", "untyped"),
                kind => ("", kind),
            };
            if let Some(help) = help.strip_prefix(name) {
                text.extend(["# HELP ", name, suffix, help]);
            }
            text.extend(["# TYPE ", name, suffix, " ", kind, "\n"]);
        }
        // The other descriptions, of units and of the end, do not exist in the older format.
    }
    text
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn counters_are_described_by_the_names_of_their_samples() {
        let openmetrics = "# HELP requests Requests by lane.\n# TYPE requests counter\n\
            requests_total{lane=\"# HELP\"} 1\n# HELP wait_seconds Time.\n\
            # TYPE wait_seconds histogram\n# UNIT wait_seconds seconds\nwait_seconds_sum 0.5\n\
            # HELP x X.\n# TYPE x unknown\n# EOF\n";
        let text = Exposition::Text.convert(openmetrics.to_owned());
        let expected = "# HELP requests_total Requests by lane.\n# TYPE requests_total counter\n\
            requests_total{lane=\"# HELP\"} 1\n# HELP wait_seconds Time.\n\
            # TYPE wait_seconds histogram\nwait_seconds_sum 0.5\n\
            # HELP x X.\n# TYPE x untyped\n";
        assert_eq!(text, expected);
        assert_eq!(Exposition::OpenMetrics.convert(openmetrics.to_owned()), openmetrics);
    }

    #[test]
    fn scraper_gets_the_format_that_it_accepts() {
        // The header of Prometheus 2.42.
        let prometheus = "application/openmetrics-text;version=1.0.0,\
            application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5";
        for (accept, format) in [
            (None, Exposition::Text),
            (Some("*/*"), Exposition::Text),
            (Some("text/plain;version=0.0.4, application/json"), Exposition::Text),
            (Some(prometheus), Exposition::OpenMetrics),
            (Some("text/plain, Application/OpenMetrics-Text"), Exposition::OpenMetrics),
        ] {
            let mut headers = HeaderMap::new();
            if let Some(accept) = accept {
                headers.insert(ACCEPT, HeaderValue::from_static(accept));
            }
            assert_eq!(Exposition::for_request(&headers), format, "{accept:?}");
        }
    }
}
