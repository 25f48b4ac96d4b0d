//! `cargo xtask demo`: serves a small model on three lanes with a policy, and sends a request.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};

use pointsman_xtask::command::{cargo, run, target_dir};
use pointsman_xtask::setup;
use pointsman_xtask::status::all_lanes_are_ready;

/// Timeout for all three engines to become ready; that takes about two seconds on two cores.
const READY_TIMEOUT: Duration = Duration::from_secs(120);
const QUESTION: &str = "What is the capital of France?";

/// Builds and starts the host, sends a request, and waits until the host is stopped.
pub(crate) fn demo(root: &Path, port: Option<u16>) -> Result<()> {
    println!("== building the host; the first build takes several minutes, mostly for wasmtime");
    println!(
        "== meanwhile: installing the engine and a small model (SmolLM2, 135 million parameters)"
    );
    setup::make()?;
    // Downloads wait for the network and builds for the processor, so they overlap well.
    let install = std::thread::spawn(|| setup::venv(false));
    run(cargo(root)?.args(["build", "--package", "pointsman"]))?;
    let venv = install.join().map_err(|_| anyhow!("the installation of the engine panicked"))??;

    println!("== serving examples/quickstart.toml");
    let folder = target_dir()?.join("demo");
    fs::create_dir_all(&folder)?;
    let port_file = folder.join("port");
    if port_file.exists() {
        fs::remove_file(&port_file)?;
    }
    let log = folder.join("log");
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new(target_dir()?.join("debug/pointsman"));
    command
        .current_dir(root)
        .args(["serve", "examples/quickstart.toml", "--log", "info,engine=info"])
        .args(["--listen", &format!("127.0.0.1:{}", port.unwrap_or(0))])
        .arg("--port-file")
        .arg(&port_file)
        .env("PATH", format!("{}:{path}", venv.join("bin").display()))
        .stdin(Stdio::null())
        .stderr(fs::File::create(&log)?);
    // The terminal sends SIGINT to the host as well. Ignore it here, and wait until the host has
    // drained and stopped its engines.
    ctrlc::set_handler(|| {}).context("failed to install the SIGINT handler")?;
    let mut host = Host(command.spawn().context("failed to start the host")?);
    println!("log of the host: {}", log.display());
    let port = wait_ready(&mut host, &port_file)
        .with_context(|| format!("host did not become ready; see {}", log.display()))?;
    ask(port)?;
    println!("== listening on http://127.0.0.1:{port}; try");
    println!("curl http://127.0.0.1:{port}/v1/models");
    println!(
        "curl http://127.0.0.1:{port}/v1/chat/completions -H 'content-type: application/json' -i \\"
    );
    println!(
        "  -d '{{\"model\": \"auto\", \"messages\": [{{\"role\": \"user\", \"content\": \"Why \
         does fn main() not compile?\"}}]}}'"
    );
    println!("curl http://127.0.0.1:{port}/status");
    println!("== press Ctrl-C to stop the host and its engines");
    let status = host.0.wait()?;
    if !status.success() {
        bail!("host exited: {status}; see {}", log.display());
    }
    Ok(())
}

/// The host process, which is killed on drop.
struct Host(Child);

impl Drop for Host {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            // The kernel stops the engines with the host. Errors mean that the host has exited.
            drop(self.0.kill());
            drop(self.0.wait());
        }
    }
}

fn wait_ready(host: &mut Host, port_file: &Path) -> Result<u16> {
    let start = Instant::now();
    loop {
        if let Some(status) = host.0.try_wait()? {
            bail!("host exited: {status}");
        }
        let port = fs::read_to_string(port_file).ok().and_then(|text| text.trim().parse().ok());
        if let Some(port) = port
            && request(port, "GET", "/status", "")
                .is_ok_and(|response| all_lanes_are_ready(&response.body))
        {
            println!("all lanes ready after {:.1} s", start.elapsed().as_secs_f32());
            return Ok(port);
        }
        if start.elapsed() > READY_TIMEOUT {
            bail!("not all lanes ready after {} s", READY_TIMEOUT.as_secs());
        }
        pointsman_xtask::wait::pause(Duration::from_millis(100));
    }
}

fn ask(port: u16) -> Result<()> {
    println!("== request: {QUESTION}");
    let body = format!(
        r#"{{"model": "auto", "max_tokens": 60, "temperature": 0,
            "messages": [{{"role": "user", "content": "{QUESTION}"}}]}}"#
    );
    let response = request(port, "POST", "/v1/chat/completions", &body)?;
    if response.status != 200 {
        bail!("response has status {}: {}", response.status, response.body);
    }
    let content =
        response.body.split("\"content\":\"").nth(1).and_then(|rest| rest.split("\"}").next());
    println!(
        "answer:  {}",
        content.context("response has no content")?.replace("\\n", "\n         ")
    );
    for (title, header) in [
        ("lane:   ", "x-pointsman-lane"),
        ("policy: ", "x-pointsman-policy"),
        ("reason: ", "x-pointsman-reason"),
    ] {
        let value = response
            .headers
            .iter()
            .find(|(name, _)| name == header)
            .map(|(_, value)| value.as_str());
        println!("{title} {}", value.with_context(|| format!("response has no {header}"))?);
    }
    Ok(())
}

struct Response {
    status: u16,
    headers: Vec<(String, String)>,
    body: String,
}

/// Sends a minimal HTTP request, which avoids a dependency on a client library.
fn request(port: u16, method: &str, path: &str, body: &str) -> Result<Response> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: \
         application/json\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
    )?;
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let status = line
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok())
        .context("invalid HTTP response")?;
    let mut headers = Vec::new();
    loop {
        line.clear();
        reader.read_line(&mut line)?;
        // The empty line after the headers has no colon.
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.push((name.to_owned(), value.trim().to_owned()));
    }
    let mut body = String::new();
    reader.read_to_string(&mut body)?;
    Ok(Response { status, headers, body })
}
