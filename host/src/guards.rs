//! What is wrong with the guards of a configuration and its lanes, for people.

use pointsman_config::Config;
use pointsman_domain::Topology;
use pointsman_fleet::LaneSpec;

use crate::key_source::KeySource;

/// Returns a warning for each pair of guards that contradict each other, for each model of which
/// guards leave no lane, and for each label that no lane has.
pub(crate) fn warnings(config: &Config) -> Vec<String> {
    if config.guards.0.is_empty() {
        return Vec::new();
    }
    let lanes = config.fleet.lanes.iter().map(LaneSpec::info).collect();
    let findings = config.guards.findings(&Topology::new(0, lanes));
    findings.iter().map(ToString::to_string).collect()
}

/// Returns a warning for each tenant and each group that a guard names and no key has. Tokens may
/// name any tenant.
pub(crate) fn unknown_names(config: &Config, keys: &KeySource) -> Vec<String> {
    let keys = keys.keys();
    let unknown = |kind: &str, guard: &str, name: &String| {
        format!("guard `{guard}`: no key has the {kind} `{name}` [guard_unknown_{kind}]")
    };
    let mut warnings = Vec::new();
    for guard in &config.guards.0 {
        let name = &guard.applied.name;
        if config.tokens.is_none() {
            let tenants = guard.when.tenants.iter().filter(|tenant| !keys.has_tenant(tenant));
            warnings.extend(tenants.map(|tenant| unknown("tenant", name, tenant)));
        }
        let groups = guard.when.groups.iter().filter(|group| !keys.has_group(group));
        warnings.extend(groups.map(|group| unknown("group", name, group)));
    }
    warnings
}
