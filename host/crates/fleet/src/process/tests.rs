use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{Command as StdCommand, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use rustix::process::{kill_process, test_kill_process_group};

use super::marker::Marker;
use super::output::MAX_TAIL_LINES;
use super::proc::Id;
use super::sweep::SweepOutcome;
use super::*;

/// The variable that makes this test binary act as the host or the keeper of a test.
const ROLE: &str = "POINTSMAN_TEST_ROLE";
/// A script with the processes of an engine like vLLM, which outlive their leader and have
/// overwritten their marker. One child is in the leader's group, one in a session of its own, and
/// one in another session still has its marker but another output. Each prints its process id.
const PROCESS_TREE: &str = "env -i sh -c 'echo $$; exec sleep 1000' & \
                            setsid env -i sh -c 'echo $$; exec sleep 1000' & \
                            setsid sh -c 'echo $$; exec sleep 1000 >/dev/null 2>&1' & ";

pub(super) fn shell(script: &str) -> Launch {
    Launch { command: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(), ..Launch::default() }
}

pub(super) fn without_dir() -> StateDir {
    StateDir::open(None, &KeeperSpec::default()).unwrap()
}

pub(super) async fn start(lane: &str, script: &str, state_dir: &StateDir) -> Process {
    Process::start(lane, &shell(script), Note::default(), state_dir, |_| ()).await.unwrap()
}

fn alive(pid: u32) -> bool {
    proc::snapshot(pid).is_some_and(|process| !process.dead)
}

/// A process that belongs to no engine. Killed on drop, also if the test fails.
struct UnrelatedProcess(std::process::Child);

impl UnrelatedProcess {
    fn start(command: &[&str]) -> Self {
        Self(StdCommand::new(command[0]).args(&command[1..]).spawn().unwrap())
    }

    fn id(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for UnrelatedProcess {
    fn drop(&mut self) {
        drop(self.0.kill().and_then(|()| self.0.wait()));
    }
}

/// Polls until `look` returns something; panics after 30 s.
pub(super) fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "timed out waiting for {what}");
        proc::pause(Duration::from_millis(2));
    }
}

/// Returns the process ids that an engine prints, one per line.
pub(super) async fn printed_pids(process: &Process, count: usize) -> Vec<u32> {
    while process.log_tail().tail(MAX_TAIL_LINES).len() < count {
        tokio::task::yield_now().await;
    }
    process.log_tail().tail(count).iter().map(|line| line.parse().unwrap()).collect()
}

/// Leaks the handle, as if the host had been killed: the engine is not ended.
pub(super) fn leak(process: Process) {
    std::mem::forget(process);
}

#[tokio::test]
async fn launch_options_reach_the_command_and_its_output_is_kept() {
    let state_dir = without_dir();
    let mut launch =
        shell("echo $GREETING ${CARGO_MANIFEST_DIR-none} $(pwd) $POINTSMAN_ENGINE >&2; exit 3");
    launch.env =
        vec![("GREETING".into(), "hello".into()), ("POINTSMAN_ENGINE".into(), "not this".into())];
    launch.remove_env = vec!["CARGO_MANIFEST_DIR".into()];
    launch.directory = Some("/".into());
    let mut process =
        Process::start("a lane", &launch, Note::default(), &state_dir, |_| ()).await.unwrap();
    assert_eq!(process.ended().await.unwrap().code(), Some(3));
    let lines = process.log_tail().clone();
    process.kill().await.unwrap();
    let last = lines.last().unwrap();
    let marker = Marker::parse(last.strip_prefix("hello none / ").unwrap()).unwrap();
    assert_eq!((marker.state_dir.as_str(), marker.lane.as_str()), (state_dir.id(), "a lane"));
}

#[tokio::test]
async fn keeper_inherits_no_environment() {
    let dir = tempfile::tempdir().unwrap();
    let state_dir = StateDir::open(Some(dir.path()), &keeper(dir.path(), Duration::ZERO)).unwrap();
    let id = state_dir.keeper_id().unwrap();
    let environ = until("the keeper runs", || {
        let environ = std::fs::read(format!("/proc/{id}/environ")).ok()?;
        let environ = String::from_utf8_lossy(&environ).into_owned();
        environ.contains(ROLE).then_some(environ)
    });
    // Set by cargo for this test.
    assert!(std::env::var_os("CARGO_MANIFEST_DIR").is_some());
    assert!(!environ.contains("CARGO_MANIFEST_DIR"), "{environ}");
}

#[tokio::test]
async fn long_lines_are_split_and_progress_bars_are_lines() {
    let script = concat!(
        r"head -c 10000 /dev/zero | tr '\0' x; echo; ",
        r"printf '50%%\r100%%\r\033[1mdone\n'; for i in $(seq 30); do echo $i; done",
    );
    let received = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&received);
    let state_dir = without_dir();
    let on_line = move |line: &str| sink.lock().unwrap().push(line.to_owned());
    let mut process =
        Process::start("a", &shell(script), Note::default(), &state_dir, on_line).await.unwrap();
    process.ended().await.unwrap();
    let lines = process.log_tail().clone();
    process.kill().await.unwrap();
    let tail = lines.tail(100);
    assert_eq!((tail.len(), tail[0].as_str(), tail[19].as_str()), (MAX_TAIL_LINES, "11", "30"));
    assert_eq!(lines.tail(2), ["29", "30"]);
    let received = received.lock().unwrap();
    assert_eq!(
        received[..3].iter().map(String::len).collect::<Vec<_>>(),
        [4096, 4096, 10000 - 2 * 4096]
    );
    assert_eq!(received[3..7], ["50%", "100%", "done", "1"]);
}

#[tokio::test]
async fn progress_bar_is_read_before_it_changes() {
    let state_dir = without_dir();
    let process = start("a", r"printf 'loading 50%%\r'; sleep 1000", &state_dir).await;
    while process.log_tail().last().is_none() {
        tokio::task::yield_now().await;
    }
    assert_eq!(process.log_tail().last().as_deref(), Some("loading 50%"));
    process.kill().await.unwrap();
}

/// A child ignores SIGTERM, and a grandchild keeps the pipes open: both are ended.
#[tokio::test]
async fn stop_kills_processes_that_ignore_sigterm() {
    let state_dir = without_dir();
    let process = start("a", "trap '' TERM; sleep 1000 & echo $!; wait; wait", &state_dir).await;
    let (group, child) = (proc::to_raw(process.id()).unwrap(), printed_pids(&process, 1).await[0]);
    process.stop(Duration::from_millis(50)).await.unwrap();
    assert!(test_kill_process_group(group).is_err());
    assert_eq!(proc::snapshot(child), None);
}

#[tokio::test]
async fn stop_waits_for_a_graceful_end() {
    let state_dir = without_dir();
    let mut process = start(
        "a",
        "trap 'echo bye; exit 0' TERM; echo $$; while :; do sleep 0.01; done",
        &state_dir,
    )
    .await;
    printed_pids(&process, 1).await;
    let lines = process.log_tail().clone();
    assert!(tokio::time::timeout(Duration::from_millis(1), process.ended()).await.is_err());
    process.stop(Duration::from_secs(30)).await.unwrap();
    assert_eq!(lines.last().as_deref(), Some("bye"));
}

/// The children are also reaped, because the host has adopted them by then.
#[tokio::test]
async fn children_are_ended_after_the_leader_was_killed() {
    let state_dir = without_dir();
    let mut process = start("a", &format!("{PROCESS_TREE} wait"), &state_dir).await;
    let processes = printed_pids(&process, 3).await;
    kill_process(proc::to_raw(process.id()).unwrap(), Signal::KILL).unwrap();
    assert_eq!(process.ended().await.unwrap().signal(), Some(9));
    assert!(processes.iter().all(|pid| alive(*pid)));
    process.kill().await.unwrap();
    assert!(processes.iter().all(|pid| proc::snapshot(*pid).is_none()));
}

#[tokio::test]
async fn drop_kills_all_processes() {
    let dir = tempfile::tempdir().unwrap();
    let state_dir = StateDir::open(Some(dir.path()), &KeeperSpec::default()).unwrap();
    let process = start("a", &format!("{PROCESS_TREE} wait"), &state_dir).await;
    let processes = printed_pids(&process, 3).await;
    assert!(dir.path().join("engines/a.json").exists());
    drop(process);
    until("the end of the processes", || processes.iter().all(|pid| !alive(*pid)).then_some(()));
    until("the end of the record", || (!dir.path().join("engines/a.json").exists()).then_some(()));
}

/// With a timeout of zero the tracker gives up immediately, and returns what it found.
#[tokio::test]
async fn surviving_processes_are_named_and_retried() {
    let state_dir = without_dir();
    let process = start("a", "echo $$; exec sleep 1000", &state_dir).await;
    let pid = printed_pids(&process, 1).await[0];
    let mut tracker = ProcessTracker::new(
        process.tree.tree.as_ref().unwrap().tracker.record().clone(),
        Provenance::Child,
    );
    let survivors = tracker.end(Duration::ZERO, Duration::ZERO).unwrap_err();
    let Process { leader, tree, .. } = process;
    let survivors = SurvivingProcesses { survivors, tree };
    assert_eq!(survivors.pids(), [pid]);
    assert!(survivors.to_string().contains(&format!("{pid} (s")), "{survivors}");
    survivors.retry().await.unwrap();
    assert!(!alive(pid));
    drop(leader);
}

#[tokio::test]
async fn failed_start_returns_the_error_and_leaves_no_record() {
    let dir = tempfile::tempdir().unwrap();
    let state_dir = StateDir::open(Some(dir.path()), &KeeperSpec::default()).unwrap();
    let fails = async |command: &[&str]| {
        let launch = Launch {
            command: command.iter().map(|word| (*word).into()).collect(),
            ..Launch::default()
        };
        Process::start("a", &launch, Note::default(), &state_dir, |_| ()).await.unwrap_err().kind()
    };
    assert_eq!(fails(&["no-such-program"]).await, io::ErrorKind::NotFound);
    assert_eq!(fails(&[]).await, io::ErrorKind::InvalidInput);
    assert_eq!(dir.path().join("engines").read_dir().unwrap().count(), 0);
}

#[tokio::test]
async fn record_exists_while_the_engine_runs() {
    let dir = tempfile::tempdir().unwrap();
    let state_dir = StateDir::open(Some(dir.path()), &KeeperSpec::default()).unwrap();
    let launch = shell("exec sleep 1000");
    let note = Note { port: Some(8001), fingerprint: "f".into(), ..Note::default() };
    let process =
        Process::start("../a b", &launch, note.clone(), &state_dir, |_| ()).await.unwrap();
    let file = dir.path().join("engines/%2E%2E%2Fa%20b.json");
    let record = Record::parse(&std::fs::read(&file).unwrap()).unwrap();
    assert_eq!(record.leader, proc::snapshot(process.id()).map(|process| process.id));
    assert_eq!((record.note, record.program.as_str(), record.pipes.len()), (note, "sh", 2));
    assert_eq!(record.pipes, proc::output_pipes(process.id()));
    assert_eq!(state_dir.sweep(), [], "engines of this host are not swept");
    process.kill().await.unwrap();
    assert!(!file.exists());
}

/// Files that other users may have placed in the directory are not used, and a folder that they can
/// write to is rejected.
#[test]
fn state_directory_is_private() {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
    let dir = tempfile::tempdir().unwrap();
    let (state, victim) = (dir.path().join("state"), dir.path().join("victim"));
    drop(StateDir::open(Some(&state), &KeeperSpec::default()).unwrap());
    for (name, mode) in [("", 0o700), ("engines", 0o700), ("lock", 0o600), ("id", 0o600)] {
        let metadata = std::fs::metadata(state.join(name)).unwrap();
        assert_eq!(metadata.mode() & 0o777, mode, "{name}");
    }
    std::fs::write(&victim, "precious").unwrap();
    std::fs::remove_file(state.join("lock")).unwrap();
    symlink(&victim, state.join("lock")).unwrap();
    let error = StateDir::open(Some(&state), &KeeperSpec::default()).unwrap_err();
    assert!(matches!(error, StateDirError::Io { .. }), "{error}");
    assert_eq!(std::fs::read_to_string(&victim).unwrap(), "precious");
    std::fs::remove_file(state.join("lock")).unwrap();
    for folder in [&state, &state.join("engines")] {
        std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o777)).unwrap();
        let error = StateDir::open(Some(&state), &KeeperSpec::default()).unwrap_err();
        assert!(matches!(error, StateDirError::Unsafe(_)), "{error}");
        std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
}

/// A forged record names a process that is not an engine, and a control group of others.
#[test]
fn forged_record_ends_no_process() {
    let dir = tempfile::tempdir().unwrap();
    let state_dir = StateDir::open(Some(dir.path()), &KeeperSpec::default()).unwrap();
    let victim = UnrelatedProcess::start(&["setsid", "sleep", "1000"]);
    let id = until("the program of the process", || {
        let process = proc::snapshot(victim.id())?;
        (process.name == "sleep").then_some(process.id)
    });
    let record = Record {
        leader: Some(id),
        cgroup: Some("/sys/fs/cgroup/system.slice".into()),
        ..Record::new(state_dir.new_marker("a"), state_dir.boot())
    };
    let file = dir.path().join("engines/a.json");
    record.write(&file).unwrap();
    let outcomes: Vec<_> = state_dir.sweep().into_iter().map(|engine| engine.outcome).collect();
    assert_eq!(outcomes, [SweepOutcome::AlreadyEnded]);
    assert!(!file.exists() && alive(victim.id()));
}

#[test]
fn state_directory_is_locked_by_one_host() {
    let dir = tempfile::tempdir().unwrap();
    let first = StateDir::open(Some(dir.path()), &KeeperSpec::default()).unwrap();
    let error = StateDir::open(Some(dir.path()), &KeeperSpec::default()).unwrap_err();
    assert!(
        matches!(&error, StateDirError::InUse { dir: used, pid }
            if used == dir.path() && *pid == Some(std::process::id())),
        "{error:?}"
    );
    let id = first.id().to_owned();
    drop(first);
    assert_eq!(StateDir::open(Some(dir.path()), &KeeperSpec::default()).unwrap().id(), id);
    let file = dir.path().join("lock");
    assert!(matches!(
        StateDir::open(Some(&file), &KeeperSpec::default()),
        Err(StateDirError::Io { .. })
    ));
    let copy = tempfile::tempdir().unwrap();
    std::fs::copy(dir.path().join("id"), copy.path().join("id")).unwrap();
    assert_ne!(
        StateDir::open(Some(copy.path()), &KeeperSpec::default()).unwrap().id(),
        id,
        "a copy has another id"
    );
}

#[tokio::test]
async fn sweep_ends_leftovers_and_nothing_else() {
    let unrelated = UnrelatedProcess::start(&["sleep", "1000"]);
    let other = without_dir();
    let others = start("a", "echo $$; exec sleep 1000", &other).await;
    printed_pids(&others, 1).await;

    let dir = tempfile::tempdir().unwrap();
    let state_dir = StateDir::open(Some(dir.path()), &KeeperSpec::default()).unwrap();
    let plain = start("a", "sleep 1000 & echo $!; sleep 1000", &state_dir).await;
    let headless =
        start("b", "env -i sh -c 'echo $$; exec sleep 1000' & echo $!; wait", &state_dir).await;
    let unwritten = start("c", "echo $$; exec sleep 1000", &state_dir).await;
    let mut pids = printed_pids(&plain, 1).await;
    pids.extend(printed_pids(&headless, 2).await);
    pids.extend(printed_pids(&unwritten, 1).await);
    let head = headless.id();
    kill_process(proc::to_raw(head).unwrap(), Signal::KILL).unwrap();
    std::fs::remove_file(dir.path().join("engines/c.json")).unwrap();
    [plain, headless, unwritten].into_iter().for_each(leak);
    state_dir.crash();
    until("the end of the first process", || {
        proc::reap(head);
        proc::snapshot(head).is_none().then_some(())
    });

    let state_dir = StateDir::open(Some(dir.path()), &KeeperSpec::default()).unwrap();
    let mut swept = state_dir.sweep();
    swept.sort_by(|one, other| one.lane.cmp(&other.lane));
    assert_eq!(swept.iter().map(|engine| engine.lane.as_str()).collect::<String>(), "abc");
    assert!(swept.iter().all(|engine| engine.outcome == SweepOutcome::Ended), "{swept:?}");
    assert!(swept[0].summary.starts_with("`sh` (process "), "{swept:?}");
    assert!(swept[0].summary.contains("was ended after running for "), "{swept:?}");
    assert!(pids.iter().all(|pid| !alive(*pid)));
    assert!(alive(unrelated.id()) && alive(others.id()));
    assert_eq!(dir.path().join("engines").read_dir().unwrap().count(), 0);
    assert_eq!(state_dir.sweep(), []);
    others.kill().await.unwrap();
}

/// Process ids are reused, after some time or after a restart of the machine.
#[test]
fn sweep_spares_a_process_with_a_reused_id() {
    let dir = tempfile::tempdir().unwrap();
    let state_dir = StateDir::open(Some(dir.path()), &KeeperSpec::default()).unwrap();
    let unrelated = UnrelatedProcess::start(&["setsid", "sleep", "1000"]);
    let id = proc::snapshot(unrelated.id()).unwrap().id;
    let later = Id { start: id.start + 1, ..id };
    for (leader, boot) in [(later, state_dir.boot()), (id, "another boot"), (id, "")] {
        let record = Record {
            leader: Some(leader),
            program: "vllm".into(),
            pipes: vec![1, 2],
            ..Record::new(state_dir.new_marker("a"), boot)
        };
        let file = dir.path().join("engines/a.json");
        record.write(&file).unwrap();
        let swept = state_dir.sweep();
        assert_eq!((swept.len(), swept[0].outcome), (1, SweepOutcome::AlreadyEnded), "{swept:?}");
        assert!(!file.exists());
    }
    std::fs::write(dir.path().join("engines/b.json"), "{").unwrap();
    assert_eq!(state_dir.sweep(), []);
    assert!(alive(unrelated.id()));
}

/// Returns the arguments with which this binary runs the test of this name in this module.
fn this_binary(test: &str) -> [String; 3] {
    let module = module_path!().split_once("::").map_or("", |(_, module)| module);
    [format!("{module}::{test}"), "--exact".into(), "--nocapture".into()]
}

/// Returns a keeper whose program is this binary.
pub(super) fn keeper(dir: &Path, orphan_grace: Duration) -> KeeperSpec {
    KeeperSpec { program: Some(keeper_program(dir)), orphan_grace, ..KeeperSpec::default() }
}

/// Creates a program that acts as the keeper when called with that argument.
fn keeper_program(dir: &Path) -> PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let path = dir.join("keeper");
    let binary = std::env::current_exe().unwrap();
    let arguments = this_binary("act_as_keeper").join(" ");
    let script = format!("#!/bin/sh\n{ROLE}=$1 exec '{}' {arguments}\n", binary.display());
    std::fs::write(&path, script).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// Acts as the keeper of other tests; does nothing otherwise.
#[test]
fn act_as_keeper() {
    if std::env::var(ROLE).as_deref() == Ok("keeper") {
        assert_eq!(keeper_main(io::stdin(), None), std::process::ExitCode::SUCCESS);
    }
}

/// Acts as the host of another test; does nothing otherwise.
#[tokio::test]
async fn act_as_host() {
    let Ok(dir) = std::env::var(ROLE) else { return };
    let state_dir =
        StateDir::open(Some(Path::new(&dir)), &keeper(Path::new(&dir), Duration::ZERO)).unwrap();
    println!("\nengine {}", state_dir.keeper_id().unwrap());
    let print = |line: &str| println!("\nengine {line}");
    let launch = shell(&format!("{PROCESS_TREE} wait"));
    let _process = Process::start("a", &launch, Note::default(), &state_dir, print).await.unwrap();
    std::future::pending::<()>().await;
}

/// Without a grace time, the keeper ends all engines when the host is killed. It ignores SIGTERM,
/// SIGINT and SIGHUP.
#[test]
fn keeper_ends_engines_of_a_killed_host() {
    let dir = tempfile::tempdir().unwrap();
    let mut host = StdCommand::new(std::env::current_exe().unwrap())
        .args(this_binary("act_as_host"))
        .env(ROLE, dir.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(host.stdout.take().unwrap()).lines().map(Result::unwrap);
    let numbers = lines.filter_map(|line| line.strip_prefix("engine ")?.parse().ok());
    let pids: Vec<u32> = numbers.take(4).collect();
    let keeper = pids[0];
    until("the keeper's signal handlers", || {
        let status = std::fs::read_to_string(format!("/proc/{keeper}/status")).ok()?;
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"))?;
        // Signals 1, 2 and 15 are bits 0, 1 and 14.
        (u64::from_str_radix(caught.trim(), 16).ok()? & 0x4003 == 0x4003).then_some(())
    });
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        kill_process(proc::to_raw(keeper).unwrap(), signal).unwrap();
    }
    assert!(pids.iter().all(|pid| alive(*pid)), "{pids:?}");
    host.kill().unwrap();
    host.wait().unwrap();
    until("the end of all processes", || pids.iter().all(|pid| !alive(*pid)).then_some(()));
    pids.iter().for_each(|pid| proc::reap(*pid));
    let state_dir = StateDir::open(Some(dir.path()), &KeeperSpec::default()).unwrap();
    assert_eq!(
        state_dir.sweep().iter().map(|engine| engine.outcome).collect::<Vec<_>>(),
        [SweepOutcome::AlreadyEnded]
    );
}
