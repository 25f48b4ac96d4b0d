//! Instructions per request, counted by callgrind: a figure that does not depend on how busy the
//! machine is. What threads do at intervals counts too, and more than it would at full speed,
//! because a host under callgrind is about fifty times slower.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use pointsman_xtask::command::output;
use pointsman_xtask::setup;
use pointsman_xtask::wait::pause;

use super::SECRET;
use super::server::{Server, free_port};

/// Time for a host to be ready under callgrind, which takes about half a minute.
const START_TIMEOUT: Duration = Duration::from_secs(180);

/// Prints the instructions per request of hosts with these configurations, relative to the first.
/// The load generator sends requests with each set of `arguments`.
pub(super) fn instructions(
    release: &Path,
    folder: &Path,
    hosts: &[(&'static str, PathBuf)],
    loads: &[(&str, &[&str])],
) -> Result<()> {
    setup::debian_install(&["valgrind"])?;
    for (title, arguments) in loads {
        println!("\ninstructions per request: {title}");
        let mut first = None;
        for (name, config) in hosts {
            let count = measure(release, folder, (name, config), arguments)?;
            let change = (count / *first.get_or_insert(count) - 1.0) * 100.0;
            println!("{name:<20}{count:>12.0}{change:>+9.1} %");
        }
    }
    Ok(())
}

fn measure(
    release: &Path,
    folder: &Path,
    (name, config): (&'static str, &Path),
    arguments: &[&str],
) -> Result<f64> {
    let (port, profile) = (free_port()?, folder.join("callgrind.out"));
    // A dump has a number behind the name of the file.
    let dump = folder.join("callgrind.out.1");
    fs::remove_file(&dump).ok(); // Fails if there was none.
    let mut command = Command::new("valgrind");
    command.args(["--quiet", "--tool=callgrind", "--instr-atstart=no"]);
    command.arg(format!("--callgrind-out-file={}", profile.display()));
    command.arg(release.join("pointsman")).arg("serve").arg(config);
    command.args(["--listen", &format!("127.0.0.1:{port}")]);
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
    let mut server = Server { name, child: child.context("failed to start valgrind")?, port };
    until_ready(&mut server)?;
    let pid = server.child.id().to_string();
    let control = |argument: &[&str]| {
        let done = output(Command::new("callgrind_control").args(argument).arg(&pid));
        done.map(drop).with_context(|| format!("callgrind_control {argument:?} failed"))
    };
    let mut load = Command::new(release.join("load"));
    load.args(arguments).args(["--port", &port.to_string()]);
    output(&mut load).context("the load generator failed before the measurement")?;
    control(&["--instr=on"])?;
    let before = accepted(port)?;
    output(&mut load).context("the load generator failed")?;
    let requests = accepted(port)? - before;
    control(&["--instr=off"])?;
    control(&["--dump"])?;
    drop(server);
    let text = fs::read_to_string(&dump)?;
    let total = text.lines().find_map(|line| line.strip_prefix("totals: "));
    let total: f64 = total.context("the profile has no totals")?.trim().parse()?;
    Ok(total / requests.max(1.0))
}

fn until_ready(server: &mut Server) -> Result<()> {
    let begun = Instant::now();
    while !get(server.port, "/health").is_ok_and(|answer| answer.starts_with("HTTP/1.1 200")) {
        if let Some(status) = server.child.try_wait()? {
            bail!("{} exited under valgrind: {status}", server.name);
        }
        if begun.elapsed() > START_TIMEOUT {
            bail!("{} is not ready under valgrind", server.name);
        }
        pause(Duration::from_millis(200));
    }
    Ok(())
}

/// Returns the number of requests that a host has accepted.
fn accepted(port: u16) -> Result<f64> {
    let metrics = get(port, "/metrics")?;
    let value = metrics.lines().find_map(|line| line.strip_prefix("pointsman_accepted_total "));
    Ok(value.context("the host has no metric of accepted requests")?.trim().parse()?)
}

fn get(port: u16, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: Bearer {SECRET}\r\n\
         Connection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
