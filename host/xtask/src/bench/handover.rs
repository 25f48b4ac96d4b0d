//! Hand-over of a host to the next process under load: the longest pause of new requests, and the
//! gaps of running streams, with and without upgrades.

use std::fs;
use std::io::Read as _;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use pointsman_xtask::command::target_dir;
use pointsman_xtask::wait::pause;

use super::reload::{Clients, ms, post_chat, print};
use super::server::{free_port, start};

/// Number of upgrades.
const UPGRADES: usize = 20;
/// Pause between upgrades.
const PAUSE: Duration = Duration::from_millis(500);

pub(super) fn handover(_root: &Path) -> Result<()> {
    let release = super::programs()?;
    let folder = target_dir()?.join("bench").join("handover");
    fs::create_dir_all(&folder)?;
    let file = folder.join("pointsman.toml");
    fs::write(&file, config(&release.join("fake-engine"), &folder))?;
    let program = release.join("pointsman");
    let port = free_port()?;
    let mut command = Command::new(&program);
    command.arg("serve").arg(&file).args(["--listen", &format!("127.0.0.1:{port}")]);
    let _host = start("pointsman", &mut command, port, false)?;

    let mut successor = None;
    let (quiet, quiet_gaps) = measure(port, || {
        pause(PAUSE * u32::try_from(UPGRADES)?);
        Ok(())
    })?;
    let mut pauses = Vec::with_capacity(UPGRADES);
    let (busy, busy_gaps) = measure(port, || {
        for _ in 0..UPGRADES {
            let [pid, pause_ms] = upgrade(&program, &file)?;
            successor = Some(pid);
            pauses.push(Duration::from_millis(pause_ms));
            pause(PAUSE);
        }
        Ok(())
    })?;
    if let Some(pid) = successor {
        Command::new("kill").arg(pid.to_string()).status().context("failed to run kill")?;
    }
    println!("{UPGRADES} upgrades");
    print("nothing was dispatched for", pauses);
    print("requests without upgrades", quiet.clone());
    print("requests during upgrades", busy.clone());
    print("gaps of streams without", quiet_gaps);
    print("gaps of streams during", busy_gaps);
    let longest = |times: &[Duration]| times.iter().max().copied().unwrap_or_default();
    let delay = longest(&busy).saturating_sub(longest(&quiet));
    println!("longest pause of a new request: {:.2} ms", ms(delay));
    Ok(())
}

/// Returns a configuration with a lane for requests, and one for streams.
fn config(engine: &Path, folder: &Path) -> String {
    let state = folder.join("state");
    let lane = |name: &str, script: &str| {
        let engine = engine.display().to_string();
        // Strings have the same form in TOML.
        let command =
            [&*engine, "--port", "{port}", "--alias", name, "--slots", "16", "--script", script];
        format!(
            "[[lanes]]\nname = \"{name}\"\nslots = 16\n[lanes.engine]\ndriver = \"llama-cpp\"\n\
             command = {command:?}\n"
        )
    };
    let head = format!("log = {{ level = \"warn\" }}\nstate = {{ dir = {state:?} }}\n");
    let requests = lane("requests", r#"{"token-ms": 1, "tokens": 1}"#);
    head + &requests + &lane("streams", r#"{"token-ms": 10, "tokens": 300}"#)
}

/// Upgrades the host. Returns the process id of the next one, and for how many milliseconds nothing
/// was dispatched.
fn upgrade(program: &Path, file: &Path) -> Result<[u64; 2]> {
    let mut command = Command::new(program);
    let output = command.args(["upgrade", "--config"]).arg(file).output()?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "the upgrade failed: {error}");
    let text = String::from_utf8_lossy(&output.stdout);
    let numbers: Vec<u64> = text.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    numbers.try_into().ok().with_context(|| format!("unexpected output: {text}"))
}

/// Returns how long requests took during `work`, and the gaps between the parts of streams.
fn measure(port: u16, work: impl FnOnce() -> Result<()>) -> Result<(Vec<Duration>, Vec<Duration>)> {
    // Until the lanes are loaded.
    while super::reload::send(port, "requests")? != 200 {
        pause(Duration::from_millis(50));
    }
    let clients = Clients::start(port, "requests");
    let stop = Arc::<AtomicBool>::default();
    let stopped = Arc::clone(&stop);
    let streams = std::thread::spawn(move || -> Result<Vec<Duration>> {
        let mut gaps = Vec::new();
        while !stopped.load(Ordering::Relaxed) {
            gaps.extend(stream(port)?);
        }
        Ok(gaps)
    });
    let worked = work();
    stop.store(true, Ordering::Relaxed);
    let times = clients.stop()?;
    let gaps = streams.join().ok().context("a client panicked")??;
    worked?;
    Ok((times, gaps))
}

/// Reads a stream to its end, and returns the gaps between its parts.
fn stream(port: u16) -> Result<Vec<Duration>> {
    let body = r#"{"model":"streams","stream":true,"messages":[{"role":"user","content":"hi"}]}"#;
    let mut stream = post_chat(port, body)?;
    let (mut gaps, mut all, mut buffer) = (Vec::new(), Vec::new(), [0; 4096]);
    let mut last: Option<Instant> = None;
    loop {
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        gaps.extend(last.map(|last| last.elapsed()));
        last = Some(Instant::now());
        all.extend_from_slice(buffer.get(..count).unwrap_or_default());
    }
    let text = String::from_utf8_lossy(&all);
    ensure!(text.contains("data: [DONE]"), "the stream is not complete: {text}");
    Ok(gaps)
}
