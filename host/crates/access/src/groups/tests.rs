use proptest::prelude::*;

use super::*;
use crate::limits::Period;

/// A group of the model: few values, so that equal ones occur.
fn group() -> impl Strategy<Value = GroupSpec> {
    let grants = (option(), option(), any::<Option<bool>>());
    (grants, limits(), limits()).prop_map(|((models, lanes, engine_admin), limits, shared)| {
        let names = |number: u32| vec![number.to_string()];
        let grants = Grants {
            models: models.map(names),
            lanes: lanes.map(names),
            engine_admin,
            ..Grants::default()
        };
        GroupSpec { grants, limits, shared_limits: shared, ..GroupSpec::default() }
    })
}

fn option() -> impl Strategy<Value = Option<u32>> {
    proptest::option::of(0u32..9)
}

fn limits() -> impl Strategy<Value = Limits> {
    let budget = (option(), option()).prop_map(|(tokens, requests)| Budget {
        period: Period::Day,
        tokens: tokens.map(u64::from),
        requests: requests.map(u64::from),
        engine_seconds: None,
    });
    let budget = proptest::option::of(budget);
    (option(), option(), budget).prop_map(|(requests, concurrent, budget)| Limits {
        requests_per_minute: requests,
        concurrent,
        budgets: budget.into_iter().collect(),
        ..Limits::default()
    })
}

/// Returns the nearest value, from a key to its furthest ancestor.
fn nearest<T>(levels: &[GroupSpec], value: impl Fn(&GroupSpec) -> Option<T>) -> Option<T> {
    levels.iter().find_map(value)
}

proptest! {
    /// Each setting is that of the nearest level that has it.
    #[test]
    fn nearest_setting_wins(levels in proptest::collection::vec(group(), 1..6)) {
        let names: Vec<String> = (0..levels.len()).map(|level| format!("g{level}")).collect();
        let mut groups = levels.clone();
        for (level, group) in groups.iter_mut().enumerate() {
            group.name.clone_from(&names[level]);
            group.parent = names.get(level + 1).cloned();
        }
        let resolved = Resolved::new(&Definitions { groups, ..Definitions::default() });
        let found = resolved.group("g0").unwrap();
        let models = nearest(&levels, |group| group.grants.models.clone());
            prop_assert_eq!(&found.grants.models, &models);
        prop_assert_eq!(&found.grants.lanes, &nearest(&levels, |group| group.grants.lanes.clone()));
        let admin = nearest(&levels, |group| group.grants.engine_admin);
        prop_assert_eq!(found.grants.engine_admin, admin);
        let limit = |limit: fn(&Limits) -> Option<u64>| {
            (limit(&found.limits), nearest(&levels, |group| limit(&group.limits)))
        };
        let pairs = [
            limit(|limits| limits.requests_per_minute.map(u64::from)),
            limit(|limits| limits.concurrent.map(u64::from)),
            limit(|limits| limits.budgets.first()?.tokens),
            limit(|limits| limits.budgets.first()?.requests),
        ];
        for (found, expected) in pairs {
            prop_assert_eq!(found, expected);
        }
        // Shared limits are not inherited: each group has its own account.
        let ids = found.shared.iter().map(|account| account.id.clone());
            let shared: Vec<AccountId> = ids.collect();
        let with_limits = names.iter().zip(&levels);
        let with_limits = with_limits.filter(|(_, group)| group.shared_limits != Limits::default());
        let expected: Vec<AccountId> =
            with_limits.map(|(name, _)| AccountId::Group(name.clone())).collect();
        prop_assert_eq!(shared, expected);
    }
}

#[test]
fn accounts_are_in_the_order_key_groups_tenant() {
    let limits = |requests| Limits { requests_per_minute: Some(requests), ..Limits::default() };
    let group = |name: &str, parent: Option<&str>, shared: Limits| GroupSpec {
        name: name.to_owned(),
        parent: parent.map(str::to_owned),
        shared_limits: shared,
        ..GroupSpec::default()
    };
    let resolved = Resolved::new(&Definitions {
        tenants: vec![TenantSpec { name: "acme".to_owned(), weight: 3, limits: limits(1) }],
        groups: vec![
            group("staff", None, limits(2)),
            group("interns", Some("staff"), limits(3)),
            group("night", Some("interns"), Limits::default()),
        ],
        keys: Vec::new(),
    });
    let shared = &resolved.group("night").unwrap().shared;
    let ids = |tenant, limits| -> Vec<AccountId> {
        let accounts = resolved.accounts(7, limits, shared, tenant);
        accounts.into_iter().map(|account| account.id).collect()
    };
    let group = |name: &str| AccountId::Group(name.to_owned());
    let tenant = AccountId::Tenant("acme".to_owned());
    let all = vec![AccountId::Key(7), group("interns"), group("staff"), tenant];
    assert_eq!(ids("acme", limits(4)), all);
    assert_eq!(ids("other", Limits::default()), all[1..3]);
    assert_eq!((resolved.weight("acme"), resolved.weight("other")), (3, 1));
}
