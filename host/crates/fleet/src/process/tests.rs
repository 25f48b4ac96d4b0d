use std::os::unix::process::ExitStatusExt as _;

use super::*;
use crate::spec::BackOff;

fn shell(script: &str) -> ProcessSpec {
    let second = Duration::from_secs(1);
    ProcessSpec {
        command: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
        env: vec![("GREETING".into(), "hello".into())],
        directory: None,
        port: None,
        start_timeout: second,
        stop_grace: second,
        back_off: BackOff { first: second, most: second, reset_after: second },
    }
}

#[test]
fn ends_are_explained() {
    for (status, reason, part) in [
        (ExitStatus::from_raw(4), "SIGILL", "another CPU"),
        (ExitStatus::from_raw(132 << 8), "SIGILL", "another CPU"),
        (ExitStatus::from_raw(9), "SIGKILL", "memory ran out"),
        (ExitStatus::from_raw(137 << 8), "SIGKILL", "memory ran out"),
        (ExitStatus::from_raw(0), "exit-0", "without an error"),
        (ExitStatus::from_raw(2 << 8), "exit-2", "wrong argument"),
        (ExitStatus::from_raw(7 << 8), "exit-7", "exit code 7"),
        (ExitStatus::from_raw(10), "signal-10", "signal 10"),
    ] {
        let (sentence, word) = explain(status);
        assert!(word == reason && sentence.contains(part), "{status}: {word}, {sentence}");
    }
}

#[tokio::test]
async fn placeholders_and_environment_reach_the_command_and_its_lines_are_kept() {
    let mut process =
        Process::start("a", &shell("echo $GREETING {lane} {host}:{port} >&2; exit 3"), 4711).unwrap();
    assert_eq!(process.ended().await.unwrap().code(), Some(3));
    while process.readers.join_next().await.is_some() {}
    assert_eq!(process.lines().last().as_deref(), Some("hello a 127.0.0.1:4711"));
}

#[tokio::test]
async fn long_lines_are_cut_progress_bars_are_lines_and_control_characters_go() {
    let script = r"head -c 10000 /dev/zero | tr '\0' x; echo; printf '50%%\r100%%\r\033[1mdone\n'; for i in $(seq 30); do echo $i; done";
    let mut process = Process::start("a", &shell(script), 1).unwrap();
    process.ended().await.unwrap();
    while process.readers.join_next().await.is_some() {}
    let lines = process.lines().0.lock().unwrap().clone();
    assert_eq!(lines.len(), LAST_LINES);
    assert_eq!(
        (lines.front().map(String::as_str), lines.back().map(String::as_str)),
        (Some("11"), Some("30"))
    );
}

/// A child that takes no notice of SIGTERM, and a grandchild that keeps the pipes open: nothing of them is left.
#[tokio::test]
async fn stopping_ends_the_whole_group() {
    let process =
        Process::start("a", &shell("trap '' TERM; sleep 1000 & echo ready; wait; wait"), 1).unwrap();
    let group = process.group;
    while process.lines().last().is_none() {
        tokio::task::yield_now().await;
    }
    process.stop(Duration::from_millis(50)).await;
    assert!(rustix::process::test_kill_process_group(group).is_err());
}

#[tokio::test]
async fn what_cannot_be_started_says_why() {
    let spec = ProcessSpec { command: vec!["no-such-program".into()], ..shell("") };
    assert_eq!(Process::start("a", &spec, 1).unwrap_err().kind(), io::ErrorKind::NotFound);
    let spec = ProcessSpec { command: Vec::new(), ..shell("") };
    assert_eq!(Process::start("a", &spec, 1).unwrap_err().kind(), io::ErrorKind::InvalidInput);
}
