use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command as StdCommand, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use rustix::process::{kill_process, test_kill_process_group};

use super::lines::LAST_LINES;
use super::marker::Marker;
use super::proc::Id;
use super::sweep::SweptOutcome;
use super::*;

/// Makes this binary the host, or the keeper, of a test.
const ROLE: &str = "POINTSMAN_TEST_ROLE";
/// An engine as vLLM is one: it outlives its first process and has written over its marker. One child is in the group, one in
/// a session of its own, and one there has its marker still but another output. Each says who it is.
const FAMILY: &str = "env -i sh -c 'echo $$; exec sleep 1000' & setsid env -i sh -c 'echo $$; exec sleep 1000' & \
                      setsid sh -c 'echo $$; exec sleep 1000 >/dev/null 2>&1' & ";

pub(super) fn shell(script: &str) -> Launch {
    Launch { words: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(), ..Launch::default() }
}

pub(super) fn bare() -> Home {
    Home::open(None, None).unwrap()
}

pub(super) fn start(lane: &str, script: &str, home: &Home) -> Process {
    Process::start(lane, &shell(script), home, |_| ()).unwrap()
}

fn alive(pid: u32) -> bool {
    proc::seen(pid).is_some_and(|seen| !seen.dead)
}

/// A process that is nobody's engine. Gone with the test, even when that fails.
struct Innocent(std::process::Child);

impl Innocent {
    fn start(words: &[&str]) -> Self {
        Self(StdCommand::new(words[0]).args(&words[1..]).spawn().unwrap())
    }

    fn id(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Innocent {
    fn drop(&mut self) {
        drop(self.0.kill().and_then(|()| self.0.wait()));
    }
}

/// Wait for something that has to come.
pub(super) fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let limit = Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < limit, "{what} did not come");
        proc::pause(Duration::from_millis(2));
    }
}

/// The processes that an engine names, one a line.
pub(super) async fn named(process: &Process, count: usize) -> Vec<u32> {
    while process.lines().tail(LAST_LINES).len() < count {
        tokio::task::yield_now().await;
    }
    process.lines().tail(count).iter().map(|line| line.parse().unwrap()).collect()
}

/// As after a SIGKILL of the host: nobody holds it any more, and nothing was done about it.
pub(super) fn forget(process: Process) {
    std::mem::forget(process);
}

#[tokio::test]
async fn words_environment_and_directory_reach_the_command_and_its_lines_are_kept() {
    let home = bare();
    let mut launch =
        shell("echo $GREETING ${CARGO_MANIFEST_DIR-none} $(pwd) $POINTSMAN_ENGINE >&2; exit 3");
    launch.env =
        vec![("GREETING".into(), "hello".into()), ("POINTSMAN_ENGINE".into(), "not this".into())];
    launch.remove_env = vec!["CARGO_MANIFEST_DIR".into()];
    launch.directory = Some("/".into());
    let mut process = Process::start("a lane", &launch, &home, |_| ()).unwrap();
    assert_eq!(process.ended().await.unwrap().code(), Some(3));
    let lines = process.lines().clone();
    process.kill().await.unwrap();
    let last = lines.last().unwrap();
    let marker = Marker::parse(last.strip_prefix("hello none / ").unwrap()).unwrap();
    assert_eq!((marker.home.as_str(), marker.lane.as_str()), (home.id(), "a lane"));
}

#[tokio::test]
async fn long_lines_are_cut_and_progress_bars_are_lines() {
    let script = r"head -c 10000 /dev/zero | tr '\0' x; echo; printf '50%%\r100%%\r\033[1mdone\n'; for i in $(seq 30); do echo $i; done";
    let seen = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&seen);
    let home = bare();
    let on_line = move |line: &str| sink.lock().unwrap().push(line.to_owned());
    let mut process = Process::start("a", &shell(script), &home, on_line).unwrap();
    process.ended().await.unwrap();
    let lines = process.lines().clone();
    process.kill().await.unwrap();
    let tail = lines.tail(100);
    assert_eq!((tail.len(), tail[0].as_str(), tail[19].as_str()), (LAST_LINES, "11", "30"));
    assert_eq!(lines.tail(2), ["29", "30"]);
    let seen = seen.lock().unwrap();
    assert_eq!(
        seen[..3].iter().map(String::len).collect::<Vec<_>>(),
        [4096, 4096, 10000 - 2 * 4096]
    );
    assert_eq!(seen[3..7], ["50%", "100%", "done", "1"]);
}

#[tokio::test]
async fn a_progress_bar_is_seen_while_it_stands_still() {
    let home = bare();
    let process = start("a", r"printf 'loading 50%%\r'; sleep 1000", &home);
    while process.lines().last().is_none() {
        tokio::task::yield_now().await;
    }
    assert_eq!(process.lines().last().as_deref(), Some("loading 50%"));
    process.kill().await.unwrap();
}

/// A child that takes no notice of SIGTERM, and a grandchild that keeps the pipes open: nothing of them is left.
#[tokio::test]
async fn stopping_ends_what_ignores_it() {
    let home = bare();
    let process = start("a", "trap '' TERM; sleep 1000 & echo $!; wait; wait", &home);
    let (group, child) = (proc::raw(process.id()).unwrap(), named(&process, 1).await[0]);
    process.stop(Duration::from_millis(50)).await.unwrap();
    assert!(test_kill_process_group(group).is_err());
    assert_eq!(proc::seen(child), None);
}

#[tokio::test]
async fn stopping_waits_for_what_ends_by_itself() {
    let home = bare();
    let mut process =
        start("a", "trap 'echo bye; exit 0' TERM; echo $$; while :; do sleep 0.01; done", &home);
    named(&process, 1).await;
    let lines = process.lines().clone();
    assert!(tokio::time::timeout(Duration::from_millis(1), process.ended()).await.is_err());
    process.stop(Duration::from_secs(30)).await.unwrap();
    assert_eq!(lines.last().as_deref(), Some("bye"));
}

/// The children of an engine whose first process was killed: reaped, too, because they are ours by then.
#[tokio::test]
async fn nothing_outlives_a_first_process_that_was_killed() {
    let home = bare();
    let mut process = start("a", &format!("{FAMILY} wait"), &home);
    let family = named(&process, 3).await;
    kill_process(proc::raw(process.id()).unwrap(), Signal::KILL).unwrap();
    assert_eq!(process.ended().await.unwrap().signal(), Some(9));
    assert!(family.iter().all(|pid| alive(*pid)));
    process.kill().await.unwrap();
    assert!(family.iter().all(|pid| proc::seen(*pid).is_none()));
}

#[tokio::test]
async fn dropping_kills() {
    let dir = tempfile::tempdir().unwrap();
    let home = Home::open(Some(dir.path()), None).unwrap();
    let process = start("a", &format!("{FAMILY} wait"), &home);
    let family = named(&process, 3).await;
    assert!(dir.path().join("engines/a.json").exists());
    drop(process);
    until("the end", || family.iter().all(|pid| !alive(*pid)).then_some(()));
    until("the end of the record", || (!dir.path().join("engines/a.json").exists()).then_some(()));
}

/// Without time the hunt gives up at once, and says what it saw.
#[tokio::test]
async fn what_is_still_there_is_named_and_can_be_tried_again() {
    let home = bare();
    let process = start("a", "echo $$; exec sleep 1000", &home);
    let pid = named(&process, 1).await[0];
    let mut hunt =
        Hunt::new(process.quarry.prey.as_ref().unwrap().hunt.record().clone(), Knows::Child);
    let left = hunt.end(Duration::ZERO, Duration::ZERO).unwrap_err();
    let Process { child, quarry, .. } = process;
    let still = StillThere { left, quarry };
    assert_eq!(still.pids(), [pid]);
    assert!(still.to_string().contains(&format!("{pid} (s")), "{still}");
    still.again().await.unwrap();
    assert!(!alive(pid));
    drop(child);
}

#[tokio::test]
async fn what_cannot_be_started_says_why_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let home = Home::open(Some(dir.path()), None).unwrap();
    let fails = |words: &[&str]| {
        let launch = Launch {
            words: words.iter().map(|word| (*word).into()).collect(),
            ..Launch::default()
        };
        Process::start("a", &launch, &home, |_| ()).unwrap_err().kind()
    };
    assert_eq!(fails(&["no-such-program"]), io::ErrorKind::NotFound);
    assert_eq!(fails(&[]), io::ErrorKind::InvalidInput);
    assert_eq!(dir.path().join("engines").read_dir().unwrap().count(), 0);
}

#[tokio::test]
async fn a_record_is_there_while_the_engine_is() {
    let dir = tempfile::tempdir().unwrap();
    let home = Home::open(Some(dir.path()), None).unwrap();
    let mut launch = shell("exec sleep 1000");
    launch.words.extend(["--port".into(), "8001".into()]);
    let process = Process::start("../a b", &launch, &home, |_| ()).unwrap();
    let file = dir.path().join("engines/%2E%2E%2Fa%20b.json");
    let record = Record::parse(&std::fs::read(&file).unwrap()).unwrap();
    assert_eq!(record.leader, proc::seen(process.id()).map(|seen| seen.id));
    assert_eq!((record.port, record.program.as_str(), record.pipes.len()), (Some(8001), "sh", 2));
    assert_eq!(record.pipes, proc::outputs(process.id()));
    assert_eq!(home.sweep(), [], "engines of this host are none of an earlier one");
    process.kill().await.unwrap();
    assert!(!file.exists());
}

#[test]
fn a_directory_has_one_host() {
    let dir = tempfile::tempdir().unwrap();
    let first = Home::open(Some(dir.path()), None).unwrap();
    let error = Home::open(Some(dir.path()), None).unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with(&format!("in use by the host with process id {}", std::process::id()))
    );
    let id = first.id().to_owned();
    drop(first);
    assert_eq!(Home::open(Some(dir.path()), None).unwrap().id(), id);
    let file = dir.path().join("lock");
    assert!(matches!(Home::open(Some(&file), None), Err(HomeError::Io { .. })));
    let copy = tempfile::tempdir().unwrap();
    std::fs::copy(dir.path().join("id"), copy.path().join("id")).unwrap();
    assert_ne!(
        Home::open(Some(copy.path()), None).unwrap().id(),
        id,
        "a copy is another directory"
    );
}

#[tokio::test]
async fn leftovers_are_swept_and_nothing_else() {
    let unrelated = Innocent::start(&["sleep", "1000"]);
    let other = bare();
    let others = start("a", "echo $$; exec sleep 1000", &other);
    named(&others, 1).await;

    let dir = tempfile::tempdir().unwrap();
    let home = Home::open(Some(dir.path()), None).unwrap();
    let plain = start("a", "sleep 1000 & echo $!; sleep 1000", &home);
    let headless = start("b", "env -i sh -c 'echo $$; exec sleep 1000' & echo $!; wait", &home);
    let unwritten = start("c", "echo $$; exec sleep 1000", &home);
    let mut pids = named(&plain, 1).await;
    pids.extend(named(&headless, 2).await);
    pids.extend(named(&unwritten, 1).await);
    let head = headless.id();
    kill_process(proc::raw(head).unwrap(), Signal::KILL).unwrap();
    std::fs::remove_file(dir.path().join("engines/c.json")).unwrap();
    [plain, headless, unwritten].into_iter().for_each(forget);
    home.crash();
    until("the end of the first process", || {
        proc::reap(head);
        proc::seen(head).is_none().then_some(())
    });

    let home = Home::open(Some(dir.path()), None).unwrap();
    let mut swept = home.sweep();
    swept.sort_by(|one, other| one.lane.cmp(&other.lane));
    assert_eq!(swept.iter().map(|it| it.lane.as_str()).collect::<String>(), "abc");
    assert!(swept.iter().all(|it| it.outcome == SweptOutcome::Ended), "{swept:?}");
    assert!(
        swept[0].sentence.starts_with("lane a: `sh` of an earlier host (process "),
        "{swept:?}"
    );
    assert!(swept[0].sentence.contains("was ended after running for "), "{swept:?}");
    assert!(pids.iter().all(|pid| !alive(*pid)));
    assert!(alive(unrelated.id()) && alive(others.id()));
    assert_eq!(dir.path().join("engines").read_dir().unwrap().count(), 0);
    assert_eq!(home.sweep(), []);
    others.kill().await.unwrap();
}

/// Numbers are used again, after a while or after a restart of the machine.
#[test]
fn a_number_that_another_process_has_now_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let home = Home::open(Some(dir.path()), None).unwrap();
    let innocent = Innocent::start(&["setsid", "sleep", "1000"]);
    let id = proc::seen(innocent.id()).unwrap().id;
    let later = Id { start: id.start + 1, ..id };
    for (leader, boot) in [(later, home.boot()), (id, "another run of the machine"), (id, "")] {
        let record = Record {
            leader: Some(leader),
            program: "vllm".into(),
            pipes: vec![1, 2],
            ..Record::new(home.marker("a"), boot)
        };
        let file = dir.path().join("engines/a.json");
        record.write(&file).unwrap();
        let swept = home.sweep();
        assert_eq!((swept.len(), swept[0].outcome), (1, SweptOutcome::WasGone), "{swept:?}");
        assert!(swept[0].sentence.ends_with("was gone already") && !file.exists());
    }
    std::fs::write(dir.path().join("engines/b.json"), "{").unwrap();
    assert_eq!(home.sweep(), []);
    assert!(alive(innocent.id()));
}

/// The test in this module of that name, as arguments for this binary.
fn this_binary(test: &str) -> [String; 3] {
    let module = module_path!().split_once("::").map_or("", |(_, module)| module);
    [format!("{module}::{test}"), "--exact".into(), "--nocapture".into()]
}

/// A program that is the keeper when it is called as that.
pub(super) fn keeper_program(dir: &Path) -> PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let path = dir.join("keeper");
    let binary = std::env::current_exe().unwrap();
    let arguments = this_binary("act_as_keeper").join(" ");
    let script = format!("#!/bin/sh\n{ROLE}=$1 exec '{}' {arguments}\n", binary.display());
    std::fs::write(&path, script).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// The keeper's process of other tests; on its own it is nothing.
#[test]
fn act_as_keeper() {
    if std::env::var(ROLE).as_deref() == Ok("keeper") {
        assert_eq!(keeper_main(io::stdin()), std::process::ExitCode::SUCCESS);
    }
}

/// The host's process of another test; on its own it is nothing.
#[tokio::test]
async fn act_as_host() {
    let Ok(dir) = std::env::var(ROLE) else { return };
    let home = Home::open(Some(Path::new(&dir)), Some(&keeper_program(Path::new(&dir)))).unwrap();
    println!("\nengine {}", home.keeper().unwrap());
    let say = |line: &str| println!("\nengine {line}");
    let _process = Process::start("a", &shell(&format!("{FAMILY} wait")), &home, say).unwrap();
    std::future::pending::<()>().await;
}

/// The promise: the host gets SIGKILL, and nothing is left, while the keeper takes no notice of gentler signals.
#[test]
fn nothing_outlives_a_host_that_was_killed() {
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
    until("a keeper that takes no notice of signals", || {
        let status = std::fs::read_to_string(format!("/proc/{keeper}/status")).ok()?;
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"))?;
        // Signals 1, 2 and 15 are bits 0, 1 and 14.
        (u64::from_str_radix(caught.trim(), 16).ok()? & 0x4003 == 0x4003).then_some(())
    });
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        kill_process(proc::raw(keeper).unwrap(), signal).unwrap();
    }
    assert!(pids.iter().all(|pid| alive(*pid)), "{pids:?}");
    host.kill().unwrap();
    host.wait().unwrap();
    until("the end of everything", || pids.iter().all(|pid| !alive(*pid)).then_some(()));
    pids.iter().for_each(|pid| proc::reap(*pid));
    let home = Home::open(Some(dir.path()), None).unwrap();
    assert_eq!(
        home.sweep().iter().map(|it| it.outcome).collect::<Vec<_>>(),
        [SweptOutcome::WasGone]
    );
}

#[tokio::test]
async fn a_keeper_that_was_killed_is_replaced_and_told_of_all_engines() {
    let dir = tempfile::tempdir().unwrap();
    let home = Home::open(Some(dir.path()), Some(&keeper_program(dir.path()))).unwrap();
    let [one, two] = ["a", "b"].map(|lane| start(lane, "sleep 1000 & echo $!; wait", &home));
    let (old, mut pids) = (home.keeper().unwrap(), named(&one, 1).await);
    two.kill().await.unwrap();
    kill_process(proc::raw(old).unwrap(), Signal::KILL).unwrap();
    until("the keeper's end", || (!alive(old)).then_some(()));
    let three = start("c", "sleep 1000 & echo $!; wait", &home);
    pids.extend(named(&three, 1).await);
    assert_ne!(home.keeper(), Some(old));
    assert!(pids.iter().all(|pid| alive(*pid)));
    // Waits for it: all that is needed is that the host's end of the pipe goes.
    home.drop_keeper();
    assert!(pids.iter().chain([&one.id(), &three.id()]).all(|pid| !alive(*pid)));
}
