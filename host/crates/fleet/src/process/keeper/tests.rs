//! The keeper with real processes. Its program is this test binary.

use std::fs;
use std::io::Write as _;
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Signal, kill_process};
use tokio::task::JoinSet;

use super::message::{PROTOCOL, Refusal, Report, Request};
use super::wire::{FrameReceiver, OutgoingFrame};
use crate::launch::Launch;
use crate::process::tests::{keeper, leak, printed_pids, shell, start, until};
use crate::process::{AfterCrash, KeeperSpec, Note, Process, Stage, StateDir, StateDirError, proc};

const LONG: Duration = Duration::from_secs(3600);

fn open(dir: &Path, grace: Duration) -> StateDir {
    StateDir::open(Some(dir), &keeper(dir, grace)).unwrap()
}

fn is_alive(pid: u32) -> bool {
    proc::snapshot(pid).is_some_and(|process| !process.dead)
}

fn kill(pid: u32) {
    kill_process(proc::to_raw(pid).unwrap(), Signal::KILL).unwrap();
}

fn until_ended(pids: &[u32]) {
    until("the end of the processes", || pids.iter().all(|pid| !is_alive(*pid)).then_some(()));
}

/// Starts an engine of which a later host knows all that it needs to take it over.
async fn start_noted(lane: &str, script: &str, state_dir: &StateDir) -> Process {
    let note = Note { fingerprint: "f".into(), port: Some(1), starts: 7, ..Note::default() };
    let launch: Launch = shell(script);
    Process::start(lane, &launch, note, state_dir, |_| ()).await.unwrap()
}

/// Leaves everything as if the host had been killed.
fn crash(state_dir: StateDir, processes: Vec<Process>) {
    state_dir.cut_keeper();
    processes.into_iter().for_each(drop_readers);
}

async fn wait_for_line(process: &Process, line: &str) {
    while process.log_tail().last().as_deref() != Some(line) {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn next_host_takes_engines_over_with_their_output() {
    let dir = tempfile::tempdir().unwrap();
    let state_dir = open(dir.path(), LONG);
    let script = "echo one; while ! [ -e $DIR/go ]; do sleep 0.01; done; echo two; \
                  while ! [ -e $DIR/end ]; do sleep 0.01; done; echo three; exit 7";
    let script = script.replace("$DIR", dir.path().to_str().unwrap());
    let mut process = start_noted("a lane", &script, &state_dir).await;
    let (pid, keeper) = (process.id(), state_dir.keeper_id());
    wait_for_line(&process, "one").await;
    process.note(|note| note.stage = Stage::Ready);
    crash(state_dir, vec![process]);
    fs::write(dir.path().join("go"), "").unwrap();
    // What the engine writes meanwhile is kept.
    tokio::time::sleep(Duration::from_millis(100)).await;

    let state_dir = open(dir.path(), LONG);
    assert_eq!(state_dir.keeper_id(), keeper);
    assert_eq!(state_dir.sweep(), []);
    assert!(state_dir.has_adoptable("a lane") && is_alive(pid));
    let engine = state_dir.take_adoptable("a lane").unwrap();
    assert_eq!((engine.pid(), engine.note().starts), (Some(pid), 7));
    assert_eq!(engine.note().stage, Stage::Ready);
    let mut adopted = Process::adopt(engine, &state_dir, |_| ()).unwrap();
    wait_for_line(&adopted, "two").await;
    fs::write(dir.path().join("end"), "").unwrap();
    assert_eq!(adopted.ended().await.unwrap().code(), Some(7));
    let tail = adopted.log_tail().clone();
    adopted.kill().await.unwrap();
    assert_eq!(tail.tail(2), ["two", "three"]);
    assert_eq!(dir.path().join("engines").read_dir().unwrap().count(), 0);
}

#[tokio::test]
async fn engine_that_ended_unattended_is_swept() {
    let dir = tempfile::tempdir().unwrap();
    let state_dir = open(dir.path(), LONG);
    let process = start_noted("a", "sleep 1000 & echo $!; wait", &state_dir).await;
    let (pid, child) = (process.id(), printed_pids(&process, 1).await[0]);
    let other = start_noted("b", "exec sleep 1000", &state_dir).await;
    let other_pid = other.id();
    crash(state_dir, vec![process, other]);
    kill(pid);
    until_ended(&[pid]);
    let state_dir = open(dir.path(), LONG);
    assert!(!state_dir.has_adoptable("a") && state_dir.has_adoptable("b"));
    assert_eq!(state_dir.sweep().len(), 1);
    assert!(!is_alive(child) && is_alive(other_pid));
    // An engine that does not fit the configuration is ended by the sweep.
    state_dir.retain_adoptable(|_| false);
    assert_eq!(state_dir.sweep().len(), 1);
    assert!(!is_alive(other_pid));
}

#[tokio::test]
async fn engines_end_after_the_grace_time() {
    let dir = tempfile::tempdir().unwrap();
    let state_dir = open(dir.path(), Duration::from_millis(300));
    let process = start_noted("a", "sleep 1000 & echo $!; wait", &state_dir).await;
    let pids = [process.id(), printed_pids(&process, 1).await[0], state_dir.keeper_id().unwrap()];
    let begun = Instant::now();
    crash(state_dir, vec![process]);
    until_ended(&pids);
    assert!(begun.elapsed() >= Duration::from_millis(300));
    // The next host finds only the record.
    let state_dir = open(dir.path(), LONG);
    assert!(!state_dir.has_adoptable("a"));
    assert_eq!(state_dir.sweep().len(), 1);
}

#[tokio::test]
async fn farewell_ends_engines_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let state_dir = open(dir.path(), LONG);
    let process = start_noted("a", "exec sleep 1000", &state_dir).await;
    let pids = [process.id(), state_dir.keeper_id().unwrap()];
    state_dir.announce_stop();
    crash(state_dir, vec![process]);
    until_ended(&pids);
}

#[tokio::test]
async fn killed_keeper_is_replaced_and_its_engines_live_on() {
    let dir = tempfile::tempdir().unwrap();
    let state_dir = open(dir.path(), LONG);
    let mut one = start_noted(
        "a",
        "echo $$; trap 'echo bye; exit 5' TERM; \
                                    while :; do sleep 0.01; done",
        &state_dir,
    )
    .await;
    let two = start_noted("b", "sleep 1000 & echo $!; wait", &state_dir).await;
    printed_pids(&one, 1).await;
    let child = printed_pids(&two, 1).await[0];
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    state_dir.deposit("http", listener.into()).unwrap();
    let old = state_dir.keeper_id().unwrap();
    kill(old);
    let new = until("another keeper", || state_dir.keeper_id().filter(|id| *id != old));
    assert!(is_alive(one.id()) && is_alive(two.id()) && is_alive(child));
    // The host is the parent now, so it gets the exit status.
    kill_process(proc::to_raw(one.id()).unwrap(), Signal::TERM).unwrap();
    assert_eq!(one.ended().await.unwrap().code(), Some(5));
    one.kill().await.unwrap();
    let three = start_noted("c", "exec sleep 1000", &state_dir).await;
    // The new keeper has them all.
    let pids = [two.id(), three.id()];
    crash(state_dir, vec![two, three]);
    let state_dir = open(dir.path(), LONG);
    assert_eq!(state_dir.keeper_id(), Some(new));
    assert!(state_dir.has_adoptable("b") && state_dir.has_adoptable("c"));
    assert_eq!(state_dir.deposited().len(), 1);
    drop(state_dir);
    until_ended(&pids);
    until_ended(&[child]);
}

/// With `orphan-grace = "0s"`, the kernel ends the first process of each engine with the keeper.
#[tokio::test]
async fn engines_without_grace_end_with_the_keeper() {
    let dir = tempfile::tempdir().unwrap();
    let state_dir = open(dir.path(), Duration::ZERO);
    let mut process = start_noted("a", "exec sleep 1000", &state_dir).await;
    kill(state_dir.keeper_id().unwrap());
    process.ended().await.ok();
    assert!(!is_alive(process.id()));
    process.kill().await.unwrap();
}

async fn kill_both(after_crash: AfterCrash) -> (tempfile::TempDir, u32, StateDir) {
    let dir = tempfile::tempdir().unwrap();
    let spec = KeeperSpec { after_crash, ..keeper(dir.path(), LONG) };
    let state_dir = StateDir::open(Some(dir.path()), &spec).unwrap();
    let script = "echo one; while ! [ -e $DIR/go ]; do sleep 0.01; done; \
                  trap '' PIPE; echo two && touch $DIR/written; exec sleep 1000";
    let script = script.replace("$DIR", dir.path().to_str().unwrap());
    let process = start_noted("a", &script, &state_dir).await;
    wait_for_line(&process, "one").await;
    let (pid, keeper) = (process.id(), state_dir.keeper_id().unwrap());
    state_dir.cut_keeper();
    kill(keeper);
    until_ended(&[keeper]);
    // As the kernel does for a host that is killed.
    drop_readers(process);
    fs::write(dir.path().join("go"), "").unwrap();
    let state_dir = StateDir::open(Some(dir.path()), &spec).unwrap();
    (dir, pid, state_dir)
}

/// Leaks the handle, but not the read ends of its pipes.
fn drop_readers(mut process: Process) {
    process.readers = JoinSet::new();
    leak(process);
}

#[tokio::test]
async fn engine_is_ended_if_both_were_killed() {
    let (_dir, pid, state_dir) = kill_both(AfterCrash::End).await;
    assert!(!state_dir.has_adoptable("a"));
    assert_eq!(state_dir.sweep().len(), 1);
    proc::reap(pid);
    assert!(!is_alive(pid));
}

#[tokio::test]
async fn engine_is_taken_over_although_both_were_killed() {
    let (dir, pid, state_dir) = kill_both(AfterCrash::Adopt).await;
    assert_eq!(state_dir.sweep(), []);
    let engine = state_dir.take_adoptable("a").unwrap();
    let mut adopted = Process::adopt(engine, &state_dir, |_| ()).unwrap();
    assert_eq!(adopted.id(), pid);
    wait_for_line(&adopted, "two").await;
    until("the line", || dir.path().join("written").exists().then_some(()));
    kill(pid);
    // Of a child of another process, nothing would be known; here, the test is the subreaper.
    adopted.ended().await.ok();
    adopted.kill().await.unwrap();
    assert!(!is_alive(pid));
}

#[tokio::test]
async fn engine_never_waits_for_a_host() {
    let dir = tempfile::tempdir().unwrap();
    let state_dir = open(dir.path(), LONG);
    let script = "echo go; head -c 3000000 /dev/zero | tr '\\0' 'x' | fold -w 99; echo; \
                  touch $DIR/done; echo done; exec sleep 1000";
    let script = script.replace("$DIR", dir.path().to_str().unwrap());
    let script =
        format!("while ! [ -e {}/go ]; do sleep 0.01; done; {script}", dir.path().display());
    let process = start_noted("a", &script, &state_dir).await;
    crash(state_dir, vec![process]);
    fs::write(dir.path().join("go"), "").unwrap();
    until("the end of the output", || dir.path().join("done").exists().then_some(()));
    let state_dir = open(dir.path(), LONG);
    let engine = state_dir.take_adoptable("a").unwrap();
    let adopted = Process::adopt(engine, &state_dir, |_| ()).unwrap();
    wait_for_line(&adopted, "done").await;
    adopted.kill().await.unwrap();
}

#[tokio::test]
async fn deposited_listeners_are_returned() {
    let dir = tempfile::tempdir().unwrap();
    let state_dir = open(dir.path(), LONG);
    assert!(state_dir.deposited().is_empty());
    let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    let addresses = listeners.each_ref().map(|listener| listener.local_addr().unwrap());
    for (name, listener) in ["one", "two"].into_iter().zip(listeners) {
        state_dir.deposit(name, listener.into()).unwrap();
    }
    state_dir.withdraw("two");
    crash(state_dir, Vec::new());
    // It waits in the queue of the listener while no host is attached.
    let mut client = TcpStream::connect(addresses[0]).unwrap();
    client.write_all(b"x").unwrap();
    let state_dir = open(dir.path(), LONG);
    let deposited = state_dir.deposited();
    let names: Vec<&str> = deposited.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["one"]);
    let socket: OwnedFd = deposited.into_iter().next().unwrap().1;
    assert!(TcpListener::from(socket).accept().is_ok());
    assert!(TcpStream::connect(addresses[1]).is_err(), "closed");
    assert_eq!(
        StateDir::open(None, &KeeperSpec::default())
            .unwrap()
            .deposit("x", TcpListener::bind("127.0.0.1:0").unwrap().into())
            .unwrap_err()
            .kind(),
        std::io::ErrorKind::NotConnected
    );
}

/// Says hello to the keeper of a directory, and returns its first report.
fn hello(dir: &Path, protocol: u32) -> (UnixStream, Report) {
    let stream = UnixStream::connect(dir.join("keeper.sock")).unwrap();
    let request = serde_json::to_vec(&Request::Hello { protocol, grace_ms: 0 }).unwrap();
    assert!(OutgoingFrame::new(&request, Vec::new()).send(&stream).unwrap());
    let mut receiver = FrameReceiver::default();
    loop {
        assert!(receiver.receive(&stream).unwrap(), "the keeper closed the connection");
        if let Some(frame) = receiver.next_frame().unwrap() {
            return (stream, serde_json::from_slice(&frame.message).unwrap());
        }
    }
}

#[tokio::test]
async fn one_host_is_attached_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let state_dir = open(dir.path(), LONG);
    let process = start("a", "exec sleep 1000", &state_dir).await;
    let (_, report) = hello(dir.path(), PROTOCOL);
    assert!(
        matches!(report, Report::Refused { code: Refusal::InUse, owner: Some(owner), .. }
            if owner == std::process::id()),
        "{report:?}"
    );
    // Not even one that has the lock.
    state_dir.unlock();
    let error = StateDir::open(Some(dir.path()), &keeper(dir.path(), LONG)).unwrap_err();
    assert!(matches!(error, StateDirError::InUse { pid: Some(_), .. }), "{error}");
    assert!(is_alive(process.id()));
    process.kill().await.unwrap();
}

#[tokio::test]
async fn announced_host_takes_over_from_the_last_one() {
    let dir = tempfile::tempdir().unwrap();
    let state_dir = open(dir.path(), LONG);
    let process = start_noted("a", "exec sleep 1000", &state_dir).await;
    let pid = process.id();
    assert!(!state_dir.is_released());
    // Both hosts of this test have the same process id.
    state_dir.hand_over(Some(std::process::id()));
    state_dir.unlock();
    let next = open(dir.path(), LONG);
    until("the release", || state_dir.is_released().then_some(()));
    assert!(next.has_adoptable("a"));
    // The old host ends nothing any more.
    drop(process);
    drop(state_dir);
    assert!(is_alive(pid));
    let adopted = Process::adopt(next.take_adoptable("a").unwrap(), &next, |_| ()).unwrap();
    adopted.kill().await.unwrap();
    assert!(!is_alive(pid));
}

#[tokio::test]
async fn engines_are_taken_back_from_a_host_that_has_failed() {
    let dir = tempfile::tempdir().unwrap();
    let state_dir = open(dir.path(), LONG);
    let script = "echo one; while ! [ -e $DIR/go ]; do sleep 0.01; done; echo two; sleep 1000";
    let script = script.replace("$DIR", dir.path().to_str().unwrap());
    let mut process = start_noted("a", &script, &state_dir).await;
    wait_for_line(&process, "one").await;
    process.note(|note| note.stage = Stage::Ready);
    state_dir.hand_over(Some(std::process::id()));
    state_dir.unlock();
    let next = open(dir.path(), LONG);
    until("the release", || state_dir.is_released().then_some(()));
    crash(next, Vec::new());
    state_dir.take_back().unwrap();
    assert!(!state_dir.is_released());
    // Its output is read again, and it is ended by this host.
    fs::write(dir.path().join("go"), "").unwrap();
    wait_for_line(&process, "two").await;
    let pid = process.id();
    process.kill().await.unwrap();
    assert!(!is_alive(pid));
    assert!(StateDir::open(Some(dir.path()), &keeper(dir.path(), LONG)).is_err());
}

#[tokio::test]
async fn host_of_another_version_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let state_dir = open(dir.path(), LONG);
    let process = start("a", "exec sleep 1000", &state_dir).await;
    let pid = process.id();
    let (_, report) = hello(dir.path(), PROTOCOL + 1);
    assert!(
        matches!(report, Report::Refused { code: Refusal::Protocol, protocol: PROTOCOL, .. }),
        "{report:?}"
    );
    assert!(is_alive(pid));
    process.kill().await.unwrap();
}

/// The socket can be used by the host's user alone, and its path may be too long for an address.
#[tokio::test]
async fn socket_is_private_and_works_in_a_long_folder() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let long = dir.path().join("x".repeat(120));
    let program = keeper(dir.path(), LONG);
    let state_dir = StateDir::open(Some(&long), &program).unwrap();
    let mode = fs::metadata(long.join("keeper.sock")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let process = start("a", "exec sleep 1000", &state_dir).await;
    assert_ne!(proc::snapshot(process.id()).unwrap().parent, std::process::id());
    process.kill().await.unwrap();
}
