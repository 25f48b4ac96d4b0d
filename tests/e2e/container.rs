//! The host as the first process of a container (PID 1). Skipped where processes may not create
//! namespaces.

use std::path::Path;
use std::process::Command;

use pointsman_tests::attack::launcher;
use pointsman_tests::client::get;
use pointsman_tests::host::{Host, descendants_of, program, send_signal};
use pointsman_tests::wait_until;
use rustix::process::Signal;

use crate::{FAKE_ENGINE, lane};

const UNSHARE: &str = "unshare --user --map-root-user --pid --fork --kill-child --mount-proc";

fn is_allowed() -> bool {
    let words: Vec<&str> = UNSHARE.split(' ').collect();
    let is_allowed = Command::new(words[0]).args(&words[1..]).arg("true").status();
    let is_allowed = is_allowed.is_ok_and(|status| status.success());
    if !is_allowed {
        eprintln!("skipped: no namespaces");
    }
    is_allowed
}

/// Starts a host as PID 1, and returns it with the number of its process outside.
fn start() -> (Host, u32) {
    let dir = tempfile::tempdir().unwrap();
    let own = program(FAKE_ENGINE);
    let unshare = format!("exec {UNSHARE} '{}' \"$@\"", own.display());
    let first = launcher(dir.path(), &own, &unshare);
    let config = lane("a", &["a"], &[]);
    let host = Host::start_in(&first, dir, &config, &[]).wait_until_ready();
    let is_first = |pid: &u32| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let ids = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
        ids.is_some_and(|ids| ids.split_whitespace().last() == Some("1"))
    };
    let pid = descendants_of(host.pid()).into_iter().find(is_first).expect("the host is PID 1");
    (host, pid)
}

#[test]
fn first_process_reaps_orphans_and_stops_on_sigterm() {
    if !is_allowed() {
        return;
    }
    let (mut host, pid) = start();
    // As `docker exec` does, which leaves a process behind.
    let target = pid.to_string();
    let exec = ["--target", &target, "--user", "--preserve-credentials", "--pid", "--mount"];
    let script = "sleep 0.1 >/dev/null 2>&1 & echo $!";
    let mut command = Command::new("nsenter");
    command.args(exec).args(["setsid", "--wait", "sh", "-c", script]);
    let output = command.output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let orphan: u32 = text.trim().parse().unwrap_or_else(|_| {
        panic!("{text}{}", String::from_utf8_lossy(&output.stderr));
    });
    // The folder of a zombie would stay.
    // The processes as the host sees them.
    let processes = Path::new("/proc").join(pid.to_string()).join("root").join("proc");
    let folder = processes.join(orphan.to_string());
    assert!(processes.join("1").exists());
    wait_until("the orphan is reaped", || !Path::new(&folder).exists());

    assert_eq!(get(host.port, "/readyz").status, 200);
    send_signal(pid, Signal::TERM);
    assert!(host.wait_for_exit().success());
    host.wait_for_event("draining", &[("signal", "SIGTERM")]);
}

/// The end of PID 1 ends the container, and the next host with it.
#[test]
fn first_process_does_not_hand_over() {
    if !is_allowed() {
        return;
    }
    let (mut host, pid) = start();
    send_signal(pid, Signal::USR2);
    host.wait_for_event("handover_failed", &[]);
    assert_eq!(get(host.port, "/readyz").status, 200);
    send_signal(pid, Signal::TERM);
    assert!(host.wait_for_exit().success());
}
