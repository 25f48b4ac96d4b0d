//! Reload under load and during streams.

use std::collections::BTreeMap;

use pointsman_tests::client::{chat, get, stream};
use pointsman_tests::guests::Guest;
use pointsman_tests::load::LoadGenerator;
use pointsman_tests::memory::assert_no_steady_growth;
use pointsman_tests::wait_until;
use serde_json::json;

use super::{assert_versions_not_mixed, engines, start_deployment_with};

/// A deadline that no call misses while the compiler of the next version competes for the
/// processors: these tests are about reloads, and a missed deadline would be a decision without
/// advice.
const PATIENT: &str = "deadline = \"100ms\"";

/// Returns a version that prefers one lane, which is named in its reason.
fn version(number: u64) -> Guest {
    let lane = u32::from(number % 2 == 1);
    Guest::new("p")
        .reason(&format!("version {number} wants {}", ["a", "b"][lane as usize]))
        .lane(lane)
}

#[test]
fn in_flight_streams_survive_policy_changes() {
    let deployment = start_deployment_with(&[version(0)], PATIENT);
    let before = engines(&deployment);
    for lane in ["a", "b"] {
        deployment.host.set_script(lane, json!({ "tokens": 40, "token-ms": 25 }));
    }
    let mut streams: Vec<_> = (0..2)
        .map(|_| {
            stream(
                deployment.host.port,
                "/v1/chat/completions",
                &chat("auto", json!({ "stream": true })),
            )
        })
        .collect();
    let first = deployment.policy("p")["version"].as_str().unwrap().to_owned();
    assert!(streams.iter_mut().all(|stream| stream.status == 200 && stream.read_until("data:")));
    for number in 1..=5 {
        deployment.deploy(&version(number));
    }
    let now = stream(
        deployment.host.port,
        "/v1/chat/completions",
        &chat("auto", json!({ "stream": true })),
    );
    let decided_by = |headers: &[(String, String)], version: &str| {
        headers
            .iter()
            .any(|(name, value)| name == "x-pointsman-policy" && *value == format!("p@{version}"))
    };
    assert!(
        decided_by(&now.headers, deployment.policy("p")["version"].as_str().unwrap()),
        "{:?}",
        now.headers
    );
    for stream in streams {
        let (response, complete) = stream.finish();
        assert!(complete && decided_by(&response.headers, &first), "{:?}", response.headers);
        assert!(response.text().contains("data: [DONE]"), "{}", response.text());
    }
    assert!(now.finish().1);
    assert_eq!(engines(&deployment), before);
    deployment.host.assert_no_request_lost();
}

/// Reloads 60 times, or as often as the environment variable `RELOADS` says. Memory, threads and
/// metrics must not grow with the number of versions.
#[test]
fn many_reloads_lose_no_request_and_leak_nothing() {
    let reloads: u64 =
        std::env::var("RELOADS").ok().and_then(|number| number.parse().ok()).unwrap_or(60);
    let deployment = start_deployment_with(&[version(0)], PATIENT);
    let pids = engines(&deployment);
    // Its lines in the metrics come with the first measurement.
    wait_until("the memory of the engines is measured", || {
        ["a", "b"].iter().all(|lane| {
            let labels = format!("lane=\"{lane}\"");
            deployment.host.metric("pointsman_lane_memory_bytes", &labels) > 0.0
        })
    });
    let load = LoadGenerator::start(deployment.host.port, 4, "auto");
    let mut versions = BTreeMap::new();
    let mut sizes = Vec::new();
    let mut resident = Vec::new();
    let lines = || get(deployment.host.port, "/metrics").text().lines().count();
    let start = std::time::Instant::now();
    for number in 0..reloads {
        let shown = deployment.deploy(&version(number));
        assert_eq!(shown["error"], serde_json::Value::Null);
        versions.insert(format!("p@{}", shown["version"].as_str().unwrap()), number);
        load.wait_for_requests(4);
        // By then, histories and caches are full and all threads have been started.
        if number == 20 || number + 1 == reloads {
            sizes.push((deployment.host.resource_usage(), lines()));
        }
        if number >= reloads / 3 && number % (reloads / 6) == 0 {
            resident.push(deployment.host.resource_usage().resident);
        }
    }
    let took = start.elapsed();
    let requests = load.requests();
    let seen = load.stop();
    assert_versions_not_mixed(&seen);
    for seen in seen.keys() {
        let number = versions
            .get(&seen.policy)
            .unwrap_or_else(|| panic!("{} was never deployed", seen.policy));
        let lane = ["a", "b"][usize::from(number % 2 == 1)];
        assert_eq!(
            (seen.lane.as_str(), &seen.reason),
            (lane, &format!("version {number} wants {lane}"))
        );
    }
    let [(early, few), (late, many)] = sizes[..] else { panic!("{sizes:?}") };
    println!(
        "{reloads} reloads in {took:?}, {requests} requests; {early:?}, {few} lines -> {late:?}, \
         {many} lines"
    );
    assert_eq!(deployment.policy("p")["history"].as_array().unwrap().len(), 3);
    assert!(many <= few + 2, "/metrics grew from {few} to {many} lines");
    // Idle worker threads come and go; one thread per reload would exceed this limit.
    assert!(late.threads <= early.threads + 4, "{early:?} -> {late:?}");
    assert!(late.maps <= early.maps + 40, "{early:?} -> {late:?}");
    // 100 KB for each version: less than its code.
    assert_no_steady_growth(&resident, reloads / 6 * 100_000);
    assert_eq!(engines(&deployment), pids);
    deployment.host.assert_no_request_lost();
}
