//! Checks of the store that hosts share.

use pointsman_config::SharedState;
use pointsman_report::table::clean;

use super::finding::Finding;
use crate::shared_state::{self, StoreState};

const CHECK: &str = "shared_state";
/// The only policy with which nothing disappears in silence when the memory of a store is full.
const NO_EVICTION: &str = "noeviction";

/// Asks the store of a configuration once.
pub(super) async fn check(config: Option<&SharedState>) -> Vec<Finding> {
    let Some(config) = config else { return Vec::new() };
    let state = shared_state::probe(config).await;
    state.map(|state| findings(&state, config.replicas)).unwrap_or_default()
}

/// Returns the findings about a store that `expected` hosts are to share.
fn findings(state: &StoreState, expected: u32) -> Vec<Finding> {
    let (eviction, replicas, shared_names) = match state {
        StoreState::Unreachable(error) => {
            let fact =
                format!("the shared store cannot be reached, and each host counts alone: {error}");
            let fix = "start it, correct the URL, or let the firewall pass; the host connects by \
                       itself then";
            return vec![Finding::problem(CHECK, fact, fix)];
        }
        StoreState::Refused(error) => {
            let fact = format!("the shared store refuses the user: {error}");
            let fix = "correct user and password in the URL, and allow the user `EVAL` and the \
                       commands of strings, hashes and sorted sets on the keys with the prefix";
            return vec![Finding::problem(CHECK, fact, fix)];
        }
        StoreState::Usable { eviction, replicas, shared_names } => {
            (eviction, *replicas, shared_names)
        }
    };
    let mut findings = Vec::new();
    if eviction.is_empty() {
        let fact = "the shared store replies; its `maxmemory-policy` cannot be read";
        let fix = "see to it that it is `noeviction`, or allow the user `INFO`";
        findings.push(Finding::note(CHECK, fact, fix));
    }
    if let Some(policy) = eviction.iter().find(|policy| *policy != NO_EVICTION) {
        let fact = format!(
            "the shared store has the `maxmemory-policy` {policy}: when its memory is full, \
             counters of limits disappear in silence"
        );
        findings.push(Finding::warning(CHECK, fact, "set `maxmemory-policy noeviction`"));
    }
    if replicas > u64::from(expected) {
        let fact = format!(
            "{replicas} hosts use the shared store, and `replicas` is {expected}: limits may be \
             exceeded by more than `pointsman check` says"
        );
        findings.push(Finding::warning(CHECK, fact, "set `shared-state.replicas`"));
    }
    for name in shared_names {
        let fact = format!(
            "several hosts call themselves \"{}\": their usage cannot be told apart, and one may \
             have a copy of the state directory of another one [host_identity_copied]",
            clean(name)
        );
        let fix = "set another `fleet.name` at each of them";
        findings.push(Finding::warning(CHECK, fact, fix));
    }
    if findings.is_empty() {
        let fact = format!("the shared store replies; {replicas} hosts use it now");
        findings.push(Finding::ok(CHECK, fact));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::super::finding::Verdict;
    use super::*;

    fn usable(eviction: &[&str], replicas: u64) -> StoreState {
        let eviction = eviction.iter().map(ToString::to_string).collect();
        StoreState::Usable { eviction, replicas, shared_names: Vec::new() }
    }

    #[test]
    fn stores_that_are_away_refuse_or_forget_are_found() {
        let mut named = usable(&["noeviction"], 3);
        if let StoreState::Usable { shared_names, .. } = &mut named {
            shared_names.push("gpu-1".to_owned());
        }
        for (state, verdicts, word) in [
            (named, &[Verdict::Warning][..], "\"gpu-1\""),
            (usable(&["noeviction"], 3), &[Verdict::Ok], "3 hosts"),
            (StoreState::Unreachable("refused".into()), &[Verdict::Problem], "refused"),
            (StoreState::Refused("WRONGPASS".into()), &[Verdict::Problem], "WRONGPASS"),
            (usable(&["noeviction", "allkeys-lru"], 0), &[Verdict::Warning], "allkeys-lru"),
            (usable(&[], 1), &[Verdict::Note], "maxmemory-policy"),
            (usable(&["noeviction"], 4), &[Verdict::Warning], "`replicas` is 3"),
            (usable(&["volatile-ttl"], 4), &[Verdict::Warning, Verdict::Warning], "volatile-ttl"),
        ] {
            let found = findings(&state, 3);
            let got: Vec<Verdict> = found.iter().map(|finding| finding.verdict).collect();
            assert_eq!(got, verdicts, "{found:?}");
            assert!(found[0].fact.contains(word), "{found:?}");
            let needs_fix = |finding: &&Finding| finding.verdict != Verdict::Ok;
            assert!(found.iter().filter(needs_fix).all(|finding| !finding.fix.is_empty()));
        }
    }
}
