//! What a host that is started anew knows of its policies.

use pointsman_tests::guests::Guest;
use pointsman_tests::site::{Site, chain};
use serde_json::Value;

use super::{config, site};
use crate::FAKE_ENGINE;

fn again(site: Site) -> Site {
    site.again(FAKE_ENGINE, &config(&chain(&["p"], "")))
}

fn error(policy: &Value) -> &str {
    policy["error"]["what"].as_str().unwrap_or("none")
}

/// Killed at any moment of a reload: what was in service is there again, or what was about to be.
#[test]
fn a_host_that_is_killed_while_it_reloads_comes_back() {
    let mut site = site(&[Guest::new("p").why("0")]);
    for round in 1..=4 {
        let why = round.to_string();
        let old = site.why("auto");
        site.put(&Guest::new("p").why(&why));
        let admin = site.admin;
        let asking = std::thread::spawn(move || {
            // It gets no answer.
            let stream = std::net::TcpStream::connect(("127.0.0.1", admin));
            let request = "POST /reload HTTP/1.1\r\nhost: x\r\nauthorization: Bearer t0ken\r\ncontent-length: 0\r\n\r\n";
            stream
                .and_then(|mut stream| std::io::Write::write_all(&mut stream, request.as_bytes()))
                .is_ok()
        });
        assert!(asking.join().unwrap());
        // A little later every time.
        for _ in 0..round {
            site.host.status();
        }
        // What is in the folder is broken when the next host comes, so that it needs what it has kept.
        let wasm = site.policies().join("p/policy.wasm");
        site.host.signal(rustix::process::Signal::KILL);
        site.host.ended();
        std::fs::write(&wasm, "half a fi").unwrap();
        site = again(site);
        let now = site.why("auto");
        assert!(now == old || now == why, "{now} after {old} and {why}");
        assert!(error(&site.policy("p")).contains("does not begin as WebAssembly does"));
        // Healed, it goes on.
        site.take_up(&Guest::new("p").why(&why));
        assert_eq!(site.why("auto"), why);
    }
}

#[test]
fn what_was_rolled_back_or_disabled_stays_so() {
    let site = site(&[Guest::new("p").why("one")]);
    site.take_up(&Guest::new("p").why("two"));
    let bad = site.take_up(&Guest::new("p").why("bad"))["fingerprint"].as_str().unwrap().to_owned();
    let (code, out, err) = site.cli(&["rollback", "p"]);
    assert!(code == 0, "{out}{err}");
    assert_eq!(site.why("auto"), "two");

    let site = again(site);
    let shown = site.policy("p");
    assert_eq!(site.why("auto"), "two", "{shown}");
    assert!(
        error(&shown).contains("was set aside: rolled back by hand; change the policy"),
        "{shown}"
    );
    assert_eq!(shown["set_aside"][0]["version"], bad[..8]);
    let (code, out, err) = site.cli(&["disable", "p"]);
    assert!(code == 0 && out.contains("disabled"), "{out}{err}");
    assert_eq!(site.ask("auto").header("x-pointsman-policy"), Some("built-in"));

    let site = again(site);
    assert_eq!(site.policy("p")["state"], "disabled");
    assert_eq!(site.ask("auto").header("x-pointsman-policy"), Some("built-in"));
    assert_eq!(site.cli(&["enable", "p"]).0, 0);
    assert_eq!(site.why("auto"), "two");
    // By name, it comes back.
    let (code, out, err) = site.cli(&["promote", "p", &bad[..8]]);
    assert!(code == 0, "{out}{err}");
    assert_eq!(site.why("auto"), "bad");
    let shown = site.policy("p");
    assert_eq!(
        (&shown["set_aside"], shown["history"].as_array().map(Vec::len)),
        (&serde_json::json!([]), Some(2))
    );

    let site = again(site);
    assert_eq!((site.why("auto").as_str(), error(&site.policy("p"))), ("bad", "none"));
}
