//! Tenants, groups and keys as they are defined, and what follows from that for one key.

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::time::SystemTime;

use pointsman_domain::Endpoint;

use crate::limits::{AccountId, AccountLimits, Budget, Limits};
use crate::rights::Rights;
use crate::secret::SecretHash;

/// Everything that a keys file defines.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Definitions {
    /// The tenants with settings of their own; keys may name others.
    pub tenants: Vec<TenantSpec>,
    /// The groups. Their parents exist, and there are no cycles.
    pub groups: Vec<GroupSpec>,
    /// The keys. Their groups exist.
    pub keys: Vec<KeySpec>,
}

/// A tenant with settings of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TenantSpec {
    /// The name.
    pub name: String,
    /// Its share of slots and queue places.
    pub weight: u32,
    /// Limits of all its keys together.
    pub limits: Limits,
}

/// A group of keys.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GroupSpec {
    /// The name.
    pub name: String,
    /// The group whose settings apply where this one has none.
    pub parent: Option<String>,
    /// What its keys may be used for.
    pub grants: Grants,
    /// Limits of each of its keys.
    pub limits: Limits,
    /// Limits of all its keys together, and of those of groups below it.
    pub shared_limits: Limits,
}

/// A key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeySpec {
    /// Its name in the usage, the log and commands.
    pub id: String,
    /// The digests of its secrets, each with the time until which it is valid.
    pub hashes: Vec<(SecretHash, Option<SystemTime>)>,
    /// The tenant.
    pub tenant: String,
    /// The group.
    pub group: Option<String>,
    /// When the key expires.
    pub expires: Option<SystemTime>,
    /// What it may be used for.
    pub grants: Grants,
    /// Its limits.
    pub limits: Limits,
}

/// Rights, where `None` stands for those of the parent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "described in `Rights`")]
pub struct Grants {
    pub models: Option<Vec<String>>,
    pub lanes: Option<Vec<String>>,
    pub endpoints: Option<Vec<Endpoint>>,
    pub listeners: Option<Vec<String>>,
    pub engine_admin: Option<bool>,
    pub priority: Option<RangeInclusive<i32>>,
}

impl Grants {
    /// Returns these grants, and those of a parent where there are none.
    #[must_use]
    pub fn or(&self, parent: &Self) -> Self {
        Self {
            models: self.models.clone().or_else(|| parent.models.clone()),
            lanes: self.lanes.clone().or_else(|| parent.lanes.clone()),
            endpoints: self.endpoints.clone().or_else(|| parent.endpoints.clone()),
            listeners: self.listeners.clone().or_else(|| parent.listeners.clone()),
            engine_admin: self.engine_admin.or(parent.engine_admin),
            priority: self.priority.clone().or_else(|| parent.priority.clone()),
        }
    }
}

impl From<Grants> for Rights {
    fn from(grants: Grants) -> Self {
        Self {
            models: grants.models,
            lanes: grants.lanes,
            endpoints: grants.endpoints,
            listeners: grants.listeners,
            engine_admin: grants.engine_admin.unwrap_or(false),
            priority: grants.priority,
        }
    }
}

/// Returns the limits of a key or group, and those of its parent where it has none: one by one, in
/// budgets too.
pub(crate) fn inherit(own: &Limits, parent: &Limits) -> Limits {
    let mut budgets = own.budgets.clone();
    for budget in &parent.budgets {
        match budgets.iter_mut().find(|own| own.period == budget.period) {
            None => budgets.push(*budget),
            Some(own) => {
                *own = Budget {
                    period: own.period,
                    tokens: own.tokens.or(budget.tokens),
                    requests: own.requests.or(budget.requests),
                    engine_seconds: own.engine_seconds.or(budget.engine_seconds),
                };
            }
        }
    }
    budgets.sort_by_key(|budget| budget.period);
    Limits {
        requests_per_minute: own.requests_per_minute.or(parent.requests_per_minute),
        tokens_per_minute: own.tokens_per_minute.or(parent.tokens_per_minute),
        concurrent: own.concurrent.or(parent.concurrent),
        queued: own.queued.or(parent.queued),
        budgets,
    }
}

/// What all keys of a group have, with what the group inherits.
#[derive(Debug, Clone, Default)]
pub(crate) struct Inherited {
    pub(crate) grants: Grants,
    /// Limits of each key.
    pub(crate) limits: Limits,
    /// The group and its ancestors, as far as they have shared limits; the nearest first.
    pub(crate) shared: Vec<AccountLimits>,
}

/// Groups with what they inherit, and tenants, by name.
#[derive(Debug, Default)]
pub(crate) struct Resolved {
    groups: HashMap<String, Inherited>,
    tenants: HashMap<String, TenantSpec>,
}

impl Resolved {
    pub(crate) fn new(definitions: &Definitions) -> Self {
        let by_name: HashMap<&str, &GroupSpec> =
            definitions.groups.iter().map(|group| (group.name.as_str(), group)).collect();
        let groups = definitions.groups.iter();
        let groups = groups.map(|group| (group.name.clone(), resolve(group, &by_name)));
        let tenants = definitions.tenants.iter();
        Self {
            groups: groups.collect(),
            tenants: tenants.map(|tenant| (tenant.name.clone(), tenant.clone())).collect(),
        }
    }

    /// Returns what keys of a group have; `None` if there is not such a group.
    pub(crate) fn group(&self, name: &str) -> Option<&Inherited> {
        self.groups.get(name)
    }

    /// Returns all groups with what keys of them have, in no order.
    pub(crate) fn groups(&self) -> impl Iterator<Item = (&String, &Inherited)> {
        self.groups.iter()
    }

    /// Returns the tenants with settings of their own, in no order.
    pub(crate) fn tenants(&self) -> impl Iterator<Item = &TenantSpec> {
        self.tenants.values()
    }

    /// Returns a tenant's share of slots and queue places.
    pub(crate) fn weight(&self, tenant: &str) -> u32 {
        self.tenants.get(tenant).map_or(1, |tenant| tenant.weight)
    }

    /// Returns the accounts of a key: its own, those of its groups, and the tenant's.
    pub(crate) fn accounts(
        &self,
        key: u64,
        limits: Limits,
        shared: &[AccountLimits],
        tenant: &str,
    ) -> Vec<AccountLimits> {
        let of_tenant = self.tenants.get(tenant).map(|tenant| AccountLimits {
            id: AccountId::Tenant(tenant.name.clone()),
            limits: tenant.limits.clone(),
        });
        let own = AccountLimits { id: AccountId::Key(key), limits };
        let all = std::iter::once(own).chain(shared.iter().cloned()).chain(of_tenant);
        all.filter(|account| account.limits != Limits::default()).collect()
    }
}

/// Returns what a group has with what it inherits.
fn resolve(group: &GroupSpec, by_name: &HashMap<&str, &GroupSpec>) -> Inherited {
    let mut resolved = Inherited::default();
    let mut next = Some(group);
    // The reader has refused cycles; without them, no path is longer than the number of groups.
    for _ in 0..by_name.len() {
        let Some(group) = next else { break };
        resolved.grants = resolved.grants.or(&group.grants);
        resolved.limits = inherit(&resolved.limits, &group.limits);
        if group.shared_limits != Limits::default() {
            let id = AccountId::Group(group.name.clone());
            resolved.shared.push(AccountLimits { id, limits: group.shared_limits.clone() });
        }
        next = group.parent.as_deref().and_then(|parent| by_name.get(parent).copied());
    }
    resolved
}

#[cfg(test)]
mod tests;
