//! A picker that finds its lanes at other hosts.

use std::fs;

use pointsman_tests::host::{Host, fake_lane, program};
use pointsman_tests::wait_until;
use rustix::process::Signal;
use serde_json::Value;

use super::send;
use crate::FAKE_ENGINE;
use crate::envoy::{Envoy, free_port};

const KEY: &str = "peer-key-0123456789";

/// Starts a host with the lane `big`, which knows the key of the picker.
fn host() -> Host {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("peer.key"), KEY).unwrap();
    let lane = fake_lane(FAKE_ENGINE, "big", &["m"], "", &[]);
    let config = format!("{lane}\n[[peers]]\nname = \"picker\"\nkey-file = \"peer.key\"\n");
    let host = Host::start_in(&program(FAKE_ENGINE), dir, &config, &[]);
    host.wait_for_lane("big", "ready");
    host
}

/// Returns the names and states of all lanes.
fn lanes(picker: &Host) -> Vec<(Value, Value)> {
    let status = picker.status();
    let lanes = status["lanes"].as_array().unwrap().iter();
    lanes.map(|lane| (lane["name"].clone(), lane["state"].clone())).collect()
}

#[test]
fn lanes_of_hosts_are_found_and_stay_when_a_host_is_gone() {
    let hosts = [host(), host()];
    let of_host = |(name, host): (&str, &Host)| {
        let port = host.port;
        format!(
            "[[pick.hosts]]\nname = {name:?}\nurl = \"http://127.0.0.1:{port}\"\n\
             key-file = \"peer.key\"\n"
        )
    };
    let found: Vec<String> = ["g1", "g2"].into_iter().zip(&hosts).map(of_host).collect();
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("peer.key"), KEY).unwrap();
    let config = format!("[fleet]\ndown-after = \"2s\"\n[pick]\n{}", found.concat());
    let picker = Host::start_picker(&program(FAKE_ENGINE), dir, &config);
    let ready = ["g1.big", "g2.big"].map(|name| (Value::from(name), Value::from("ready")));
    wait_until("the lanes of both hosts are ready", || lanes(&picker) == ready);
    let ports = [hosts[0].port, hosts[1].port];
    let envoy = Envoy::start([picker.port, free_port()], ports, |text| text);
    let response = send(&envoy);
    assert_eq!(response.status, 200, "{}\n{}", response.text(), picker.log_text());
    let finished = picker.wait_for_event("request_finished", &[]);
    let first = finished.text("lane");
    let [gone, other] = if first == "g1.big" { [0, 1] } else { [1, 0] };
    hosts[gone].signal(Signal::KILL);
    wait_until("the host is down", || lanes(&picker)[gone].1 != "ready");
    assert_eq!(lanes(&picker).len(), 2, "a host that is gone keeps its lanes");
    assert_eq!(lanes(&picker)[other].1, "ready");
    let response = send(&envoy);
    assert_eq!(response.status, 200, "{}\n{}", response.text(), picker.log_text());
}
