//! Reload of a configuration with many lanes under load: the time from the change of the file until
//! a request is served by it, and how much requests are delayed meanwhile.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use pointsman_xtask::command::target_dir;
use pointsman_xtask::wait::pause;

use super::server::{free_port, start};

/// Number of lanes.
const LANES: usize = 100;
/// Number of reloads.
const RELOADS: usize = 50;
/// Number of clients that send requests all the time.
const CLIENTS: usize = 4;
/// Pause between reloads.
const PAUSE: Duration = Duration::from_millis(100);
/// Maximum time until a change takes effect.
const TIMEOUT: Duration = Duration::from_secs(30);

pub(super) fn reload(_root: &Path) -> Result<()> {
    let release = super::programs()?;
    let folder = target_dir()?.join("bench").join("reload");
    fs::create_dir_all(&folder)?;
    let mut command = Command::new(release.join("fake-engine"));
    let engine = start("direct", command.args(["--bench", "--port"]), free_port()?, true)?;
    let file = folder.join("pointsman.toml");
    replace(&file, &config(0, engine.port, &folder))?;
    let port = free_port()?;
    let mut command = Command::new(release.join("pointsman"));
    command.arg("serve").arg(&file).args(["--listen", &format!("127.0.0.1:{port}")]);
    let _host = start("pointsman", &mut command, port, false)?;

    let quiet = Clients::start(port, "lane-1");
    pause(PAUSE * u32::try_from(RELOADS)?);
    let quiet = quiet.stop()?;
    let busy = Clients::start(port, "lane-1");
    let mut effects = Vec::with_capacity(RELOADS);
    for number in 1..=RELOADS {
        replace(&file, &config(number, engine.port, &folder))?;
        effects.push(time_until_served(port, &format!("alias-{number}"))?);
        pause(PAUSE);
    }
    let busy = busy.stop()?;
    println!("{LANES} lanes, {RELOADS} reloads, {CLIENTS} clients");
    print("file change to effect", effects);
    print("requests without reloads", quiet.clone());
    print("requests during reloads", busy.clone());
    let longest = |times: &[Duration]| times.iter().max().copied().unwrap_or_default();
    let delay = longest(&busy).saturating_sub(longest(&quiet));
    println!("longest request during reloads, beyond that without: {:.2} ms", ms(delay));
    Ok(())
}

/// Returns a configuration in which all lanes differ from those of another number, and which has a
/// model name of its own.
fn config(number: usize, engine: u16, folder: &Path) -> String {
    let state = folder.join("state");
    let head = format!(
        "log = {{ level = \"warn\" }}\nstate = {{ dir = {state:?} }}\n[server]\nmodels = {{ \
         alias-{number} = \"lane-0\" }}\n"
    );
    let lane = |lane: usize| {
        format!(
            "[[lanes]]\nname = \"lane-{lane}\"\nslots = 64\ncost = {number}\n[lanes.engine]\n\
             driver = \"external\"\nurl = \"http://127.0.0.1:{engine}\"\nreuse-connections = true\n"
        )
    };
    head + &(0..LANES).map(lane).collect::<String>()
}

fn replace(file: &Path, text: &str) -> Result<()> {
    let new = file.with_extension("new");
    fs::write(&new, text)?;
    Ok(fs::rename(&new, file)?)
}

/// Waits until a model name is known, and returns how long that took.
fn time_until_served(port: u16, model: &str) -> Result<Duration> {
    let begun = Instant::now();
    loop {
        match send(port, model)? {
            200 => return Ok(begun.elapsed()),
            404 if begun.elapsed() < TIMEOUT => {}
            status => bail!("{status} for the model {model}"),
        }
    }
}

/// Clients that send requests, and how long each of these took.
pub(super) struct Clients {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Result<Vec<Duration>>>>,
}

impl Clients {
    pub(super) fn start(port: u16, model: &'static str) -> Self {
        let stop = Arc::<AtomicBool>::default();
        let client = |_| {
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || {
                let mut times = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let begun = Instant::now();
                    match send(port, model)? {
                        200 => times.push(begun.elapsed()),
                        status => bail!("{status} under load"),
                    }
                    pause(Duration::from_millis(2));
                }
                Ok(times)
            })
        };
        let threads = (0..CLIENTS).map(client).collect();
        Self { stop, threads }
    }

    pub(super) fn stop(self) -> Result<Vec<Duration>> {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Vec::new();
        for thread in self.threads {
            let times = thread.join().ok().context("a client panicked")?;
            all.extend(times?);
        }
        Ok(all)
    }
}

/// Sends a chat request with this body on a connection of its own.
pub(super) fn post_chat(port: u16, body: &str) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_nodelay(true)?;
    write!(
        stream,
        "POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nconnection: close\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )?;
    Ok(stream)
}

/// Sends a chat request, and returns the status.
pub(super) fn send(port: u16, model: &str) -> Result<u16> {
    let body = format!(
        "{{\"model\":\"{model}\",\"messages\":[{{\"role\":\"user\",\"content\":\"hi\"}}]}}"
    );
    let mut response = Vec::new();
    post_chat(port, &body)?.read_to_end(&mut response)?;
    let head = String::from_utf8_lossy(&response);
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    status.with_context(|| format!("not a response: {head}"))
}

pub(super) fn print(what: &str, mut times: Vec<Duration>) {
    times.sort();
    let at = |share: usize| times.get(times.len() * share / 100).or(times.last()).copied();
    let [median, p99, longest] = [at(50), at(99), times.last().copied()];
    let text = |time: Option<Duration>| ms(time.unwrap_or_default());
    println!(
        "{what:<28}{:>8} values, median {:>8.2} ms, p99 {:>8.2} ms, longest {:>8.2} ms",
        times.len(),
        text(median),
        text(p99),
        text(longest)
    );
}

pub(super) fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
