//! The operators' entrance, over its socket and its port, and the commands that use it.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use pointsman_tests::client::{get, post, send};
use pointsman_tests::host::{Host, below, program, root};
use pointsman_tests::wait_until;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::{FAKE_ENGINE, lane};

/// A host with the committed policy and one that is missing. Its socket is in its own folder.
fn start(admin: &str) -> Host {
    start_in(tempfile::tempdir().unwrap(), admin)
}

fn start_in(dir: tempfile::TempDir, admin: &str) -> Host {
    let policies = root().join("policies");
    let config = format!(
        "[state]\ndir = \"states\"\n[admin]\n{admin}\n[policies]\ndir = {policies:?}\ncache = \"cache\"\n\
         [[policies.chain]]\nname = \"cortex\"\n[[policies.chain]]\nname = \"gone\"\n{}",
        lane("a", &["a"], &[])
    );
    Host::start_in(&program(FAKE_ENGINE), dir, &config, &[("ADMIN_TOKEN", "t0ken")]).ready()
}

fn socket(host: &Host) -> PathBuf {
    host.dir.path().join("states/admin.sock")
}

fn config(host: &Host) -> String {
    host.dir.path().join("pointsman.toml").to_str().unwrap().to_owned()
}

/// Run `pointsman policy …`: exit code, standard output and standard error.
fn policy(arguments: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(program(FAKE_ENGINE));
    command
        .arg("policy")
        .args(arguments)
        .env("GOOD", "t0ken")
        .env("BAD", "guess")
        .env_remove("NOBODY");
    let output = command.stdin(Stdio::null()).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

/// The port of the entrance, which the log tells.
fn admin_port(host: &Host) -> u16 {
    let log = host.log();
    let (_, rest) = log.split_once("operators are listened for on http://127.0.0.1:").unwrap();
    rest.lines().next().unwrap().trim().parse().unwrap()
}

#[test]
fn policies_are_listed_and_shown_over_the_socket() {
    let host = start("");
    let file = config(&host);
    let (code, out, err) = policy(&["list", "--config", &file]);
    assert_eq!(code, 0, "{err}");
    let lines: Vec<&str> = out.lines().collect();
    assert!(lines[0].starts_with("NAME ") && lines[0].contains(" STATE "), "{out}");
    assert!(lines[1].starts_with("cortex  active "), "{out}");
    assert!(
        lines[2].starts_with("gone    failed ") && lines[2].contains("gone/policy.toml"),
        "{out}"
    );
    assert_eq!(lines.len(), 3, "{out}");

    let socket = socket(&host);
    let (code, out, _) = policy(&["list", "--socket", socket.to_str().unwrap(), "--json"]);
    let listed: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(
        (code, &listed[0]["name"], &listed[1]["state"]),
        (0, &json!("cortex"), &json!("failed"))
    );
    let (code, out, _) = policy(&["show", "cortex", "--config", &file]);
    assert!(
        code == 0 && out.starts_with("name: cortex\n") && out.contains("\nstate: active\n"),
        "{out}"
    );
    let (code, out, _) = policy(&["reload", "--config", &file]);
    assert!(code == 0 && out.contains("cortex  active"), "{out}");
    host.stop();
    assert!(!socket.exists(), "the socket goes with the host");
}

#[test]
fn what_the_host_refuses_is_said_in_its_words() {
    let host = start("");
    let file = config(&host);
    let (code, out, err) = policy(&["show", "cortexx", "--config", &file]);
    assert_eq!((code, out.as_str()), (1, ""));
    assert_eq!(err, "there is no policy `cortexx`; there are `cortex`, `gone`\n");
    let (code, _, err) =
        policy(&["rollback", "no/such one", "--to", "ab12cd34", "--config", &file]);
    assert!(code == 1 && err.starts_with("there is no policy `no/such one`; "), "{err}");
    assert_eq!(policy(&["disable", "cortex"]).0, 2, "which host?");
    assert_eq!(policy(&["list", "--url", "http://127.0.0.1:1"]).0, 2, "a URL needs a token");
}

#[test]
fn the_socket_is_for_its_owner_and_clients_do_not_find_the_entrance() {
    let host = start("");
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&socket(&host)), 0o600);
    assert_eq!(mode(socket(&host).parent().unwrap()), 0o700);
    for path in ["/policies", "/policies/cortex", "/reload"] {
        assert_eq!(get(host.port, path).status, 404, "{path}");
        assert_eq!(post(host.port, path, &json!({})).status, 404, "{path}");
    }
}

#[test]
fn a_port_wants_its_token() {
    let host = start("socket = \"\"\nlisten = \"127.0.0.1:0\"\ntoken-env = \"ADMIN_TOKEN\"");
    assert!(!socket(&host).exists());
    let port = admin_port(&host);
    for (header, status) in [(None, 401), (Some("Bearer guess"), 401), (Some("Bearer t0ken"), 200)]
    {
        let headers: Vec<(&str, &str)> =
            header.map(|header| ("authorization", header)).into_iter().collect();
        for path in ["/policies", "/status", "/metrics"] {
            let reply = send(port, "GET", path, &headers, b"");
            assert_eq!(reply.status, status, "{path} with {header:?}: {}", reply.text());
        }
        let order = send(port, "POST", "/policies/cortex/explode", &headers, b"");
        assert_eq!(order.status, if status == 200 { 404 } else { 401 }, "{}", order.text());
    }
    let url = format!("http://127.0.0.1:{port}");
    let (code, out, err) = policy(&["list", "--url", &url, "--token-env", "GOOD"]);
    assert!(code == 0 && out.contains("cortex  active"), "{out}{err}");
    let (code, _, err) = policy(&["list", "--url", &url, "--token-env", "BAD"]);
    assert!(code == 1 && err.contains("A valid API key is required"), "{err}");
    let (code, _, err) = policy(&["list", "--url", &url, "--token-env", "NOBODY"]);
    assert!(code == 1 && err.contains("`NOBODY` is not set"), "{err}");
    assert!(!host.log().contains("t0ken"));
}

#[test]
fn a_second_host_leaves_the_first_one_its_socket() {
    let host = start("");
    let mut second = Command::new(program(FAKE_ENGINE));
    second.args(["serve", "--listen", "127.0.0.1:0", &config(&host)]).env("ADMIN_TOKEN", "t0ken");
    let output = second.stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let sentence = format!(
        "another host with this configuration runs: it listens at {}",
        socket(&host).display()
    );
    assert!(!output.status.success() && said.contains(&sentence), "{said}");
    assert_eq!(policy(&["list", "--config", &config(&host)]).0, 0);
}

#[test]
fn the_socket_of_a_host_that_was_killed_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let kept = dir.path().to_owned();
    let mut host = start_in(dir, "");
    let family = below(host.pid());
    host.signal(Signal::KILL);
    host.ended();
    wait_until("the keeper has ended the engines", || {
        family.iter().all(|pid| !pointsman_tests::host::alive(*pid))
    });
    let socket = kept.join("states/admin.sock");
    assert!(socket.exists() && UnixStream::connect(&socket).is_err());
    let file = config(&host);
    let (code, _, err) = policy(&["list", "--config", &file]);
    let sentence =
        format!("no host is running for this configuration (looked for {})\n", socket.display());
    assert_eq!((code, err), (1, sentence));
    // The next host in the same folder.
    fs::remove_file(kept.join("port")).unwrap();
    let again = Command::new(program(FAKE_ENGINE))
        .args(["serve", "--listen", "127.0.0.1:0", "--port-file"])
        .arg(kept.join("port"))
        .arg(&file)
        .env("ADMIN_TOKEN", "t0ken")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let mut again = again.unwrap();
    wait_until("the next host listens", || kept.join("port").exists());
    let (code, out, err) = policy(&["list", "--config", &file]);
    drop(again.kill());
    drop(again.wait());
    assert!(code == 0 && out.contains("cortex  active"), "{out}{err}");
}
