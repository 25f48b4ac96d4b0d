//! Files that an engine leaves behind are removed with it, whichever process ends the engine.

use std::fs;
use std::path::PathBuf;
use std::process::{Child as StdChild, Command as StdCommand};
use std::time::Instant;

use rustix::process::kill_process;

use super::tests::{keeper, leak, printed_pids, shell, start, until, without_dir};
use super::*;

/// A unique path in `/dev/shm`, removed on drop in case the test fails.
struct ShmPath(PathBuf);

impl ShmPath {
    fn new(label: &str) -> Self {
        Self(Path::new("/dev/shm").join(format!("pointsman-test-{label}-{}", proc::nonce())))
    }

    fn exists(&self) -> bool {
        self.0.symlink_metadata().is_ok()
    }
}

impl Drop for ShmPath {
    fn drop(&mut self) {
        drop(fs::remove_file(&self.0));
    }
}

/// Returns a script that creates shared memory, and files in the scratch directory. A child in a
/// session of its own has the shared memory open too, and prints its process id and the scratch
/// directory.
fn littering_script(name: &ShmPath) -> String {
    let name = name.0.display();
    format!(
        "exec 9<>{name}; echo x >&9; mkdir -p $VLLM_RPC_BASE_PATH/a/b; \
         touch $VLLM_RPC_BASE_PATH/a/b/c; ln -s $OUTSIDE $VLLM_RPC_BASE_PATH/a/link; \
         setsid sh -c 'echo $$; echo $VLLM_RPC_BASE_PATH; exec sleep 1000' & wait"
    )
}

struct LitteringEngine {
    process: Process,
    child: u32,
    folder: PathBuf,
    outside: tempfile::TempDir,
}

impl LitteringEngine {
    async fn start(state_dir: &StateDir, name: &ShmPath) -> Self {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("file"), "").unwrap();
        let mut launch = shell(&littering_script(name));
        launch.env = vec![("OUTSIDE".into(), outside.path().to_str().unwrap().into())];
        let process =
            Process::start("a lane", &launch, Note::default(), state_dir, |_| ()).await.unwrap();
        while process.log_tail().tail(2).len() < 2 {
            tokio::task::yield_now().await;
        }
        let lines = process.log_tail().tail(2);
        let (child, folder) = (lines[0].parse().unwrap(), PathBuf::from(&lines[1]));
        assert!(
            name.exists() && folder.join("a/b/c").exists() && folder.join("a/link").is_symlink()
        );
        Self { process, child, folder, outside }
    }
}

/// Creates a state directory with a path that is short enough for sockets below it.
fn short_state_dir() -> tempfile::TempDir {
    tempfile::tempdir_in("/tmp").unwrap()
}

fn assert_clean(name: &ShmPath, folder: &Path, outside: &tempfile::TempDir) {
    assert!(!name.exists() && !folder.exists());
    assert!(outside.path().join("file").exists(), "a link was followed");
}

#[tokio::test]
async fn stop_and_kill_clean_up() {
    let dir = short_state_dir();
    let state_dir = StateDir::open(Some(dir.path()), &KeeperSpec::default()).unwrap();
    for grace in [Duration::ZERO, Duration::from_secs(30)] {
        let name = ShmPath::new("stop");
        let LitteringEngine { process, folder, outside, .. } =
            LitteringEngine::start(&state_dir, &name).await;
        let parent = dir.path().canonicalize().unwrap().join("tmp");
        assert_eq!(folder.parent(), Some(parent.as_path()));
        assert!(folder.file_name().unwrap().to_str().unwrap().starts_with("a_lane-"), "{folder:?}");
        process.stop(grace).await.unwrap();
        assert_clean(&name, &folder, &outside);
    }
}

#[tokio::test]
async fn drop_cleans_up_without_a_state_directory() {
    let (state_dir, name) = (without_dir(), ShmPath::new("bare"));
    let LitteringEngine { process, folder, outside, .. } =
        LitteringEngine::start(&state_dir, &name).await;
    assert!(folder.to_str().unwrap().starts_with("/tmp/pointsman-"), "{folder:?}");
    // The leader ends first, so that only its child has the shared memory open.
    kill_process(proc::to_raw(process.id()).unwrap(), Signal::KILL).unwrap();
    drop(process);
    until("the end of the folder", || (!folder.exists()).then_some(()));
    assert_clean(&name, &folder, &outside);
}

#[tokio::test]
async fn keeper_cleans_up() {
    let dir = short_state_dir();
    let state_dir = StateDir::open(Some(dir.path()), &keeper(dir.path(), Duration::ZERO)).unwrap();
    let name = ShmPath::new("keeper");
    let LitteringEngine { process, folder, outside, .. } =
        LitteringEngine::start(&state_dir, &name).await;
    leak(process);
    let id = state_dir.keeper_id().unwrap();
    state_dir.cut_keeper();
    until("the end of the keeper", || {
        proc::snapshot(id).is_none_or(|keeper| keeper.dead).then_some(())
    });
    assert_clean(&name, &folder, &outside);
}

/// The next host finds the processes, or only their record.
#[tokio::test]
async fn sweep_cleans_up() {
    let dir = short_state_dir();
    for ended in [false, true] {
        let name = ShmPath::new("sweep");
        let state_dir = StateDir::open(Some(dir.path()), &KeeperSpec::default()).unwrap();
        let LitteringEngine { mut process, child, folder, outside } =
            LitteringEngine::start(&state_dir, &name).await;
        let first = process.id();
        if ended {
            // The host was killed while it stopped the engine.
            let tree = process.tree.tree.as_mut().unwrap();
            let found = tree.tracker.scan();
            tree.record_resources(&found);
            tree.tracker.signal_all(&found, Signal::KILL);
            until("the end of the processes", || {
                proc::reap(child);
                (proc::snapshot(child).is_none()
                    && proc::snapshot(first).is_none_or(|process| process.dead))
                .then_some(())
            });
            let record = fs::read(dir.path().join("engines/a%20lane.json")).unwrap();
            assert_eq!(Record::parse(&record).unwrap().shared.len(), 1);
            assert!(name.exists() && folder.exists());
        }
        leak(process);
        state_dir.crash();
        drop(state_dir);
        let swept = StateDir::open(Some(dir.path()), &KeeperSpec::default()).unwrap().sweep();
        let outcome =
            if ended { sweep::SweepOutcome::AlreadyEnded } else { sweep::SweepOutcome::Ended };
        assert_eq!(swept.iter().map(|engine| engine.outcome).collect::<Vec<_>>(), [outcome]);
        assert_clean(&name, &folder, &outside);
    }
}

/// Shared memory as created by Python, vLLM's language: a mapping, and a semaphore, which is kept
/// under another name than it is created with.
#[tokio::test]
async fn shared_memory_of_python_is_removed() {
    let (state_dir, name) = (without_dir(), ShmPath::new("python"));
    let file = name.0.file_name().unwrap().to_str().unwrap();
    // Prints the path of the semaphore once both exist.
    let script = format!(
        "import os, time\nfrom multiprocessing import get_context\n\
         from multiprocessing.shared_memory import SharedMemory\n\
         memory = SharedMemory('{file}', create=True, size=1 << 20)\n\
         lock = get_context('spawn').Lock()\n\
         print('/dev/shm/sem.' + lock._semlock.name[1:], flush=True)\n\
         time.sleep(1000)"
    );
    let launch = Launch {
        command: ["python3", "-c", &script].map(str::to_owned).to_vec(),
        ..Launch::default()
    };
    let process = Process::start("a", &launch, Note::default(), &state_dir, |_| ()).await.unwrap();
    let lines = process.log_tail().clone();
    while lines.last().is_none() {
        tokio::task::yield_now().await;
    }
    let semaphore = ShmPath(lines.last().unwrap().into());
    assert!(semaphore.exists() && name.exists(), "{:?}", lines.tail(10));
    process.kill().await.unwrap();
    assert!(!semaphore.exists() && !name.exists());
}

/// A process that does not belong to the engine. Killed on drop, also if the test fails.
struct UnrelatedProcess(StdChild);

impl Drop for UnrelatedProcess {
    fn drop(&mut self) {
        drop(self.0.kill().and_then(|()| self.0.wait()));
    }
}

#[tokio::test]
async fn shared_memory_of_others_is_kept() {
    let state_dir = without_dir();
    let [used, read, old, link] = ["used", "read", "old", "link"].map(ShmPath::new);
    // Older than the engine by more than the tolerance for coarse clocks.
    fs::write(&old.0, "").unwrap();
    let created = Instant::now();
    until("the age", || (created.elapsed() > Duration::from_millis(1100)).then_some(()));
    let script = format!(
        "exec 6>>{old} 7>{used} 9>{used}.link; ln -s {used} {link}; : >{read}; exec 8<{read}; \
         echo $$; exec sleep 1000",
        old = old.0.display(),
        used = used.0.display(),
        read = read.0.display(),
        link = link.0.display()
    );
    let removed = ShmPath(PathBuf::from(format!("{}.link", used.0.display())));
    let process = start("a", &script, &state_dir).await;
    printed_pids(&process, 1).await;
    let open = fs::File::open(&used.0).unwrap();
    let _other =
        UnrelatedProcess(StdCommand::new("sleep").arg("1000").stdin(open).spawn().unwrap());
    process.kill().await.unwrap();
    assert!(used.exists() && read.exists() && old.exists() && link.exists());
    assert!(!removed.exists());
}

#[tokio::test]
async fn later_file_with_the_same_name_is_kept() {
    let (state_dir, name) = (without_dir(), ShmPath::new("again"));
    let mut process =
        start("a", &format!("exec 9>{}; echo $$; exec sleep 1000", name.0.display()), &state_dir)
            .await;
    printed_pids(&process, 1).await;
    let tree = process.tree.tree.as_mut().unwrap();
    let found = tree.tracker.scan();
    assert!(tree.tracker.record_resources(&found) && !tree.tracker.record_resources(&found));
    fs::remove_file(&name.0).unwrap();
    fs::write(&name.0, "").unwrap();
    process.kill().await.unwrap();
    assert!(name.exists());
}

#[tokio::test]
async fn variables_of_the_launch_are_kept() {
    let dir = short_state_dir();
    let state_dir = StateDir::open(Some(dir.path()), &KeeperSpec::default()).unwrap();
    let folder = |process: &Process| {
        let folder = process.tree.tree.as_ref().unwrap().tracker.record().folder.clone();
        folder.map(|folder| folder.to_str().unwrap().to_owned())
    };
    let lines = async |set: &[&str]| {
        let mut launch = shell("echo $VLLM_RPC_BASE_PATH");
        launch.env = set.iter().map(|name| ((*name).into(), "/mine".into())).collect();
        let mut process =
            Process::start("a", &launch, Note::default(), &state_dir, |_| ()).await.unwrap();
        process.ended().await.unwrap();
        let (lines, folder) = (process.log_tail().clone(), folder(&process));
        process.kill().await.unwrap();
        (lines.tail(1), folder)
    };
    let (ours, folder) = lines(&[]).await;
    assert_eq!(ours, [folder.unwrap()]);
    assert_eq!(lines(&scratch::VARIABLES).await, (vec!["/mine".into()], None));
    assert_eq!(dir.path().join("tmp").read_dir().unwrap().count(), 0);
    let missing = Launch { command: vec!["no-such-program".into()], ..Launch::default() };
    Process::start("a", &missing, Note::default(), &state_dir, |_| ()).await.unwrap_err();
    assert_eq!(dir.path().join("tmp").read_dir().unwrap().count(), 0);
}
