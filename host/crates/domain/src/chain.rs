//! How policies stand in their chain: what somebody has to know, beside their components, who wants to decide as they did.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::facts::fnv1a_chain;
use crate::merge::{OnConflict, PolicyRef};

/// A chain of policies.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ChainInfo {
    /// Tells it from other chains: sixteen hexadecimal digits, worked out from all else.
    pub chain: String,
    /// What happens when the filters of several policies leave no lane.
    pub on_conflict: OnConflict,
    /// The policies in the order in which they are asked. Of one policy there may be two: the second is tried out.
    pub policies: Vec<LinkInfo>,
}

/// One version of one policy in its place.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct LinkInfo {
    /// Its name and version.
    pub policy: PolicyRef,
    /// Digest of its component, manifest and settings, in hexadecimal.
    pub fingerprint: String,
    /// SHA-256 of its component, in hexadecimal.
    pub component: String,
    /// What its scores count, in thousandths.
    pub weight: u32,
    /// What happens to a request when it gives no advice: `skip`, `default` or `refuse`.
    pub on_error: String,
    /// It is tried out: `shadow` or `canary`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trial: Option<String>,
    /// Its configuration.
    pub config: Value,
}

impl ChainInfo {
    /// Of these policies.
    pub fn new(on_conflict: OnConflict, policies: Vec<LinkInfo>) -> Self {
        let mut info = Self { chain: String::new(), on_conflict, policies };
        let text = serde_json::to_vec(&info).unwrap_or_default();
        let hash = fnv1a_chain([text.as_slice()], text.len(), 1);
        info.chain = format!("{:016x}", hash.first().copied().unwrap_or_default());
        info
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn whatever_makes_a_difference_makes_another_chain() {
        let link = |weight, config| LinkInfo {
            policy: PolicyRef::new("a", "1"),
            fingerprint: "f".to_owned(),
            component: "c".to_owned(),
            weight,
            on_error: "skip".to_owned(),
            trial: None,
            config,
        };
        let of =
            |weight, config| ChainInfo::new(OnConflict::Refuse, vec![link(weight, config)]).chain;
        let one = of(1000, json!({}));
        assert_eq!((one.len(), &one), (16, &of(1000, json!({}))));
        assert_ne!(one, of(1001, json!({})));
        assert_ne!(one, of(1000, json!({ "a": 1 })));
        assert_ne!(one, ChainInfo::new(OnConflict::IgnoreFilters, Vec::new()).chain);
    }
}
