//! Descriptions of policy chains: everything besides the components that is needed to reproduce a
//! decision.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::facts::fnv1a_chain;
use crate::merge::OnConflict;
use crate::policy_ref::PolicyRef;

/// The description of a chain of policies.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ChainInfo {
    /// Identifier of the chain: 16 hexadecimal digits, a hash of all other fields.
    pub chain: String,
    /// What happens when the filters of several policies leave no lane.
    pub on_conflict: OnConflict,
    /// The policies in call order. A policy that has a candidate version appears twice; the
    /// candidate is the second entry.
    pub policies: Vec<ChainLink>,
}

/// One version of one policy within a chain.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ChainLink {
    /// Name and version of the policy.
    pub policy: PolicyRef,
    /// Digest of the component, manifest and settings, in hexadecimal.
    pub fingerprint: String,
    /// SHA-256 of the component, in hexadecimal.
    pub component: String,
    /// Weight of the policy's scores, in thousandths.
    pub weight: u32,
    /// What happens to a request when the policy gives no advice: `skip`, `default` or `refuse`.
    pub on_error: String,
    /// Rollout mode of a candidate version, `shadow` or `canary`; `None` for the active version.
    #[serde(rename = "rollout", alias = "trial", default, skip_serializing_if = "Option::is_none")]
    pub trial: Option<String>,
    /// Configuration of the policy.
    pub config: Value,
}

impl ChainInfo {
    /// Describes a chain of these policies and computes its identifier.
    pub fn new(on_conflict: OnConflict, policies: Vec<ChainLink>) -> Self {
        let mut info = Self { chain: String::new(), on_conflict, policies };
        // The identifier is still empty here, so it does not hash itself. Serialising strings and
        // numbers cannot fail; an empty text would only make two chains share an identifier.
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
    fn chain_id_depends_on_every_field() {
        let link = |weight, config| ChainLink {
            policy: PolicyRef::new("a", "1"),
            fingerprint: "f".to_owned(),
            component: "c".to_owned(),
            weight,
            on_error: "skip".to_owned(),
            trial: None,
            config,
        };
        let chain_id =
            |weight, config| ChainInfo::new(OnConflict::Refuse, vec![link(weight, config)]).chain;
        let one = chain_id(1000, json!({}));
        assert_eq!((one.len(), &one), (16, &chain_id(1000, json!({}))));
        assert_ne!(one, chain_id(1001, json!({})));
        assert_ne!(one, chain_id(1000, json!({ "a": 1 })));
        assert_ne!(one, ChainInfo::new(OnConflict::IgnoreFilters, Vec::new()).chain);
    }
}
