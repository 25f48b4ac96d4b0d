//! The processes of a benchmark: the engine, hosts, and the proxies with which they are compared.

use std::fs::{self, DirEntry};
use std::io;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use pointsman_xtask::setup;

/// A server under test.
pub(super) struct Server {
    pub(super) name: &'static str,
    pub(super) child: Child,
    pub(super) port: u16,
}

impl Drop for Server {
    fn drop(&mut self) {
        // Errors mean that the server has exited already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

pub(super) fn haproxy(folder: &Path, engine: u16) -> Result<Server> {
    setup::debian_install(&["haproxy"])?;
    let port = free_port()?;
    let file = folder.join("haproxy.cfg");
    let config = format!(
        "global\n  nbthread 2\ndefaults\n  mode http\n  option http-no-delay\n  timeout connect \
         5s\n  timeout client 60s\n  timeout server 60s\n\
         frontend f\n  bind 127.0.0.1:{port}\n  default_backend b\nbackend b\n  http-reuse \
         always\n  server s 127.0.0.1:{engine}\n"
    );
    fs::write(&file, config)?;
    start("haproxy", Command::new("haproxy").arg("-db").arg("-f").arg(file), port, false)
}

pub(super) fn pointsman(
    root: &Path,
    release: &Path,
    folder: &Path,
    name: &'static str,
    policy: &str,
    engine: u16,
) -> Result<Server> {
    host(release, name, &configuration(root, folder, name, policy, engine)?)
}

/// Starts a host with this configuration.
pub(super) fn host(release: &Path, name: &'static str, file: &Path) -> Result<Server> {
    let port = free_port()?;
    let mut command = Command::new(release.join("pointsman"));
    command.arg("serve").arg(file).args(["--listen", &format!("127.0.0.1:{port}")]);
    // A log of all requests would hide the results.
    command.stderr(Stdio::null());
    start(name, &mut command, port, false)
}

/// Writes the configuration of a host with one lane. Each host has a state directory of its own: a
/// host that finds one in use runs without, which costs less.
pub(super) fn configuration(
    root: &Path,
    folder: &Path,
    name: &str,
    policy: &str,
    engine: u16,
) -> Result<PathBuf> {
    let word = name.replace([' ', ',', '+'], "-");
    let (policies, state) = (root.join("policies"), folder.join(format!("{word}.state")));
    let config = format!(
        "[log]\nlevel = \"warn\"\n[state]\ndir = {state:?}\n[policies]\ndir = {policies:?}\n\
         {policy}[[lanes]]\nname = \"coder\"\nmodels = [\"a\"]\nslots = 64\n\
         [lanes.engine]\ndriver = \"external\"\nurl = \"http://127.0.0.1:{engine}\"\n\
         reuse-connections = true\n"
    );
    let file = folder.join(format!("{word}.toml"));
    fs::write(&file, config)?;
    Ok(file)
}

pub(super) fn start(
    name: &'static str,
    command: &mut Command,
    port: u16,
    with_port: bool,
) -> Result<Server> {
    if with_port {
        command.arg(port.to_string());
    }
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .with_context(|| format!("failed to start {name}"))?;
    let mut server = Server { name, child, port };
    let start = Instant::now();
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        if let Some(status) = server.child.try_wait()? {
            bail!("{name} exited: {status}");
        }
        if start.elapsed() > Duration::from_secs(30) {
            bail!("{name} is not listening on port {port}");
        }
        pointsman_xtask::wait::pause(Duration::from_millis(20));
    }
    // Wait until the lanes are ready.
    pointsman_xtask::wait::pause(Duration::from_millis(500));
    Ok(server)
}

/// Returns the CPU seconds of a process and its descendants: fields 14 and 15 of their stats, in
/// hundredths (proc_pid_stat(5)).
pub(super) fn cpu(pid: u32) -> Result<f64> {
    let mut stats: Vec<(u32, u32, f64)> = fs::read_dir("/proc")?.filter_map(stat).collect();
    let (mut open, mut ticks) = (vec![pid], 0.0);
    while let Some(parent) = open.pop() {
        stats.retain(|(id, above, used)| {
            if *above == parent && *id != pid {
                open.push(*id);
            }
            if *id == parent {
                ticks += used;
            }
            *id != parent
        });
    }
    Ok(ticks / 100.0)
}

/// Returns the id of a process, that of its parent, and its CPU time in ticks.
fn stat(entry: io::Result<DirEntry>) -> Option<(u32, u32, f64)> {
    let path = entry.ok()?.path();
    let id = path.file_name()?.to_str()?.parse().ok()?;
    let stat = fs::read_to_string(path.join("stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit(") ").next()?.split(' ').collect();
    let ticks = |field: usize| fields.get(field)?.parse::<f64>().ok();
    Some((id, fields.get(1)?.parse().ok()?, ticks(11)? + ticks(12)?))
}

/// Returns the resident memory of a process in KiB.
pub(super) fn resident(pid: u32) -> Option<u64> {
    status(pid, "VmRSS:")
}

/// Returns the peak resident memory of a process in KiB.
pub(super) fn peak_resident(pid: u32) -> Option<u64> {
    status(pid, "VmHWM:")
}

fn status(pid: u32, key: &str) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with(key))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

pub(super) fn free_port() -> Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}
