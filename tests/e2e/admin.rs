//! The admin API over its socket and its port, and the commands that use it.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use pointsman_tests::client::{get, post, send};
use pointsman_tests::deployment::admin_port;
use pointsman_tests::host::{Host, descendants_of, program, root};
use pointsman_tests::wait_until;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::{FAKE_ENGINE, lane};

/// Starts a host with the committed policy and one that is missing. Its socket is in its directory.
fn start(admin: &str) -> Host {
    start_in(tempfile::tempdir().unwrap(), admin)
}

fn start_in(dir: tempfile::TempDir, admin: &str) -> Host {
    let policies = root().join("policies");
    let config = format!(
        "[state]\ndir = \"states\"\norphan-grace = \"0s\"\n[admin]\n{admin}\n\
         [policies]\ndir = {policies:?}\ncache = \"cache\"\n\
         [[policies.chain]]\nname = \"cortex\"\n[[policies.chain]]\nname = \"missing\"\n{}",
        lane("a", &["a"], &[])
    );
    Host::start_in(&program(FAKE_ENGINE), dir, &config, &[("ADMIN_TOKEN", "t0ken-0123456789")])
        .wait_until_ready()
}

/// Returns the columns of a line of a table.
fn words(line: &str) -> Vec<&str> {
    line.split_whitespace().collect()
}

/// Returns true if a table of policies has the policy `cortex` as active.
fn lists_active_cortex(table: &str) -> bool {
    table.lines().any(|line| words(line).starts_with(&["cortex", "active"]))
}

fn socket(host: &Host) -> PathBuf {
    host.dir.path().join("states/admin.sock")
}

fn config(host: &Host) -> String {
    host.dir.path().join("pointsman.toml").to_str().unwrap().to_owned()
}

/// Runs `pointsman policy …`; returns exit code, standard output and standard error.
fn policy(arguments: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(program(FAKE_ENGINE));
    command
        .arg("policy")
        .args(arguments)
        .env("GOOD", "t0ken-0123456789")
        .env("BAD", "guess")
        .env_remove("UNSET");
    let output = command.stdin(Stdio::null()).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn policies_are_listed_and_shown_over_socket() {
    let host = start("");
    let file = config(&host);
    let (code, out, err) = policy(&["list", "--config", &file]);
    assert_eq!(code, 0, "{err}");
    let lines: Vec<&str> = out.lines().collect();
    assert!(lines[0].starts_with("NAME ") && lines[0].contains(" STATE "), "{out}");
    assert!(words(lines[1]).starts_with(&["cortex", "active"]), "{out}");
    assert!(
        words(lines[2]).starts_with(&["missing", "failed"])
            && lines[2].contains("missing/policy.toml"),
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
    assert!(code == 0 && lists_active_cortex(&out), "{out}");
    host.stop();
    assert!(!socket.exists(), "the host removes its socket");
}

#[test]
fn errors_of_host_are_printed_with_code() {
    let host = start("");
    let file = config(&host);
    let (code, out, err) = policy(&["show", "cortexx", "--config", &file]);
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(err.ends_with("[policy_not_found]\n"), "{err}");
    for name in ["`cortexx`", "`cortex`", "`missing`"] {
        assert!(err.contains(name), "{name}: {err}");
    }
    let (code, _, err) =
        policy(&["rollback", "no/such one", "--to", "ab12cd34", "--config", &file]);
    assert!(code == 1 && err.contains("`no/such one`"), "{err}");
    assert!(err.ends_with("[policy_not_found]\n"), "{err}");
    assert_eq!(policy(&["disable", "cortex"]).0, 2, "neither --config nor --socket nor --url");
    assert_eq!(policy(&["list", "--url", "http://127.0.0.1:1"]).0, 2, "--url requires --token-env");
}

#[test]
fn socket_is_private_and_public_port_has_no_admin_api() {
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
fn admin_port_requires_token() {
    let host = start("socket = \"\"\nlisten = \"127.0.0.1:0\"\ntoken-env = \"ADMIN_TOKEN\"");
    assert!(!socket(&host).exists());
    let port = admin_port(&host);
    for (header, status) in
        [(None, 401), (Some("Bearer guess"), 401), (Some("Bearer t0ken-0123456789"), 200)]
    {
        let headers: Vec<(&str, &str)> =
            header.map(|header| ("authorization", header)).into_iter().collect();
        for path in ["/policies", "/status", "/metrics"] {
            let response = send(port, "GET", path, &headers, b"");
            assert_eq!(response.status, status, "{path} with {header:?}: {}", response.text());
        }
        let command = send(port, "POST", "/policies/cortex/explode", &headers, b"");
        assert_eq!(command.status, if status == 200 { 404 } else { 401 }, "{}", command.text());
    }
    let url = format!("http://127.0.0.1:{port}");
    let (code, out, err) = policy(&["list", "--url", &url, "--token-env", "GOOD"]);
    assert!(code == 0 && lists_active_cortex(&out), "{out}{err}");
    let (code, _, err) = policy(&["list", "--url", &url, "--token-env", "BAD"]);
    assert!(code == 1 && err.contains("[invalid_api_key]"), "{err}");
    let (code, _, err) = policy(&["list", "--url", &url, "--token-env", "UNSET"]);
    assert!(code == 1 && err.contains("UNSET"), "{err}");
    assert!(!host.log_text().contains("t0ken-0123456789"));
}

#[test]
fn second_host_does_not_take_over_socket() {
    let host = start("");
    let mut second = Command::new(program(FAKE_ENGINE));
    second
        .args(["serve", "--listen", "127.0.0.1:0", &config(&host)])
        .env("ADMIN_TOKEN", "t0ken-0123456789");
    let output = second.stdin(Stdio::null()).output().unwrap();
    let err = String::from_utf8_lossy(&output.stderr);
    let socket = socket(&host).display().to_string();
    assert!(!output.status.success() && err.contains(&socket), "{err}");
    assert_eq!(policy(&["list", "--config", &config(&host)]).0, 0);
}

#[test]
fn host_with_a_broken_configuration_is_reached_by_its_socket() {
    let host = start("");
    fs::write(config(&host), "not TOML").unwrap();
    let (code, _, err) = policy(&["list", "--config", &config(&host)]);
    assert!(code != 0 && err.contains("--socket"), "{err}");
    let (code, out, err) = policy(&["list", "--socket", socket(&host).to_str().unwrap()]);
    assert!(code == 0 && lists_active_cortex(&out), "{out}{err}");
}

#[test]
fn stale_socket_of_killed_host_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_owned();
    let mut host = start_in(dir, "");
    let processes = descendants_of(host.pid());
    host.signal(Signal::KILL);
    host.wait_for_exit();
    wait_until("the keeper has ended the engines", || {
        processes.iter().all(|pid| !pointsman_tests::host::is_alive(*pid))
    });
    let socket = path.join("states/admin.sock");
    assert!(socket.exists() && UnixStream::connect(&socket).is_err());
    let file = config(&host);
    let (code, _, err) = policy(&["list", "--config", &file]);
    assert!(code == 1 && err.contains(&socket.display().to_string()), "{err}");
    // The next host in the same folder.
    fs::remove_file(path.join("port")).unwrap();
    let again = Command::new(program(FAKE_ENGINE))
        .args(["serve", "--listen", "127.0.0.1:0", "--port-file"])
        .arg(path.join("port"))
        .arg(&file)
        .env("ADMIN_TOKEN", "t0ken-0123456789")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let mut again = again.unwrap();
    wait_until("the next host listens", || path.join("port").exists());
    let (code, out, err) = policy(&["list", "--config", &file]);
    again.kill().ok();
    again.wait().ok();
    assert!(code == 0 && lists_active_cortex(&out), "{out}{err}");
}

/// Starts a host with these variables, and no socket in its configuration.
fn start_with(dir: tempfile::TempDir, env: &[(&str, &str)]) -> Host {
    let config =
        format!("[state]\ndir = \"states\"\norphan-grace = \"0s\"\n{}", lane("a", &["a"], &[]));
    Host::start_in(&program(FAKE_ENGINE), dir, &config, env).wait_until_ready()
}

#[test]
fn socket_in_the_runtime_folder_is_found_by_commands() {
    let runtime = tempfile::tempdir().unwrap();
    let folder = runtime.path().to_str().unwrap();
    let mut dir = tempfile::tempdir().unwrap();
    // The second host finds what is left of the first one, which is killed.
    for variable in ["RUNTIME_DIRECTORY", "RUNTIME_DIRECTORY", "XDG_RUNTIME_DIR"] {
        let mut host = start_with(dir, &[(variable, folder)]);
        let path = host.admin_socket().unwrap().to_owned();
        assert!(path.starts_with(folder), "{variable}: {path:?}");
        let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{variable}");
        let (code, _, err) = policy(&["list", "--config", &config(&host)]);
        assert_eq!(code, 0, "{variable}: {err}");
        // Neither another host nor its start without the variable takes the socket of a living one.
        let mut second = Command::new(program(FAKE_ENGINE));
        second.args(["serve", "--listen", "127.0.0.1:0", &config(&host)]).env_remove(variable);
        let output = second.stdin(Stdio::null()).output().unwrap();
        assert!(!output.status.success(), "{variable}");
        assert!(UnixStream::connect(&path).is_ok(), "{variable}");
        host.signal(Signal::KILL);
        host.wait_for_exit();
        dir = host.into_dir_of_killed();
    }
    let host = start_with(dir, &[]);
    assert_eq!(policy(&["list", "--config", &config(&host)]).0, 0);
}
