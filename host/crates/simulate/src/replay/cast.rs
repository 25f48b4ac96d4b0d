//! Who is asked again: policies that are ready, in the chain that a decision is made by now.

use std::collections::BTreeMap;
use std::sync::Arc;

use pointsman_domain::{ChainInfo, LinkInfo, OnConflict, PolicyRef};
use pointsman_policy::{ChainSpec, DryRunChain, OnError, PolicySpec, RehearsalError, marks};
use pointsman_record::DecisionRecord;
use serde_json::json;

use crate::experiment::SimulationEnv;

/// Who is asked.
#[derive(Debug, Clone)]
pub enum Who {
    /// This chain, whatever the chain was that wrote a record.
    Chain(ChainSpec),
    /// The chain that wrote a record, in which these take the place of those of their names, with their weights and
    /// configurations; or come last. All others say what they said then.
    Instead(Vec<PolicySpec>),
}

/// Why nobody can be asked.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// A policy cannot be used.
    #[error(transparent)]
    Policy(#[from] RehearsalError),
    /// How a policy was configured is not to be known.
    #[error(
        "the configuration of `{0}` is redacted in the records; name that of the host with --config, or record with \
         `text = \"keep\"` in `[records.redact]`"
    )]
    Redacted(String),
}

/// One place in the chain.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) name: String,
    pub(super) weight: u32,
    pub(super) on_error: OnError,
    /// It is asked again, and does not say what it said.
    pub(super) asked: bool,
}

/// A chain that is ready.
#[derive(Debug)]
pub(super) struct Cast {
    pub(super) rehearsal: DryRunChain,
    pub(super) links: Vec<Link>,
    pub(super) on_conflict: OnConflict,
    now: Option<Arc<ChainInfo>>,
}

impl Cast {
    fn new(
        stage: &SimulationEnv,
        spec: &ChainSpec,
        links: Vec<Link>,
    ) -> Result<Arc<Self>, ReplayError> {
        let rehearsal = DryRunChain::load(&stage.runtime, spec)?;
        let now = rehearsal.begin().advisor().chain().cloned();
        Ok(Arc::new(Self { rehearsal, links, on_conflict: spec.on_conflict, now }))
    }

    /// Is the policy of that name asked again?
    pub(super) fn asks(&self, name: &str) -> bool {
        self.links.iter().any(|link| link.asked && link.name == name)
    }

    /// Would `then`, which a chain of these was, be the same version now?
    pub(super) fn is_same(&self, then: &PolicyRef, chain: Option<&ChainInfo>) -> bool {
        let named = |link: &&LinkInfo| link.policy.name == then.name;
        let Some(now) = self.now.as_ref().and_then(|now| now.policies.iter().find(named)) else {
            return false;
        };
        match chain.and_then(|chain| chain.policies.iter().find(|link| link.policy == *then)) {
            // Deadlines and the like belong to the fingerprint, and do not stand in records.
            Some(then) => {
                then.fingerprint == now.fingerprint
                    || (then.component == now.component && marks::fits(&then.config, &now.config))
            }
            None => *then == now.policy,
        }
    }
}

/// Makes casts when they are needed.
#[derive(Debug)]
pub(super) struct Casting<'a> {
    stage: &'a SimulationEnv,
    who: Who,
    ready: BTreeMap<String, Arc<Cast>>,
    chains: BTreeMap<String, ChainInfo>,
}

impl<'a> Casting<'a> {
    /// A chain that does not depend on records is made at once.
    pub(super) fn new(stage: &'a SimulationEnv, who: Who) -> Result<Self, ReplayError> {
        let mut ready = BTreeMap::new();
        if let Who::Chain(spec) = &who {
            let link = |policy: &PolicySpec| Link {
                name: policy.name.clone(),
                weight: policy.weight,
                on_error: policy.on_error,
                asked: true,
            };
            let links = spec.policies.iter().map(link).collect();
            ready.insert(String::new(), Cast::new(stage, spec, links)?);
        }
        Ok(Self { stage, who, ready, chains: BTreeMap::new() })
    }

    /// A chain that wrote records.
    pub(super) fn add(&mut self, chain: ChainInfo) {
        self.chains.insert(chain.chain.clone(), chain);
    }

    /// The chain that made a decision, as far as it is known.
    pub(super) fn chain(&self, record: &DecisionRecord) -> Option<&ChainInfo> {
        self.chains.get(record.chain.as_deref()?)
    }

    /// Who decides now about what is in a record.
    pub(super) fn cast(&mut self, record: &DecisionRecord) -> Result<Arc<Cast>, ReplayError> {
        let (key, places) = match (&self.who, self.chain(record)) {
            (Who::Chain(_), _) => (String::new(), Vec::new()),
            (Who::Instead(_), Some(chain)) => (chain.chain.clone(), places(chain)),
            (Who::Instead(_), None) => guessed(record),
        };
        if let Some(cast) = self.ready.get(&key) {
            return Ok(Arc::clone(cast));
        }
        let on_conflict = self.chain(record).map(|chain| chain.on_conflict).unwrap_or_default();
        let Who::Instead(policies) = &self.who else { return self.nobody() };
        let cast = instead(self.stage, policies, places, on_conflict)?;
        self.ready.insert(key, Arc::clone(&cast));
        Ok(cast)
    }

    fn nobody(&self) -> Result<Arc<Cast>, ReplayError> {
        Cast::new(self.stage, &ChainSpec::default(), Vec::new())
    }
}

/// A place of a chain that wrote records, with what is known of the policy's configuration.
type Place = (Link, serde_json::Value);

fn places(chain: &ChainInfo) -> Vec<Place> {
    let place = |link: &LinkInfo| {
        let on_error = serde_json::from_value(json!(link.on_error)).unwrap_or_default();
        let (name, weight) = (link.policy.name.to_string(), link.weight);
        (Link { name, weight, on_error, asked: false }, link.config.clone())
    };
    chain.policies.iter().filter(|link| link.trial.is_none()).map(place).collect()
}

/// Records of earlier hosts do not name their chain: it was made of those who were asked.
fn guessed(record: &DecisionRecord) -> (String, Vec<Place>) {
    let mut places: Vec<Place> = Vec::new();
    for call in record.consulted.iter().filter(|call| call.hook == super::ON_REQUEST) {
        let name = call.policy.name.to_string();
        if places.iter().all(|(link, _)| link.name != name) {
            let link = Link { name, weight: 1000, on_error: OnError::default(), asked: false };
            places.push((link, json!({})));
        }
    }
    let names: Vec<&str> = places.iter().map(|(link, _)| link.name.as_str()).collect();
    // No chain has such a name.
    (format!("of {}", names.join(" ")), places)
}

fn instead(
    stage: &SimulationEnv,
    policies: &[PolicySpec],
    mut places: Vec<Place>,
    on_conflict: OnConflict,
) -> Result<Arc<Cast>, ReplayError> {
    for policy in policies {
        if places.iter().all(|(link, _)| link.name != policy.name) {
            let (name, weight, on_error) = (policy.name.clone(), policy.weight, policy.on_error);
            places.push((
                Link { name, weight, on_error, asked: false },
                policy.settings.config.clone(),
            ));
        }
    }
    let mut asked = Vec::new();
    for (link, config) in &mut places {
        let Some(policy) = policies.iter().find(|policy| policy.name == link.name) else {
            continue;
        };
        if marks::redacted(config) {
            return Err(ReplayError::Redacted(link.name.clone()));
        }
        link.asked = true;
        let mut policy =
            PolicySpec { weight: link.weight, on_error: link.on_error, ..policy.clone() };
        policy.settings.config = config.clone();
        asked.push(policy);
    }
    let spec = ChainSpec { policies: asked, on_conflict, ..ChainSpec::default() };
    Cast::new(stage, &spec, places.into_iter().map(|(link, _)| link).collect())
}
