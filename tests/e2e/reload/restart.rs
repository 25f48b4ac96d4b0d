//! The policy state that survives a restart of the host.

use pointsman_tests::deployment::{Deployment, chain};
use pointsman_tests::guests::Guest;
use serde_json::Value;

use super::{config, start_deployment};
use crate::FAKE_ENGINE;

fn restart(deployment: Deployment) -> Deployment {
    deployment.restart(FAKE_ENGINE, &config(&chain(&["p"], "")))
}

fn error_code(policy: &Value) -> &str {
    policy["error"]["code"].as_str().unwrap_or("none")
}

/// A host that is killed at any time during a reload comes back with the old version or the new
/// one.
#[test]
fn host_killed_during_reload_recovers() {
    let mut deployment = start_deployment(&[Guest::new("p").reason("0")]);
    for round in 1..=4 {
        let why = round.to_string();
        let old = deployment.reason("auto");
        deployment.write_policy(&Guest::new("p").reason(&why));
        let admin = deployment.admin_port;
        let asking = std::thread::spawn(move || {
            // The host is killed before it responds.
            let stream = std::net::TcpStream::connect(("127.0.0.1", admin));
            let request = "POST /reload HTTP/1.1\r\nhost: x\r\n\
                authorization: Bearer t0ken-0123456789\r\ncontent-length: 0\r\n\r\n";
            stream
                .and_then(|mut stream| std::io::Write::write_all(&mut stream, request.as_bytes()))
                .is_ok()
        });
        assert!(asking.join().unwrap());
        // Kill the host a little later in every round.
        for _ in 0..round {
            deployment.host.status();
        }
        // The folder is damaged before the next host starts, so that it needs its stored version.
        let wasm = deployment.policies().join("p/policy.wasm");
        deployment.host.signal(rustix::process::Signal::KILL);
        deployment.host.wait_for_exit();
        std::fs::write(&wasm, "half a fi").unwrap();
        deployment = restart(deployment);
        let now = deployment.reason("auto");
        assert!(now == old || now == why, "{now} after {old} and {why}");
        assert_eq!(error_code(&deployment.policy("p")), "component_invalid");
        // With a valid folder, new versions are loaded again.
        deployment.deploy(&Guest::new("p").reason(&why));
        assert_eq!(deployment.reason("auto"), why);
    }
}

#[test]
fn rollback_and_disable_survive_restart() {
    let deployment = start_deployment(&[Guest::new("p").reason("one")]);
    deployment.deploy(&Guest::new("p").reason("two"));
    let bad = deployment.deploy(&Guest::new("p").reason("bad"))["fingerprint"]
        .as_str()
        .unwrap()
        .to_owned();
    let (code, out, err) = deployment.policy_command(&["rollback", "p"]);
    assert!(code == 0, "{out}{err}");
    assert_eq!(deployment.reason("auto"), "two");

    let deployment = restart(deployment);
    let status = deployment.policy("p");
    assert_eq!(deployment.reason("auto"), "two", "{status}");
    assert_eq!(error_code(&status), "version_rejected", "{status}");
    assert_eq!(status["rejected"][0]["version"], bad[..8]);
    assert_eq!(status["rejected"][0]["code"], "rolled_back_by_operator");
    let (code, out, err) = deployment.policy_command(&["disable", "p"]);
    assert!(code == 0 && out.contains("disabled"), "{out}{err}");
    assert_eq!(deployment.send_chat("auto").header("x-pointsman-policy"), Some("built-in"));

    let deployment = restart(deployment);
    assert_eq!(deployment.policy("p")["state"], "disabled");
    assert_eq!(deployment.send_chat("auto").header("x-pointsman-policy"), Some("built-in"));
    assert_eq!(deployment.policy_command(&["enable", "p"]).0, 0);
    assert_eq!(deployment.reason("auto"), "two");
    // The rejected version can be promoted by fingerprint.
    let (code, out, err) = deployment.policy_command(&["promote", "p", &bad[..8]]);
    assert!(code == 0, "{out}{err}");
    assert_eq!(deployment.reason("auto"), "bad");
    let status = deployment.policy("p");
    assert_eq!(
        (&status["rejected"], status["history"].as_array().map(Vec::len)),
        (&serde_json::json!([]), Some(2))
    );

    let deployment = restart(deployment);
    assert_eq!(
        (deployment.reason("auto").as_str(), error_code(&deployment.policy("p"))),
        ("bad", "none")
    );
}
