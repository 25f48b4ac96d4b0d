//! Metrics by tenant.

use std::sync::OnceLock;

use pointsman_access::Refusal;
use pointsman_domain::{RequestResult, TokenCounts};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

use crate::label_values::{LabelValues, outcome_label};

/// Maximum number of tenants with metrics of their own: the first ones that send requests.
const MAX_TENANTS: usize = 100;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    tenant: String,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TokenLabels {
    tenant: String,
    kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LimitLabels {
    tenant: String,
    limit: &'static str,
}

/// The counters of a tenant. Each is looked up by its labels once, when it is first needed.
#[derive(Debug, Default)]
struct Counters {
    label: String,
    /// In the order of [`KINDS`].
    tokens: [OnceLock<Counter>; 3],
    /// In the order of [`RESULTS`].
    results: [OnceLock<Counter>; 5],
}

const KINDS: [&str; 3] = ["prompt", "cached", "output"];

const RESULTS: [RequestResult; 5] = [
    RequestResult::Answered,
    RequestResult::FellBack,
    RequestResult::Rejected,
    RequestResult::Error,
    RequestResult::ClientGone,
];

/// Metrics by tenant.
#[derive(Debug)]
pub(crate) struct TenantMetrics {
    tenants: LabelValues<Counters>,
    requests: Family<RequestLabels, Counter>,
    tokens: Family<TokenLabels, Counter>,
    limited: Family<LimitLabels, Counter>,
}

impl Default for TenantMetrics {
    fn default() -> Self {
        Self {
            tenants: LabelValues::new(MAX_TENANTS),
            requests: Family::default(),
            tokens: Family::default(),
            limited: Family::default(),
        }
    }
}

impl TenantMetrics {
    pub(crate) fn register(&self, registry: &mut Registry) {
        registry.register(
            "pointsman_tenant_requests",
            "Requests by tenant and outcome",
            self.requests.clone(),
        );
        registry.register(
            "pointsman_tenant_tokens",
            "Tokens by tenant and kind",
            self.tokens.clone(),
        );
        registry.register(
            "pointsman_tenant_limited",
            "Requests that a limit refused, by tenant and limit",
            self.limited.clone(),
        );
    }

    /// Counts the end of a request.
    pub(crate) fn ended(&self, tenant: &str, result: RequestResult, tokens: TokenCounts) {
        let counters = self.tenants.get(tenant);
        let TokenCounts { prompt, cached, output } = tokens;
        let counts = [prompt, cached, output].into_iter().zip(KINDS).zip(&counters.tokens);
        for ((count, kind), counter) in counts.filter(|((count, _), _)| *count > 0) {
            let labels = || TokenLabels { tenant: counters.label.clone(), kind };
            let counter = counter.get_or_init(|| self.tokens.get_or_create(&labels()).clone());
            counter.inc_by(count.into());
        }
        let of_result = RESULTS.into_iter().zip(&counters.results);
        for (_, counter) in of_result.filter(|(other, _)| *other == result) {
            let tenant = || counters.label.clone();
            let labels = || RequestLabels { tenant: tenant(), outcome: outcome_label(result) };
            counter.get_or_init(|| self.requests.get_or_create(&labels()).clone()).inc();
        }
    }

    /// Counts a request that a limit has refused.
    pub(crate) fn limited(&self, tenant: &str, refusal: &Refusal) {
        let limit = refusal.limit.label();
        let tenant = self.tenants.get(tenant).label.clone();
        self.limited.get_or_create(&LimitLabels { tenant, limit }).inc();
    }
}

impl From<String> for Counters {
    fn from(label: String) -> Self {
        Self { label, ..Self::default() }
    }
}

#[cfg(test)]
mod tests {
    use pointsman_access::{AccountId, Limit, Period};

    use super::*;

    #[test]
    fn tenants_are_bounded_and_escaped() {
        let metrics = TenantMetrics::default();
        let mut registry = Registry::default();
        metrics.register(&mut registry);
        let tokens = TokenCounts { prompt: 5, cached: 0, output: 2 };
        metrics.ended("a\"} 1\nfake{x=\"", RequestResult::Answered, tokens);
        for tenant in 0..150 {
            metrics.ended(&format!("t{tenant}"), RequestResult::Answered, tokens);
        }
        let refusal = Refusal {
            account: AccountId::Key(1),
            limit: Limit::TokenBudget(Period::Day),
            max: 1,
            asked: 2,
            retry_after: None,
        };
        metrics.limited("t1", &refusal);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for line in [
            r#"pointsman_tenant_requests_total{tenant="a\"} 1\nfake{x=\"",outcome="answered"} 1"#,
            "pointsman_tenant_requests_total{tenant=\"t98\",outcome=\"answered\"} 1",
            "pointsman_tenant_requests_total{tenant=\"other\",outcome=\"answered\"} 51",
            "pointsman_tenant_tokens_total{tenant=\"other\",kind=\"prompt\"} 255",
            "pointsman_tenant_limited_total{tenant=\"t1\",limit=\"token-budget\"} 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        assert!(!text.contains("cached") && !text.contains("t99"));
    }
}
