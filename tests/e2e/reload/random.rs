//! Many random configurations, valid and invalid, under load. `POINTSMAN_RELOADS` is their number.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use pointsman_tests::attack::{HostileEngine, external_lane};
use pointsman_tests::deployment::{Deployment, policy_dir};
use pointsman_tests::load::LoadGenerator;
use pointsman_tests::memory::assert_no_steady_growth;
use pointsman_tests::wait_until;

use crate::FAKE_ENGINE;

/// Numbers that follow from the one before.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// Returns a configuration with the lane `stays`, which serves throughout, and others. One in four
/// is invalid.
fn configuration(random: &mut Random, engine: &HostileEngine) -> (String, bool) {
    let mut text = String::new();
    let (body, attempts) = (1 + random.below(64), 1 + random.below(5));
    writeln!(text, "[server]\nmax-body = \"{body}MiB\"\nmax-attempts = {attempts}").unwrap();
    writeln!(text, "body-memory = \"{}MiB\"", 128 + random.below(64)).unwrap();
    writeln!(text, "idempotency-memory = \"{}MiB\"", random.below(64)).unwrap();
    writeln!(text, "compression = {}", random.below(2) == 0).unwrap();
    writeln!(text, "[queue]\ntotal = {}", 100 + random.below(100)).unwrap();
    if random.below(2) == 0 {
        writeln!(text, "[records]\ndir = \"records\"\nsample = \"{}%\"", random.below(101))
            .unwrap();
    }
    let invalid = random.below(4) == 0;
    if invalid {
        let broken = ["[server", "[queue]\n", "colour = 1\n", "[usage]\nkeep = 3\n"];
        text.push_str(broken[usize::try_from(random.below(4)).unwrap()]);
    }
    let more = format!("cost = {}\nlabels = {{ x = \"{}\" }}", random.below(9), random.below(9));
    text.push_str(&external_lane("stays", &["auto"], engine, &more));
    for name in ["b", "c", "d"] {
        if random.below(2) == 0 {
            let slots = 1 + random.below(16);
            let lane = external_lane(name, &[name, "other"], engine, "");
            text.push_str(&lane.replace("slots = 16", &format!("slots = {slots}")));
        }
    }
    (text, invalid)
}

#[test]
fn random_reloads_lose_no_request_and_keep_no_memory() {
    let count = std::env::var("POINTSMAN_RELOADS").ok().and_then(|count| count.parse().ok());
    let count: u64 = count.unwrap_or(200);
    let engine = HostileEngine::honest();
    let first = external_lane("stays", &["auto"], &engine, "");
    let deployment = Deployment::start(FAKE_ENGINE, policy_dir(&[]), &first);
    let load = LoadGenerator::start(deployment.host.port, 4, "auto");
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut memory = Vec::new();
    for number in 0..count {
        let (text, invalid) = configuration(&mut random, &engine);
        deployment.write_config(&text);
        // Some are found by the host itself, at any moment of the next one.
        if random.below(3) > 0 {
            let outcome = deployment.reload();
            let rejected = outcome["result"] == "rejected";
            assert_eq!(rejected, invalid, "{outcome}\n{text}");
        }
        if number % (count / 8).max(1) == 0 {
            load.wait_for_requests(20);
            memory.push(deployment.host.resource_usage().resident);
        }
    }
    deployment.write_config(&first);
    deployment.reload();
    load.wait_for_requests(20);
    let seen = load.stop();
    let statuses: BTreeSet<u16> = seen.keys().map(|seen| seen.status).collect();
    assert_eq!(statuses, BTreeSet::from([200]), "{seen:?}");
    assert!(deployment.host.metric("pointsman_config_generation", "") > count as f64 / 4.0);
    deployment.host.assert_no_request_lost();
    // The lanes that were removed have nothing left.
    wait_until("only one lane is left", || {
        deployment.host.status()["lanes"].as_array().is_some_and(|lanes| lanes.len() == 1)
    });
    assert_no_steady_growth(&memory, 256 << 10);
    let threads = deployment.host.resource_usage().threads;
    assert!(threads < 60, "{threads} threads");
}
