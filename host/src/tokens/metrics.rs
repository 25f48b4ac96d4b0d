//! Metrics of tokens.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use pointsman_access::TokenVerifier;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

/// What is read when the metrics are.
#[derive(Debug)]
struct TokenMetrics(Arc<TokenVerifier>);

/// Registers the metrics, and returns the counter of failed fetches.
pub(super) fn register(registry: &mut Registry, verifier: &Arc<TokenVerifier>) -> Counter {
    let failures = Counter::default();
    registry.register(
        "pointsman_token_keys_failures",
        "Failed fetches of the keys of the issuer of tokens",
        failures.clone(),
    );
    registry.register_collector(Box::new(TokenMetrics(Arc::clone(verifier))));
    failures
}

impl Collector for TokenMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let status = self.0.status(SystemTime::now());
        if let Some(age) = status.age_s {
            let age = ConstGauge::new(i64::try_from(age).unwrap_or(i64::MAX));
            let (name, kind) = ("pointsman_token_keys_age_seconds", age.metric_type());
            let help = "Age of the keys of the issuer of tokens";
            age.encode(encoder.encode_descriptor(name, help, None, kind)?)?;
        }
        let refused = ConstCounter::new(status.refused);
        let (name, kind) = ("pointsman_tokens_refused", refused.metric_type());
        refused.encode(encoder.encode_descriptor(name, "Refused tokens", None, kind)?)
    }
}
