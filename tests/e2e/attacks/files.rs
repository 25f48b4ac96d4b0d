//! Files that are not what they should be: pipes, endless files, links, folders of others.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};

use pointsman_tests::deployment::{Deployment, chain, policy_dir};
use pointsman_tests::guests::Guest;
use pointsman_tests::host::{Host, program};
use pointsman_tests::wait_until;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use serde_json::Value;

use crate::{FAKE_ENGINE, lane};

fn deployment() -> Deployment {
    let config = format!(
        "[policies]\ncache = \"cache\"\npoll-interval = \"1s\"\n{}{}",
        chain(&["p"], ""),
        lane("a", &["auto"], &[])
    );
    Deployment::start(FAKE_ENGINE, policy_dir(&[Guest::new("p").reason("first")]), &config)
}

fn make_fifo(path: &Path) {
    fs::remove_file(path).ok();
    mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
}

/// A policy's file that cannot be read is an error of that policy; the next good one is loaded, and
/// the host stops.
#[test]
fn pipes_and_endless_files_in_a_policys_folder_are_errors() {
    let deployment = deployment();
    assert_eq!(deployment.reason("auto"), "first");
    let before = deployment.host.resource_usage().resident;
    let folder = deployment.policies().join("p");
    for (round, file) in ["policy.wasm", "policy.toml", "cases.jsonl"].into_iter().enumerate() {
        for endless in [false, true] {
            let path = folder.join(file);
            if endless {
                fs::remove_file(&path).ok();
                symlink("/dev/zero", &path).unwrap();
            } else {
                make_fifo(&path);
            }
            deployment.reload();
            let status = deployment.policy("p");
            assert_ne!(status["error"], Value::Null, "{file}: {status}");
            assert_eq!(deployment.send_chat("auto").status, 200, "{file}");
            fs::remove_file(&path).unwrap();
            let reason = format!("after {round} {endless}");
            let status = deployment.deploy(&Guest::new("p").reason(&reason));
            assert_eq!(status["error"], Value::Null, "{file}: {status}");
            assert_eq!(deployment.reason("auto"), reason);
        }
    }
    let after = deployment.host.resource_usage().resident;
    assert!(after < before + (128 << 20), "{before} {after}");
    deployment.host.assert_no_request_lost();
    deployment.host.stop();
}

/// Runs a host with this configuration until it exits or listens; returns the exit status.
fn start_and_end(dir: &Path, config: &str) -> Option<ExitStatus> {
    let file = dir.join("pointsman.toml");
    fs::write(&file, config).unwrap();
    let port_file = dir.join("port");
    let mut command = Command::new(program(FAKE_ENGINE));
    command.args(["serve", "--listen", "127.0.0.1:0", "--port-file"]).arg(&port_file).arg(&file);
    command.env("XDG_STATE_HOME", dir.join("default-state"));
    let mut child = command.stdin(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let mut status = None;
    wait_until("the host listens or exits", || {
        status = child.try_wait().unwrap();
        status.is_some() || port_file.exists()
    });
    if status.is_none() {
        pointsman_tests::host::send_signal(child.id(), rustix::process::Signal::TERM);
        child.wait().unwrap();
    }
    status
}

#[test]
fn pipe_in_a_policys_folder_does_not_hold_up_the_start() {
    for file in ["policy.wasm", "policy.toml"] {
        let dir = policy_dir(&[Guest::new("p")]);
        make_fifo(&dir.path().join("policies/p").join(file));
        let config = format!("{}{}", chain(&["p"], ""), lane("a", &["a"], &[]));
        // Whether the host starts without the policy or says why it does not: it does not hang.
        start_and_end(dir.path(), &config);
    }
}

#[test]
fn folders_that_others_may_write_to_are_refused() {
    let lane = lane("a", &["a"], &[]);
    for config in ["[state]\ndir = \"folder\"\n", "[records]\ndir = \"folder\"\n"] {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("folder");
        fs::create_dir(&folder).unwrap();
        fs::set_permissions(&folder, Permissions::from_mode(0o700)).unwrap();
        let private = start_and_end(dir.path(), &format!("{config}{lane}"));
        assert_eq!(private, None, "{config}: a private folder is used");
        fs::remove_file(dir.path().join("port")).unwrap();
        fs::set_permissions(&folder, Permissions::from_mode(0o777)).unwrap();
        let status = start_and_end(dir.path(), &format!("{config}{lane}"));
        assert!(status.is_some_and(|status| !status.success()), "{config}: {status:?}");
    }
}

/// Nothing is written through a link that someone else has put into a folder of the host.
#[test]
fn links_in_folders_of_the_host_are_not_followed() {
    let lane = lane("a", &["a"], &[]);
    for (config, link) in [
        ("[records]\ndir = \"folder\"\n", "decisions.jsonl"),
        ("[state]\ndir = \"folder\"\n", "lock"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("folder");
        fs::create_dir(&folder).unwrap();
        fs::set_permissions(&folder, Permissions::from_mode(0o700)).unwrap();
        let victim = dir.path().join("victim");
        fs::write(&victim, "unchanged").unwrap();
        symlink(&victim, folder.join(link)).unwrap();
        start_and_end(dir.path(), &format!("{config}{lane}"));
        assert_eq!(fs::read_to_string(&victim).unwrap(), "unchanged", "{link}");
    }
}

/// Without a folder for state, as in a container with a read-only file system, the host serves.
#[test]
fn host_serves_without_a_state_folder() {
    let dir = tempfile::tempdir().unwrap();
    // A path below a device cannot be created, not even by root.
    let env = [("XDG_STATE_HOME", "/dev/null/state")];
    let config = lane("a", &["auto"], &[]);
    let host = Host::start_in(&program(FAKE_ENGINE), dir, &config, &env).wait_until_ready();
    let body = pointsman_tests::client::chat("auto", serde_json::json!({}));
    let response = pointsman_tests::client::post(host.port, super::CHAT, &body);
    assert_eq!(response.status, 200, "{}", response.text());
    host.assert_no_request_lost();
    host.stop();
}
