//! What an engine leaves in the file system is gone with it, whoever ends it.

use std::fs;
use std::process::{Child as StdChild, Command as StdCommand};
use std::time::Instant;

use rustix::process::kill_process;

use super::tests::{bare, forget, keeper_program, named, shell, start, until};
use super::*;

/// A name in `/dev/shm` that no other test has, removed with the test should it fail.
struct Name(PathBuf);

impl Name {
    fn new(what: &str) -> Self {
        Self(Path::new("/dev/shm").join(format!("pointsman-test-{what}-{}", proc::nonce())))
    }

    fn exists(&self) -> bool {
        self.0.symlink_metadata().is_ok()
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        drop(fs::remove_file(&self.0));
    }
}

/// Makes a file of shared memory and leaves things among the temporary files. A child in a session of its own has the file
/// open too; it says who it is, and where the temporary files are.
fn messy(name: &Name) -> String {
    let name = name.0.display();
    format!(
        "exec 9<>{name}; echo x >&9; mkdir -p $VLLM_RPC_BASE_PATH/a/b; touch $VLLM_RPC_BASE_PATH/a/b/c; ln -s $OUTSIDE $VLLM_RPC_BASE_PATH/a/link; \
         setsid sh -c 'echo $$; echo $VLLM_RPC_BASE_PATH; exec sleep 1000' & wait"
    )
}

struct Mess {
    process: Process,
    child: u32,
    folder: PathBuf,
    outside: tempfile::TempDir,
}

impl Mess {
    async fn start(home: &Home, name: &Name) -> Self {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("file"), "").unwrap();
        let mut launch = shell(&messy(name));
        launch.env = vec![("OUTSIDE".into(), outside.path().to_str().unwrap().into())];
        let process = Process::start("a lane", &launch, home, |_| ()).unwrap();
        while process.lines().tail(2).len() < 2 {
            tokio::task::yield_now().await;
        }
        let lines = process.lines().tail(2);
        let (child, folder) = (lines[0].parse().unwrap(), PathBuf::from(&lines[1]));
        assert!(
            name.exists() && folder.join("a/b/c").exists() && folder.join("a/link").is_symlink()
        );
        Self { process, child, folder, outside }
    }
}

/// A state directory that sockets can be below of.
fn place() -> tempfile::TempDir {
    tempfile::tempdir_in("/tmp").unwrap()
}

fn assert_clean(name: &Name, folder: &Path, outside: &tempfile::TempDir) {
    assert!(!name.exists() && !folder.exists());
    assert!(outside.path().join("file").exists(), "a link was followed");
}

#[tokio::test]
async fn nothing_is_left_after_a_stop_or_a_kill() {
    let dir = place();
    let home = Home::open(Some(dir.path()), None).unwrap();
    for grace in [Duration::ZERO, Duration::from_secs(30)] {
        let name = Name::new("stop");
        let Mess { process, folder, outside, .. } = Mess::start(&home, &name).await;
        let parent = dir.path().canonicalize().unwrap().join("tmp");
        assert_eq!(folder.parent(), Some(parent.as_path()));
        assert!(folder.file_name().unwrap().to_str().unwrap().starts_with("a_lane-"), "{folder:?}");
        process.stop(grace).await.unwrap();
        assert_clean(&name, &folder, &outside);
    }
}

#[tokio::test]
async fn nothing_is_left_without_a_state_directory() {
    let (home, name) = (bare(), Name::new("bare"));
    let Mess { process, folder, outside, .. } = Mess::start(&home, &name).await;
    assert!(folder.to_str().unwrap().starts_with("/tmp/pointsman-"), "{folder:?}");
    // The first process has gone by itself; who holds the memory is the other.
    kill_process(proc::raw(process.id()).unwrap(), Signal::KILL).unwrap();
    drop(process);
    until("the end of the folder", || (!folder.exists()).then_some(()));
    assert_clean(&name, &folder, &outside);
}

#[tokio::test]
async fn the_keeper_cleans_up() {
    let dir = place();
    let home = Home::open(Some(dir.path()), Some(&keeper_program(dir.path()))).unwrap();
    let name = Name::new("keeper");
    let Mess { process, folder, outside, .. } = Mess::start(&home, &name).await;
    forget(process);
    home.drop_keeper();
    assert_clean(&name, &folder, &outside);
}

/// A later host finds the processes, or only their record.
#[tokio::test]
async fn a_sweep_cleans_up() {
    let dir = place();
    for gone in [false, true] {
        let name = Name::new("sweep");
        let home = Home::open(Some(dir.path()), None).unwrap();
        let Mess { mut process, child, folder, outside } = Mess::start(&home, &name).await;
        let first = process.id();
        if gone {
            // The host was killed in the middle of a stop.
            let prey = process.quarry.prey.as_mut().unwrap();
            let found = prey.hunt.look();
            prey.note(&found);
            prey.hunt.strike(&found, Signal::KILL);
            until("the end", || {
                proc::reap(child);
                (proc::seen(child).is_none() && proc::seen(first).is_none_or(|it| it.dead))
                    .then_some(())
            });
            let record = fs::read(dir.path().join("engines/a%20lane.json")).unwrap();
            assert_eq!(Record::parse(&record).unwrap().shared.len(), 1);
            assert!(name.exists() && folder.exists());
        }
        forget(process);
        home.crash();
        drop(home);
        let swept = Home::open(Some(dir.path()), None).unwrap().sweep();
        let outcome = if gone { sweep::SweptOutcome::WasGone } else { sweep::SweptOutcome::Ended };
        assert_eq!(swept.iter().map(|it| it.outcome).collect::<Vec<_>>(), [outcome]);
        assert_clean(&name, &folder, &outside);
    }
}

/// Shared memory as Python makes it, vLLM's language: mapped, and semaphores, which are kept under another name than the one
/// that they are made under.
#[tokio::test]
async fn shared_memory_of_python_is_removed() {
    let (home, name) = (bare(), Name::new("python"));
    let file = name.0.file_name().unwrap().to_str().unwrap();
    // Names the semaphore when both are there.
    let script = format!(
        "import os, time\nfrom multiprocessing import get_context\nfrom multiprocessing.shared_memory import SharedMemory\n\
         memory = SharedMemory('{file}', create=True, size=1 << 20)\nlock = get_context('spawn').Lock()\n\
         print('/dev/shm/sem.' + lock._semlock.name[1:], flush=True)\ntime.sleep(1000)"
    );
    let launch = Launch {
        words: ["python3", "-c", &script].map(str::to_owned).to_vec(),
        ..Launch::default()
    };
    let process = Process::start("a", &launch, &home, |_| ()).unwrap();
    let lines = process.lines().clone();
    while lines.last().is_none() {
        tokio::task::yield_now().await;
    }
    let semaphore = Name(lines.last().unwrap().into());
    assert!(semaphore.exists() && name.exists(), "{:?}", lines.tail(10));
    process.kill().await.unwrap();
    assert!(!semaphore.exists() && !name.exists());
}

/// A process that has nothing to do with the engine. Gone with the test, even when that fails.
struct Other(StdChild);

impl Drop for Other {
    fn drop(&mut self) {
        drop(self.0.kill().and_then(|()| self.0.wait()));
    }
}

#[tokio::test]
async fn what_others_use_or_the_engine_did_not_make_stays() {
    let home = bare();
    let [used, read, old, link] = ["used", "read", "old", "link"].map(Name::new);
    // Older than the engine by more than the clock of files is coarse.
    fs::write(&old.0, "").unwrap();
    let made = Instant::now();
    until("time", || (made.elapsed() > Duration::from_millis(1100)).then_some(()));
    let script = format!(
        "exec 6>>{old} 7>{used} 9>{used}.link; ln -s {used} {link}; : >{read}; exec 8<{read}; echo $$; exec sleep 1000",
        old = old.0.display(),
        used = used.0.display(),
        read = read.0.display(),
        link = link.0.display()
    );
    let removed = Name(PathBuf::from(format!("{}.link", used.0.display())));
    let process = start("a", &script, &home);
    named(&process, 1).await;
    let open = fs::File::open(&used.0).unwrap();
    let _other = Other(StdCommand::new("sleep").arg("1000").stdin(open).spawn().unwrap());
    process.kill().await.unwrap();
    assert!(used.exists() && read.exists() && old.exists() && link.exists());
    assert!(!removed.exists());
}

#[tokio::test]
async fn a_file_that_has_the_name_now_stays() {
    let (home, name) = (bare(), Name::new("again"));
    let mut process =
        start("a", &format!("exec 9>{}; echo $$; exec sleep 1000", name.0.display()), &home);
    named(&process, 1).await;
    let prey = process.quarry.prey.as_mut().unwrap();
    let found = prey.hunt.look();
    assert!(prey.hunt.note(&found) && !prey.hunt.note(&found));
    fs::remove_file(&name.0).unwrap();
    fs::write(&name.0, "").unwrap();
    process.kill().await.unwrap();
    assert!(name.exists());
}

#[tokio::test]
async fn variables_of_the_launch_are_left_alone() {
    let dir = place();
    let home = Home::open(Some(dir.path()), None).unwrap();
    let folder = |process: &Process| {
        let folder = process.quarry.prey.as_ref().unwrap().hunt.record().folder.clone();
        folder.map(|folder| folder.to_str().unwrap().to_owned())
    };
    let lines = async |set: &[&str]| {
        let mut launch = shell("echo $VLLM_RPC_BASE_PATH");
        launch.env = set.iter().map(|name| ((*name).into(), "/mine".into())).collect();
        let mut process = Process::start("a", &launch, &home, |_| ()).unwrap();
        process.ended().await.unwrap();
        let (lines, folder) = (process.lines().clone(), folder(&process));
        process.kill().await.unwrap();
        (lines.tail(1), folder)
    };
    let (ours, folder) = lines(&[]).await;
    assert_eq!(ours, [folder.unwrap()]);
    assert_eq!(lines(&scratch::VARIABLES).await, (vec!["/mine".into()], None));
    assert_eq!(dir.path().join("tmp").read_dir().unwrap().count(), 0);
    let none = Launch { words: vec!["no-such-program".into()], ..Launch::default() };
    Process::start("a", &none, &home, |_| ()).unwrap_err();
    assert_eq!(dir.path().join("tmp").read_dir().unwrap().count(), 0);
}
