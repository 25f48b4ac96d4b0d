//! Which limits of requests and tokens per minute there are.

use std::fmt;

use super::Keys;
use crate::groups::Inherited;
use crate::limits::{AccountId, Limit, Limits};

/// Whose limit it is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum LimitOwner {
    /// One key, by its name.
    Key(String),
    /// Each key of a group, and each bearer of a token who belongs to it.
    EachOfGroup(String),
    /// All keys of a group together.
    Group(String),
    /// All keys of a tenant together.
    Tenant(String),
}

/// A limit of requests or tokens in any 60 seconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MinuteLimit {
    /// Whose limit it is.
    pub owner: LimitOwner,
    /// [`Limit::RequestsPerMinute`] or [`Limit::TokensPerMinute`].
    pub limit: Limit,
    /// The number of requests or tokens.
    pub max: u64,
}

impl fmt::Display for LimitOwner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Key(name) => write!(f, "key `{name}`"),
            Self::EachOfGroup(name) => write!(f, "each key of group `{name}`"),
            Self::Group(name) => write!(f, "group `{name}`"),
            Self::Tenant(name) => write!(f, "tenant `{name}`"),
        }
    }
}

impl Keys {
    /// Returns the limits of requests and tokens per minute, ordered by their owners. Keys with the
    /// limits of their group are not listed one by one.
    pub fn minute_limits(&self) -> Vec<MinuteLimit> {
        let set = self.set.load();
        let mut owners = Vec::new();
        let none = Inherited::default();
        for identity in self.identities() {
            let group = identity.group.as_deref().and_then(|group| set.resolved.group(group));
            let inherited = &group.unwrap_or(&none).limits;
            let own =
                identity.accounts.iter().find(|account| account.id == AccountId::Key(identity.key));
            if let Some(own) = own.filter(|own| own.limits != *inherited) {
                owners.push((LimitOwner::Key(identity.name.clone()), own.limits.clone()));
            }
        }
        for (name, group) in set.resolved.groups() {
            owners.push((LimitOwner::EachOfGroup(name.clone()), group.limits.clone()));
            let id = AccountId::Group(name.clone());
            let shared = group.shared.iter().filter(|account| account.id == id);
            owners.extend(shared.map(|it| (LimitOwner::Group(name.clone()), it.limits.clone())));
        }
        let tenants = set.resolved.tenants();
        owners.extend(tenants.map(|it| (LimitOwner::Tenant(it.name.clone()), it.limits.clone())));
        owners.sort_by(|(one, _), (other, _)| one.cmp(other));
        owners.into_iter().flat_map(|(owner, limits)| minute_limits(&owner, &limits)).collect()
    }
}

fn minute_limits(owner: &LimitOwner, limits: &Limits) -> Vec<MinuteLimit> {
    let requests = limits.requests_per_minute.map(u64::from);
    let all =
        [(Limit::RequestsPerMinute, requests), (Limit::TokensPerMinute, limits.tokens_per_minute)];
    let known = all.into_iter().filter_map(|(limit, max)| Some((limit, max?)));
    known.map(|(limit, max)| MinuteLimit { owner: owner.clone(), limit, max }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::groups::Definitions;
    use crate::keys::KeySet;

    #[test]
    fn minute_limits_are_those_of_keys_groups_and_tenants() {
        let hash = |digit: u8| format!("hash = \"sha256:{}\"", format!("{digit:x}").repeat(64));
        let source = format!(
            "[[tenants]]\nname = \"t\"\nlimits = {{ tokens-per-minute = 900, concurrent = 1 }}\n\
             [[groups]]\nname = \"g\"\nlimits = {{ requests-per-minute = 5 }}\n\
             shared-limits = {{ requests-per-minute = 50 }}\n\
             [[groups]]\nname = \"h\"\nparent = \"g\"\n\
             [[keys]]\nid = \"a\"\ntenant = \"t\"\ngroup = \"g\"\n{}\n\
             [[keys]]\nid = \"b\"\ntenant = \"t\"\ngroup = \"g\"\n\
             limits = {{ requests-per-minute = 7 }}\n{}\n",
            hash(1),
            hash(2),
        );
        let definitions = Definitions::parse(&source).unwrap();
        let keys = Keys::from_set(KeySet::from_definitions(&definitions));
        let found: Vec<_> = keys
            .minute_limits()
            .into_iter()
            .map(|it| (it.owner.to_string(), it.limit.label(), it.max))
            .collect();
        let expected = [
            ("key `b`", "requests-per-minute", 7),
            ("each key of group `g`", "requests-per-minute", 5),
            ("each key of group `h`", "requests-per-minute", 5),
            ("group `g`", "requests-per-minute", 50),
            ("tenant `t`", "tokens-per-minute", 900),
        ];
        let expected: Vec<_> =
            expected.map(|(owner, limit, max)| (owner.to_owned(), limit, max)).to_vec();
        assert_eq!(found, expected);
    }
}
