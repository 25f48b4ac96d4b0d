//! Lanes of another host that is reached by TLS.

use std::fs;

use pointsman_tests::client::{chat, post, stream};
use pointsman_tests::host::{Host, fake_lane, program};
use pointsman_tests::wait_until;
use serde_json::json;

use crate::FAKE_ENGINE;

const CHAT: &str = "/v1/chat/completions";
const KEY: &str = "peer-key-0123456789";
/// Connections that ended in their handshake.
const REFUSED: &str = "pointsman_refused_connections_total";

/// Starts a host with a lane and a certificate for this name, and returns it with the certificate.
fn start_there(name: &str) -> (Host, String) {
    let issued = rcgen::generate_simple_self_signed(vec![name.to_owned()]).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
    write("cert.pem", &issued.cert.pem());
    write("key.pem", &issued.signing_key.serialize_pem());
    write("peer.key", KEY);
    let config = format!(
        "[server]\ntls = {{ certificate = \"cert.pem\", key = \"key.pem\" }}\n{}\
         [[peers]]\nname = \"here\"\nkey-file = \"peer.key\"\n",
        fake_lane(FAKE_ENGINE, "big", &["m"], "", &[])
    );
    let host = Host::start_in(&program(FAKE_ENGINE), dir, &config, &[]);
    (host.wait_until_ready(), issued.cert.pem())
}

/// Starts a host with a lane of the other one, which it trusts if it has this certificate.
fn start_here(there: &Host, certificate: &str) -> Host {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("ca.pem"), certificate).unwrap();
    fs::write(dir.path().join("peer.key"), KEY).unwrap();
    let config = format!(
        "[[lanes]]\nname = \"far\"\nmodels = [\"m\"]\n[lanes.engine]\ndriver = \"pointsman\"\n\
         lane = \"big\"\nurl = \"https://127.0.0.1:{}\"\nca-file = \"ca.pem\"\n\
         key-file = \"peer.key\"\n",
        there.port
    );
    Host::start_in(&program(FAKE_ENGINE), dir, &config, &[])
}

#[test]
fn host_with_a_trusted_certificate_is_read_and_serves() {
    let (there, certificate) = start_there("127.0.0.1");
    let here = start_here(&there, &certificate);
    here.wait_for_lane("far", "ready");
    let whole = post(here.port, CHAT, &chat("m", json!({})));
    assert_eq!((whole.status, whole.header("x-pointsman-lane")), (200, Some("far")));
    let streamed = stream(here.port, CHAT, &chat("m", json!({ "stream": true })));
    let (streamed, is_complete) = streamed.finish();
    assert!(is_complete && streamed.text().ends_with("data: [DONE]\n\n"), "{}", streamed.text());
    assert!(there.metric("pointsman_fleet_readers", "") > 0.5);
    here.assert_no_request_lost();
}

/// Neither a certificate of another authority nor one for another name is trusted.
#[test]
fn host_with_another_certificate_gets_neither_keys_nor_requests() {
    let (_, other) = start_there("127.0.0.1");
    for (name, trusted) in [("127.0.0.1", Some(other)), ("gpu-2.example.org", None)] {
        let (there, own) = start_there(name);
        let here = start_here(&there, &trusted.unwrap_or(own));
        let code = "code=\"peer_certificate_refused\"";
        let errors = |labels: &str| here.metric("pointsman_peer_errors_total", labels);
        wait_until("the host is refused twice", || errors(code) > 1.5);
        here.wait_for_event("peer_lost", &[("code", "peer_certificate_refused")]);
        let response = post(here.port, CHAT, &chat("m", json!({})));
        assert_eq!((response.status, response.error_code()), (503, json!("no_lane_available")));
        let problem = || here.lane("far")["problem"].to_string();
        wait_until("operators see why", || problem().contains("peer_certificate_refused"));
        assert!((errors("") - errors(code)).abs() < 0.5, "no other error");
        // No connection came as far as a request, which is what has the key.
        wait_until("the other host has seen the handshakes", || there.metric(REFUSED, "") > 1.5);
        assert!(there.metric("pointsman_fleet_readers", "") < 0.5);
        assert!(there.metric("pointsman_accepted_total", "") < 0.5);
    }
}
