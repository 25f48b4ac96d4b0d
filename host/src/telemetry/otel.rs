//! Where traces and metrics are exported: the configuration, and where it says nothing, the
//! standard variables of OpenTelemetry.

use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use pointsman_config::{OtlpProtocol, Telemetry};
use pointsman_fleet::ServiceUrl;
use pointsman_gateway::{TraceIds, TraceSettings};
use pointsman_otlp::{Attribute, Resource};

/// The name of the service if nothing else is set.
const SERVICE_NAME: &str = "pointsman";

/// Where and how traces and metrics are exported.
#[derive(Debug, Clone)]
pub(crate) struct Export {
    pub(super) endpoint: ServiceUrl,
    pub(super) protocol: OtlpProtocol,
    /// Headers of each export, which may be credentials.
    pub(super) headers: HeaderMap,
    pub(super) timeout: Duration,
    pub(super) resource: Resource,
    /// `None` if metrics are not exported.
    pub(super) metrics_interval: Option<Duration>,
    /// Which requests are traced; `None` if traces are not exported.
    pub(crate) traces: Option<TraceSettings>,
}

/// Returns the settings of the export for a configuration and the environment of this process;
/// `None` if nothing is exported.
pub(crate) fn export(config: &Telemetry) -> Option<Export> {
    resolve(config, |name| std::env::var(name).ok(), |_| ())
}

/// Does the same as [`export`], and tells of variables that are ignored because of their value.
pub(super) fn resolve(
    config: &Telemetry,
    variable: impl Fn(&str) -> Option<String>,
    mut ignore: impl FnMut(&'static str),
) -> Option<Export> {
    let variable = |name: &str| variable(name).filter(|value| !value.trim().is_empty());
    let is = |name: &str, value: &str| {
        variable(name).is_some_and(|given| given.trim().eq_ignore_ascii_case(value))
    };
    if is("OTEL_SDK_DISABLED", "true") {
        return None;
    }
    let mut parsed = |name: &'static str| {
        let url = ServiceUrl::parse(variable(name)?.trim()).ok();
        if url.is_none() {
            ignore(name);
        }
        url
    };
    let endpoint = config.endpoint.clone();
    let endpoint = endpoint.or_else(|| parsed("OTEL_EXPORTER_OTLP_ENDPOINT"))?;
    let known = |name: &str| {
        let given = variable(name)?;
        OtlpProtocol::NAMES.into_iter().find(|(known, _)| *known == given.trim())
    };
    let protocol = config.protocol.or(known("OTEL_EXPORTER_OTLP_PROTOCOL").map(|known| known.1));
    let given = variable("OTEL_EXPORTER_OTLP_HEADERS").unwrap_or_default();
    let headers = pairs(&given).filter_map(|(name, value)| {
        let mut value = HeaderValue::from_str(&value).ok()?;
        value.set_sensitive(true);
        Some((HeaderName::from_bytes(name.as_bytes()).ok()?, value))
    });
    let exports_traces = config.traces && !is("OTEL_TRACES_EXPORTER", "none");
    let exports_metrics =
        !config.metrics_interval.is_zero() && !is("OTEL_METRICS_EXPORTER", "none");
    Some(Export {
        endpoint,
        protocol: protocol.unwrap_or(OtlpProtocol::Http),
        headers: headers.collect(),
        timeout: config.timeout,
        resource: resource(config, &variable),
        metrics_interval: exports_metrics.then_some(config.metrics_interval),
        traces: exports_traces.then(|| sampling(config, &variable)),
    })
}

fn resource(config: &Telemetry, variable: &impl Fn(&str) -> Option<String>) -> Resource {
    let given = variable("OTEL_RESOURCE_ATTRIBUTES").unwrap_or_default();
    let mut all: Vec<(String, String)> = pairs(&given).collect();
    let named = all.iter().find(|(name, _)| name == "service.name").map(|(_, name)| name.clone());
    let name = config.service_name.clone().or_else(|| variable("OTEL_SERVICE_NAME")).or(named);
    all.retain(|(name, _)| !["service.name", "service.version"].contains(&name.as_str()));
    all.push(("service.name".to_owned(), name.unwrap_or_else(|| SERVICE_NAME.to_owned())));
    all.push(("service.version".to_owned(), env!("CARGO_PKG_VERSION").to_owned()));
    if !all.iter().any(|(name, _)| name == "service.instance.id") {
        // Two processes of a hand-over count on their own.
        let random = RandomState::new().hash_one(std::process::id());
        let id = format!("{random:016x}");
        all.push(("service.instance.id".to_owned(), id));
    }
    let attributes = all.iter().map(|(name, value)| Attribute::new(name, value.as_str()));
    Resource { attributes: attributes.collect() }
}

/// Returns which requests are traced.
fn sampling(config: &Telemetry, variable: &impl Fn(&str) -> Option<String>) -> TraceSettings {
    let ratio = || {
        let given = variable("OTEL_TRACES_SAMPLER_ARG")?.trim().parse::<f64>().ok()?;
        Some(given).filter(|ratio| (0.0..=1.0).contains(ratio))
    };
    let sampler = variable("OTEL_TRACES_SAMPLER").unwrap_or_default();
    let (by_variable, follows) = match sampler.trim() {
        "always_on" => (1.0, false),
        "always_off" => (0.0, false),
        "traceidratio" => (ratio().unwrap_or(1.0), false),
        "parentbased_always_off" => (0.0, true),
        "parentbased_traceidratio" => (ratio().unwrap_or(1.0), true),
        // The default of the specification is `parentbased_always_on`.
        _ => (1.0, true),
    };
    TraceSettings {
        ratio: config.sample.map_or(by_variable, pointsman_record::Sample::ratio),
        follows_parent: config.follow_parent.unwrap_or(follows),
        ids: TraceIds::default(),
    }
}

/// Reads a list such as `a=b,c=d`, with values that are percent-encoded (W3C Baggage).
fn pairs(text: &str) -> impl Iterator<Item = (String, String)> {
    text.split(',').filter_map(|pair| {
        let (name, value) = pair.split_once('=')?;
        let name = name.trim();
        (!name.is_empty()).then(|| (name.to_owned(), percent_decoded(value.trim())))
    })
}

fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let digits = after.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        let decoded = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match (first, decoded) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            _ => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: Telemetry = Telemetry {
        endpoint: None,
        protocol: None,
        timeout: Duration::from_secs(1),
        traces: true,
        sample: None,
        follow_parent: None,
        metrics_interval: Duration::from_secs(60),
        service_name: None,
    };
    const ENDPOINT: (&str, &str) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4317");

    fn resolved(config: &Telemetry, variables: &[(&str, &str)]) -> Option<Export> {
        let variable = |name: &str| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        resolve(config, variable, |_| ())
    }

    fn attribute(export: &Export, key: &str) -> Attribute {
        let mut all = export.resource.attributes.iter().filter(|attribute| attribute.key == key);
        let found = all.next().unwrap().clone();
        assert!(all.next().is_none(), "{key} is there twice");
        found
    }

    #[test]
    fn nothing_is_exported_without_an_endpoint() {
        assert!(resolved(&NOTHING, &[]).is_none());
        assert!(resolved(&NOTHING, &[(ENDPOINT.0, "")]).is_none());
        assert!(resolved(&NOTHING, &[ENDPOINT, ("OTEL_SDK_DISABLED", "true")]).is_none());
        let mut ignored = Vec::new();
        let invalid = resolve(&NOTHING, |_| Some("x y".to_owned()), |name| ignored.push(name));
        assert!(invalid.is_none() && ignored == [ENDPOINT.0]);
        let none = [ENDPOINT, ("OTEL_TRACES_EXPORTER", "none"), ("OTEL_METRICS_EXPORTER", "none")];
        let export = resolved(&NOTHING, &none).unwrap();
        assert!(export.traces.is_none() && export.metrics_interval.is_none());
    }

    #[test]
    fn variables_are_used_where_the_configuration_says_nothing() {
        let variables = [
            ENDPOINT,
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20x, bad name=1,x-a=b"),
            ("OTEL_SERVICE_NAME", "by-variable"),
            ("OTEL_RESOURCE_ATTRIBUTES", "service.name=other,deployment.environment=a%2Cb"),
            ("OTEL_TRACES_SAMPLER", "traceidratio"),
            ("OTEL_TRACES_SAMPLER_ARG", "0.25"),
        ];
        let export = resolved(&NOTHING, &variables).unwrap();
        assert_eq!(export.endpoint.to_string(), ENDPOINT.1);
        assert_eq!(export.protocol, OtlpProtocol::Grpc);
        assert_eq!(export.headers.len(), 2, "{:?}", export.headers);
        assert_eq!(export.headers["authorization"], "Bearer x");
        let name = |name: &str| Attribute::new("service.name", name);
        assert_eq!(attribute(&export, "service.name"), name("by-variable"));
        let environment = attribute(&export, "deployment.environment");
        assert_eq!(environment, Attribute::new("deployment.environment", "a,b"));
        let traces = export.traces.unwrap();
        assert_eq!((traces.ratio, traces.follows_parent), (0.25, false));
        let config = Telemetry {
            endpoint: ServiceUrl::parse("http://[::1]:1").ok(),
            protocol: Some(OtlpProtocol::Http),
            sample: pointsman_record::Sample::parse("50%").ok(),
            follow_parent: Some(true),
            service_name: Some("by-file".to_owned()),
            ..NOTHING
        };
        let export = resolved(&config, &variables).unwrap();
        assert_eq!(export.endpoint.to_string(), "http://[::1]:1");
        assert_eq!(export.protocol, OtlpProtocol::Http);
        assert_eq!(attribute(&export, "service.name"), name("by-file"));
        let traces = export.traces.unwrap();
        assert_eq!((traces.ratio, traces.follows_parent), (0.5, true));
    }

    #[test]
    fn samplers_have_their_standard_names() {
        for (sampler, ratio, follows_parent) in [
            ("always_on", 1.0, false),
            ("always_off", 0.0, false),
            ("traceidratio", 0.1, false),
            ("parentbased_always_on", 1.0, true),
            ("parentbased_always_off", 0.0, true),
            ("parentbased_traceidratio", 0.1, true),
            ("unknown", 1.0, true),
        ] {
            let of_sampler = [("OTEL_TRACES_SAMPLER", sampler), ("OTEL_TRACES_SAMPLER_ARG", "0.1")];
            let export = resolved(&NOTHING, &[&[ENDPOINT][..], &of_sampler].concat()).unwrap();
            let traces = export.traces.unwrap();
            assert_eq!((traces.ratio, traces.follows_parent), (ratio, follows_parent), "{sampler}");
        }
    }
}
