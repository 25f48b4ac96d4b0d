use proptest::prelude::*;

use super::*;

const RULES: TenantBreakerRules = TenantBreakerRules { min_faults: 3, max_percent: 20 };
const OPENED_OWN: Option<BreakerChange> =
    Some(BreakerChange { scope: BreakerScope::Tenant, opened: true });
const OPENED_ALL: Option<BreakerChange> =
    Some(BreakerChange { scope: BreakerScope::All, opened: true });

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn record(
    breaker: &mut TenantBreaker,
    tenant: &str,
    second: u64,
    faults: &[bool],
) -> [Option<BreakerChange>; 2] {
    let mut changes = [None, None];
    for is_fault in faults {
        changes = breaker.record(Some(tenant), at(second), *is_fault);
    }
    changes
}

#[test]
fn faults_of_one_tenant_stop_that_tenant_only() {
    let mut breaker = TenantBreaker::new(&RULES);
    assert_eq!(record(&mut breaker, "a", 0, &[true, true]), [None, None]);
    assert_eq!(record(&mut breaker, "a", 1, &[true]), [OPENED_OWN, None]);
    assert_eq!(breaker.admit(Some("a"), at(1)), Err(BreakerScope::Tenant));
    assert_eq!(breaker.admit(Some("b"), at(1)), Ok(()));
    assert_eq!(breaker.admit(None, at(1)), Ok(()));
    assert_eq!((breaker.is_open(), breaker.open_tenants()), (false, 1));
    // The probe of the tenant decides.
    assert_eq!(breaker.admit(Some("a"), at(2)), Ok(()));
    assert_eq!(breaker.admit(Some("a"), at(2)), Err(BreakerScope::Tenant));
    assert_eq!(record(&mut breaker, "a", 2, &[true]), [OPENED_OWN, None]);
    assert_eq!(breaker.admit(Some("a"), at(3)), Err(BreakerScope::Tenant), "the backoff doubles");
    assert_eq!(breaker.admit(Some("a"), at(4)), Ok(()));
    let closed = Some(BreakerChange { scope: BreakerScope::Tenant, opened: false });
    assert_eq!(record(&mut breaker, "a", 4, &[false]), [closed, None]);
    assert_eq!(record(&mut breaker, "a", 4, &[true, true]), [None, None], "counted anew");
    assert_eq!(breaker.open_tenants(), 0);
}

#[test]
fn faults_of_several_tenants_stop_all() {
    let mut breaker = TenantBreaker::new(&RULES);
    record(&mut breaker, "a", 0, &[true, true]);
    assert_eq!(record(&mut breaker, "b", 0, &[true]), [None, None], "one fault of another one");
    assert_eq!(record(&mut breaker, "b", 0, &[true]), [None, OPENED_ALL]);
    for tenant in [Some("a"), Some("b"), Some("c"), None] {
        assert_eq!(breaker.admit(tenant, at(0)), Err(BreakerScope::All), "{tenant:?}");
    }
    assert!(breaker.is_open());
    assert_eq!(breaker.admit(Some("c"), at(1)), Ok(()));
    breaker.record(Some("c"), at(1), false);
    assert_eq!((breaker.is_open(), breaker.admit(Some("a"), at(1))), (false, Ok(())));
}

#[test]
fn one_fault_of_another_tenant_does_not_stop_all() {
    let mut breaker = TenantBreaker::new(&RULES);
    assert_eq!(record(&mut breaker, "a", 0, &[true, true, true]), [OPENED_OWN, None]);
    assert_eq!(record(&mut breaker, "b", 0, &[true]), [None, None]);
    assert_eq!(breaker.admit(Some("a"), at(1)), Ok(()));
    assert_eq!(record(&mut breaker, "a", 1, &[true]), [OPENED_OWN, None], "more of the worst");
    assert!(!breaker.is_open());
    assert_eq!(record(&mut breaker, "c", 1, &[true]), [None, OPENED_ALL]);
}

#[test]
fn probe_of_a_stopped_tenant_says_nothing_about_the_others() {
    let mut breaker = TenantBreaker::new(&RULES);
    record(&mut breaker, "a", 0, &[true, true, true]);
    assert_eq!(record(&mut breaker, "b", 0, &[true, true]), [None, OPENED_ALL]);
    assert_eq!(breaker.admit(Some("a"), at(1)), Ok(()));
    assert_eq!(breaker.admit(Some("b"), at(1)), Err(BreakerScope::All), "one probe at a time");
    assert_eq!(record(&mut breaker, "a", 1, &[true]), [OPENED_OWN, None]);
    assert_eq!(breaker.admit(Some("c"), at(1)), Ok(()), "the next probe, without a backoff");
    assert_eq!(record(&mut breaker, "c", 1, &[true]), [None, OPENED_ALL]);
    assert_eq!(breaker.admit(Some("c"), at(2)), Err(BreakerScope::All), "the backoff doubles");
}

#[test]
fn probe_without_a_verdict_is_repeated() {
    let mut breaker = TenantBreaker::new(&RULES);
    record(&mut breaker, "a", 0, &[true, true, true]);
    assert_eq!(breaker.admit(Some("a"), at(1)), Ok(()));
    breaker.abandon(Some("a"), at(1));
    assert_eq!(breaker.open_tenants(), 1);
    assert_eq!(breaker.admit(Some("a"), at(1)), Ok(()));
    assert_eq!(breaker.admit(Some("a"), at(1)), Err(BreakerScope::Tenant));
}

#[test]
fn rare_faults_stop_nobody() {
    let mut breaker = TenantBreaker::new(&RULES);
    for second in 0..100 {
        for tenant in ["a", "b"] {
            record(&mut breaker, tenant, second, &[false, false, false, false, true]);
        }
    }
    assert_eq!((breaker.is_open(), breaker.open_tenants()), (false, 0), "20 % is not above 20 %");
    // Faults that have left the window do not count.
    let mut slow = TenantBreaker::new(&RULES);
    (0..10).for_each(|round| {
        record(&mut slow, "a", round * 5, &[true]);
    });
    assert_eq!(slow.open_tenants(), 0);
}

#[test]
fn requests_without_a_tenant_are_those_of_one_tenant() {
    let mut breaker = TenantBreaker::new(&RULES);
    let mut changes = [None, None];
    for _ in 0..3 {
        changes = breaker.record(None, at(0), true);
    }
    assert_eq!(changes, [OPENED_ALL, None]);
    assert_eq!(breaker.admit(None, at(0)), Err(BreakerScope::All));
    assert_eq!(breaker.admit(Some("a"), at(0)), Ok(()));
}

#[test]
fn number_of_tenants_is_bounded() {
    let mut breaker = TenantBreaker::new(&RULES);
    for tenant in 0..3 * MAX_TENANTS {
        breaker.record(Some(&tenant.to_string()), at(0), false);
        assert!(breaker.tenants.len() <= MAX_TENANTS);
    }
    // Tenants without calls in the window give way.
    record(&mut breaker, "late", 100, &[true, true, true]);
    assert_eq!((breaker.tenants.len(), breaker.open_tenants()), (1, 1));
}

proptest! {
    /// Whatever one tenant does, another one that faults once is admitted, and its probes are not
    /// lost.
    #[test]
    fn one_tenant_never_stops_another(
        calls in prop::collection::vec((0u64..3, any::<bool>()), 1..200),
    ) {
        let mut breaker = TenantBreaker::new(&RULES);
        let mut now = 0;
        breaker.record(Some("honest"), at(now), true);
        for (pause, is_fault) in calls {
            now += pause;
            if breaker.admit(Some("hostile"), at(now)).is_ok() {
                breaker.record(Some("hostile"), at(now), is_fault);
            }
            prop_assert!(!breaker.is_open());
            prop_assert_eq!(breaker.admit(Some("honest"), at(now)), Ok(()));
            breaker.record(Some("honest"), at(now), false);
        }
        // A minute later the hostile tenant may be probed again.
        prop_assert_eq!(breaker.admit(Some("hostile"), at(now + 60)), Ok(()));
    }

    /// A policy that always faults is stopped for all tenants after a few calls of each.
    #[test]
    fn broken_use_is_stopped(tenants in 2usize..20, calls in 100usize..300) {
        let mut breaker = TenantBreaker::new(&RULES);
        let mut admitted = 0;
        for call in 0..calls {
            let tenant = (call % tenants).to_string();
            if breaker.admit(Some(&tenant), at(0)).is_ok() {
                admitted += 1;
                breaker.record(Some(&tenant), at(0), true);
            }
        }
        prop_assert!(breaker.is_open() && admitted <= 4, "{admitted}");
    }
}
