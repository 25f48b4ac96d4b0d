//! The chains of policies that decisions are replayed with.

use std::collections::BTreeMap;
use std::sync::Arc;

use pointsman_domain::{ChainInfo, ChainLink, OnConflict, PolicyRef};
use pointsman_policy::{ChainSpec, DryRunChain, DryRunError, OnError, PolicySpec, Runtime, marks};
use pointsman_record::DecisionRecord;
use serde_json::json;

use crate::context::ON_REQUEST;

/// The source of the policies that decisions are replayed with.
#[derive(Debug, Clone)]
pub enum ChainSource {
    /// A configured chain, whichever chain wrote a record.
    Configured(ChainSpec),
    /// The chain that wrote a record. The overrides replace the policies of the same names, with
    /// the recorded weights and configurations, or are appended. Only the overrides are replayed;
    /// the advice of all other policies is taken from the record.
    Recorded {
        /// The policies that are replayed.
        overrides: Vec<PolicySpec>,
    },
}

/// An error that prevents a replay.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// A policy cannot be loaded.
    #[error(transparent)]
    Policy(#[from] DryRunError),
    /// The configuration of a policy is redacted in the records.
    #[error(
        "configuration of policy `{0}` is redacted in the records; pass the host's configuration \
         with --config, or record with `text = \"keep\"` in `[records.redact]`"
    )]
    Redacted(String),
}

/// A link of a chain.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) name: String,
    pub(crate) weight: u32,
    pub(crate) on_error: OnError,
    /// True if the policy is called again; false if its recorded advice is used.
    pub(crate) is_replayed: bool,
}

/// A chain that is ready to be replayed.
#[derive(Debug)]
pub(crate) struct ReplayChain {
    pub(crate) dry_run: DryRunChain,
    pub(crate) links: Vec<Link>,
    pub(crate) on_conflict: OnConflict,
    info: Option<Arc<ChainInfo>>,
}

impl ReplayChain {
    fn load(
        runtime: &Arc<Runtime>,
        spec: &ChainSpec,
        links: Vec<Link>,
    ) -> Result<Arc<Self>, ReplayError> {
        let dry_run = DryRunChain::load(runtime, spec)?;
        let info = dry_run.begin().advisor().chain().cloned();
        Ok(Arc::new(Self { dry_run, links, on_conflict: spec.on_conflict, info }))
    }

    /// Returns true if the policy of this name is called again.
    pub(crate) fn replays(&self, name: &str) -> bool {
        self.links.iter().any(|link| link.is_replayed && link.name == name)
    }

    /// Returns true if the policy is replayed with the same version that wrote the record.
    /// `recorded_chain` is the chain that `recorded` belonged to, if it is known.
    pub(crate) fn is_same_version(
        &self,
        recorded: &PolicyRef,
        recorded_chain: Option<&ChainInfo>,
    ) -> bool {
        let named = |link: &&ChainLink| link.policy.name == recorded.name;
        let Some(link) = self.info.as_ref().and_then(|info| info.policies.iter().find(named))
        else {
            return false;
        };
        let recorded_link = recorded_chain
            .and_then(|chain| chain.policies.iter().find(|link| link.policy == *recorded));
        match recorded_link {
            // The fingerprint covers limits such as the deadline, which do not affect decisions and
            // are not recorded; so an equal component with an equal configuration is the same, too.
            Some(recorded) => {
                recorded.fingerprint == link.fingerprint
                    || (recorded.component == link.component
                        && marks::fits(&recorded.config, &link.config))
            }
            None => *recorded == link.policy,
        }
    }
}

/// The chains of a replay, which are loaded when they are first needed.
#[derive(Debug)]
pub(crate) struct ReplayChains<'a> {
    runtime: &'a Arc<Runtime>,
    source: ChainSource,
    loaded: BTreeMap<String, Arc<ReplayChain>>,
    recorded: BTreeMap<String, ChainInfo>,
}

impl<'a> ReplayChains<'a> {
    /// Creates the chains of a replay. A configured chain does not depend on the records and is
    /// loaded immediately.
    pub(crate) fn new(runtime: &'a Arc<Runtime>, source: ChainSource) -> Result<Self, ReplayError> {
        let mut loaded = BTreeMap::new();
        if let ChainSource::Configured(spec) = &source {
            let link = |policy: &PolicySpec| Link {
                name: policy.name.clone(),
                weight: policy.weight,
                on_error: policy.on_error,
                is_replayed: true,
            };
            let links = spec.policies.iter().map(link).collect();
            loaded.insert(String::new(), ReplayChain::load(runtime, spec, links)?);
        }
        Ok(Self { runtime, source, loaded, recorded: BTreeMap::new() })
    }

    /// Adds a chain that wrote records.
    pub(crate) fn add(&mut self, chain: ChainInfo) {
        self.recorded.insert(chain.chain.clone(), chain);
    }

    /// Returns the chain that made the decision of a record, if it is known.
    pub(crate) fn recorded(&self, record: &DecisionRecord) -> Option<&ChainInfo> {
        self.recorded.get(record.chain.as_deref()?)
    }

    /// Returns the chain that a record is replayed with.
    pub(crate) fn for_record(
        &mut self,
        record: &DecisionRecord,
    ) -> Result<Arc<ReplayChain>, ReplayError> {
        let (key, links) = match (&self.source, self.recorded(record)) {
            (ChainSource::Configured(_), _) => (String::new(), Vec::new()),
            (ChainSource::Recorded { .. }, Some(chain)) => {
                (chain.chain.clone(), recorded_links(chain))
            }
            (ChainSource::Recorded { .. }, None) => inferred_links(record),
        };
        if let Some(chain) = self.loaded.get(&key) {
            return Ok(Arc::clone(chain));
        }
        let on_conflict = self.recorded(record).map(|chain| chain.on_conflict).unwrap_or_default();
        let ChainSource::Recorded { overrides } = &self.source else { return self.empty() };
        let chain = with_overrides(self.runtime, overrides, links, on_conflict)?;
        self.loaded.insert(key, Arc::clone(&chain));
        Ok(chain)
    }

    fn empty(&self) -> Result<Arc<ReplayChain>, ReplayError> {
        ReplayChain::load(self.runtime, &ChainSpec::default(), Vec::new())
    }
}

/// A link of a recorded chain, with the recorded configuration of the policy.
type RecordedLink = (Link, serde_json::Value);

fn recorded_links(chain: &ChainInfo) -> Vec<RecordedLink> {
    let recorded_link = |link: &ChainLink| {
        let on_error = serde_json::from_value(json!(link.on_error)).unwrap_or_default();
        let (name, weight) = (link.policy.name.to_string(), link.weight);
        (Link { name, weight, on_error, is_replayed: false }, link.config.clone())
    };
    chain.policies.iter().filter(|link| link.trial.is_none()).map(recorded_link).collect()
}

/// Returns the links of a chain that is not recorded, because an earlier version of the host wrote
/// the record: the policies that were called, with default settings.
fn inferred_links(record: &DecisionRecord) -> (String, Vec<RecordedLink>) {
    let mut links: Vec<RecordedLink> = Vec::new();
    for call in record.consulted.iter().filter(|call| call.hook == ON_REQUEST) {
        let name = call.policy.name.to_string();
        if links.iter().all(|(link, _)| link.name != name) {
            let on_error = OnError::default();
            links.push((Link { name, weight: 1000, on_error, is_replayed: false }, json!({})));
        }
    }
    let names: Vec<&str> = links.iter().map(|(link, _)| link.name.as_str()).collect();
    // The identifier of a recorded chain contains no space, so this key cannot collide with one.
    (format!("of {}", names.join(" ")), links)
}

fn with_overrides(
    runtime: &Arc<Runtime>,
    overrides: &[PolicySpec],
    mut links: Vec<RecordedLink>,
    on_conflict: OnConflict,
) -> Result<Arc<ReplayChain>, ReplayError> {
    for policy in overrides {
        if links.iter().all(|(link, _)| link.name != policy.name) {
            let (name, weight, on_error) = (policy.name.clone(), policy.weight, policy.on_error);
            links.push((
                Link { name, weight, on_error, is_replayed: false },
                policy.settings.config.clone(),
            ));
        }
    }
    let mut replayed = Vec::new();
    for (link, config) in &mut links {
        let Some(policy) = overrides.iter().find(|policy| policy.name == link.name) else {
            continue;
        };
        if marks::redacted(config) {
            return Err(ReplayError::Redacted(link.name.clone()));
        }
        link.is_replayed = true;
        let mut policy =
            PolicySpec { weight: link.weight, on_error: link.on_error, ..policy.clone() };
        policy.settings.config = config.clone();
        replayed.push(policy);
    }
    let spec = ChainSpec { policies: replayed, on_conflict, ..ChainSpec::default() };
    ReplayChain::load(runtime, &spec, links.into_iter().map(|(link, _)| link).collect())
}
