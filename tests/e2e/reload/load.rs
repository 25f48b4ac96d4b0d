//! Reloads while clients ask and streams run.

use std::collections::BTreeMap;

use pointsman_tests::client::{chat, get, stream};
use pointsman_tests::guests::Guest;
use pointsman_tests::load::Load;
use serde_json::json;

use super::{assert_no_mix, engines, site};

/// A version that prefers one lane and says so.
fn version(number: u64) -> Guest {
    let lane = u32::from(number % 2 == 1);
    Guest::new("p").why(&format!("version {number} wants {}", ["a", "b"][lane as usize])).lane(lane)
}

#[test]
fn streams_under_way_do_not_notice_that_policies_change() {
    let site = site(&[version(0)]);
    let before = engines(&site);
    for lane in ["a", "b"] {
        site.host.script(lane, json!({ "tokens": 40, "token-ms": 25 }));
    }
    let mut streams: Vec<_> = (0..2)
        .map(|_| {
            stream(site.host.port, "/v1/chat/completions", &chat("auto", json!({ "stream": true })))
        })
        .collect();
    let first = site.policy("p")["version"].as_str().unwrap().to_owned();
    assert!(streams.iter_mut().all(|stream| stream.status == 200 && stream.until("data:")));
    for number in 1..=5 {
        site.take_up(&version(number));
    }
    let now =
        stream(site.host.port, "/v1/chat/completions", &chat("auto", json!({ "stream": true })));
    let by = |headers: &[(String, String)], version: &str| {
        headers
            .iter()
            .any(|(name, by)| name == "x-pointsman-policy" && *by == format!("p@{version}"))
    };
    assert!(by(&now.headers, site.policy("p")["version"].as_str().unwrap()), "{:?}", now.headers);
    for stream in streams {
        let (reply, complete) = stream.finish();
        assert!(complete && by(&reply.headers, &first), "{:?}", reply.headers);
        assert!(reply.text().contains("data: [DONE]"), "{}", reply.text());
    }
    assert!(now.finish().1);
    assert_eq!(engines(&site), before);
    site.host.assert_nothing_lost();
}

/// As often as the environment variable `RELOADS` says. Nothing grows with the versions that there were.
#[test]
fn many_reloads_under_load_lose_nothing_and_leave_nothing_behind() {
    let reloads: u64 =
        std::env::var("RELOADS").ok().and_then(|number| number.parse().ok()).unwrap_or(60);
    let site = site(&[version(0)]);
    let pids = engines(&site);
    let load = Load::start(site.host.port, 4, "auto");
    let mut versions = BTreeMap::new();
    let mut sizes = Vec::new();
    let lines = || get(site.host.port, "/metrics").text().lines().count();
    let begun = std::time::Instant::now();
    for number in 0..reloads {
        let shown = site.take_up(&version(number));
        assert_eq!(shown["error"], serde_json::Value::Null);
        versions.insert(format!("p@{}", shown["version"].as_str().unwrap()), number);
        load.more(4);
        // Histories and caches are full by then, and all threads are there.
        if number == 20 || number + 1 == reloads {
            sizes.push((site.host.size(), lines()));
        }
    }
    let took = begun.elapsed();
    let asked = load.asked();
    let seen = load.end();
    assert_no_mix(&seen);
    for seen in seen.keys() {
        let number =
            versions.get(&seen.policy).unwrap_or_else(|| panic!("{} was never there", seen.policy));
        let lane = ["a", "b"][usize::from(number % 2 == 1)];
        assert_eq!(
            (seen.lane.as_str(), &seen.why),
            (lane, &format!("version {number} wants {lane}"))
        );
    }
    let [(early, few), (late, many)] = sizes[..] else { panic!("{sizes:?}") };
    println!(
        "{reloads} reloads in {took:?}, {asked} requests; {early:?}, {few} lines -> {late:?}, {many} lines"
    );
    assert_eq!(site.policy("p")["history"].as_array().unwrap().len(), 3);
    assert!(many <= few + 2, "/metrics grew from {few} to {many} lines");
    // Threads that wait for work come and go; one for each reload would be many.
    assert!(late.threads <= early.threads + 4, "{early:?} -> {late:?}");
    assert!(late.maps <= early.maps + 40, "{early:?} -> {late:?}");
    assert!(late.resident <= early.resident + (24 << 20), "{early:?} -> {late:?}");
    assert_eq!(engines(&site), pids);
    site.host.assert_nothing_lost();
}
