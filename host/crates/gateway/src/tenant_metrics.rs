//! Metrics by tenant.

use std::collections::HashSet;

use parking_lot::RwLock;
use pointsman_access::{Limit, Refusal};
use pointsman_domain::TokenCounts;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

/// Maximum number of tenants with metrics of their own: the first ones that send requests.
const MAX_TENANTS: usize = 100;

/// The label of all other tenants.
const OTHER: &str = "other";

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

/// Metrics by tenant.
#[derive(Debug, Default)]
pub(crate) struct TenantMetrics {
    tenants: RwLock<HashSet<Box<str>>>,
    requests: Family<RequestLabels, Counter>,
    tokens: Family<TokenLabels, Counter>,
    limited: Family<LimitLabels, Counter>,
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
    pub(crate) fn ended(&self, tenant: &str, outcome: &'static str, tokens: TokenCounts) {
        let tenant = self.label(tenant);
        let TokenCounts { prompt, cached, output } = tokens;
        for (kind, count) in [("prompt", prompt), ("cached", cached), ("output", output)] {
            if count > 0 {
                let labels = TokenLabels { tenant: tenant.clone(), kind };
                self.tokens.get_or_create(&labels).inc_by(count.into());
            }
        }
        self.requests.get_or_create(&RequestLabels { tenant, outcome }).inc();
    }

    /// Counts a request that a limit has refused.
    pub(crate) fn limited(&self, tenant: &str, refusal: &Refusal) {
        let limit = match refusal.limit {
            Limit::RequestsPerMinute => "requests-per-minute",
            Limit::TokensPerMinute => "tokens-per-minute",
            Limit::Concurrent => "concurrent",
            Limit::Queued => "queued",
            Limit::TokenBudget(_) => "token-budget",
            Limit::RequestBudget(_) => "request-budget",
            Limit::EngineBudget(_) => "engine-budget",
        };
        self.limited.get_or_create(&LimitLabels { tenant: self.label(tenant), limit }).inc();
    }

    /// Returns the value of the label `tenant`.
    fn label(&self, tenant: &str) -> String {
        {
            let tenants = self.tenants.read();
            if tenants.contains(tenant) {
                return tenant.to_owned();
            }
            if tenants.len() >= MAX_TENANTS {
                return OTHER.to_owned();
            }
        }
        let mut tenants = self.tenants.write();
        // Another thread may have added the last one.
        if tenants.contains(tenant) || tenants.len() < MAX_TENANTS {
            tenants.insert(tenant.into());
            return tenant.to_owned();
        }
        OTHER.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use pointsman_access::{AccountId, Period};

    use super::*;

    #[test]
    fn tenants_are_bounded_and_escaped() {
        let metrics = TenantMetrics::default();
        let mut registry = Registry::default();
        metrics.register(&mut registry);
        let tokens = TokenCounts { prompt: 5, cached: 0, output: 2 };
        metrics.ended("a\"} 1\nfake{x=\"", "answered", tokens);
        for tenant in 0..150 {
            metrics.ended(&format!("t{tenant}"), "answered", tokens);
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
