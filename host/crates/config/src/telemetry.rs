//! Reads `[telemetry]`: the export of traces and metrics. What is not set is for the standard
//! variables of OpenTelemetry to say.

use std::time::Duration;

use pointsman_fleet::ServiceUrl;
use pointsman_record::Sample;
use pointsman_settings::Section;

/// The export of traces and metrics. `None` leaves a setting to the environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Telemetry {
    /// The collector; without one, nothing is exported.
    pub endpoint: Option<ServiceUrl>,
    /// How the collector is spoken to.
    pub protocol: Option<OtlpProtocol>,
    /// Maximum time of an export.
    pub timeout: Duration,
    /// Whether traces are exported.
    pub traces: bool,
    /// The fraction of requests that are traced.
    pub sample: Option<Sample>,
    /// A request that belongs to a trace is traced if its parent is.
    pub follow_parent: Option<bool>,
    /// The interval at which metrics are exported; zero does not export them.
    pub metrics_interval: Duration,
    /// The name of the service.
    pub service_name: Option<String>,
}

/// How a collector is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OtlpProtocol {
    /// HTTP with protobuf.
    Http,
    /// gRPC.
    Grpc,
}

impl OtlpProtocol {
    /// The protocols, with their names in the configuration and in `OTEL_EXPORTER_OTLP_PROTOCOL`.
    pub const NAMES: [(&str, Self); 2] = [("http/protobuf", Self::Http), ("grpc", Self::Grpc)];
}

/// The variable with headers of exports, which are credentials of this host.
const HEADERS_VARIABLE: &str = "OTEL_EXPORTER_OTLP_HEADERS";

/// Adds what engines must not inherit from the environment.
pub(super) fn with_secret_variable(mut variables: Vec<String>) -> Vec<String> {
    if std::env::var_os(HEADERS_VARIABLE).is_some() {
        variables.push(HEADERS_VARIABLE.to_owned());
    }
    variables
}

/// Reads the section.
pub(super) fn read(section: &Section<'_>) -> Telemetry {
    let protocol = section.choice("protocol", &OtlpProtocol::NAMES, OtlpProtocol::Http);
    let follow_parent = section.bool("follow-parent", true);
    let endpoint = section
        .parsed("endpoint", |text| ServiceUrl::parse(text).map_err(|error| error.to_string()));
    let telemetry = Telemetry {
        endpoint,
        protocol: section.has("protocol").then_some(protocol),
        timeout: section.positive_duration("timeout", Duration::from_secs(10)),
        traces: section.bool("traces", true),
        sample: section.parsed("sample", Sample::parse),
        follow_parent: section.has("follow-parent").then_some(follow_parent),
        metrics_interval: section.duration("metrics-interval", Duration::from_secs(60)),
        service_name: section.string("service-name").map(str::to_owned),
    };
    section.report_unknown();
    telemetry
}
