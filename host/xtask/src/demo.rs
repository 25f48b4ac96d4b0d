//! `cargo xtask demo`: a small real model on three lanes, a policy in front of it, and a question.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::command::{cargo, run, target_dir};
use crate::setup;

/// Longest until all three engines serve; it takes about two seconds on two cores.
const READY_LIMIT: Duration = Duration::from_secs(120);
const QUESTION: &str = "What is the capital of France?";

/// Build, serve, ask, and stay until the host is stopped.
pub(crate) fn demo(root: &Path, port: Option<u16>) -> Result<()> {
    println!(
        "== the engine and a small model (SmolLM2, 135 million parameters), in a virtual environment"
    );
    let venv = setup::venv(false)?;
    println!(
        "== building the host; the first time this takes some minutes, most of them for wasmtime"
    );
    run(cargo(root)?.args(["build", "--package", "pointsman"]))?;

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
    // The terminal sends Ctrl-C to the host as well. We stay until it has drained and stopped its engines.
    ctrlc::set_handler(|| {}).context("Ctrl-C cannot be waited for")?;
    let mut host = Host(command.spawn().context("the host cannot be started")?);
    println!("its log: {}", log.display());
    let port = wait_ready(&mut host, &port_file)
        .with_context(|| format!("the host did not get ready; its log: {}", log.display()))?;
    ask(port)?;
    println!("== up at http://127.0.0.1:{port}; try");
    println!("curl http://127.0.0.1:{port}/v1/models");
    println!(
        "curl http://127.0.0.1:{port}/v1/chat/completions -H 'content-type: application/json' -i \\"
    );
    println!(
        "  -d '{{\"model\": \"auto\", \"messages\": [{{\"role\": \"user\", \"content\": \"Why does fn main() not compile?\"}}]}}'"
    );
    println!("curl http://127.0.0.1:{port}/status");
    println!("== Ctrl-C ends it, and all its engines");
    let status = host.0.wait()?;
    if !status.success() {
        bail!("the host ended: {status}; its log: {}", log.display());
    }
    Ok(())
}

/// The host; ended, should we end before it does.
struct Host(Child);

impl Drop for Host {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            // Its engines end with it: the kernel sees to that.
            drop(self.0.kill());
            drop(self.0.wait());
        }
    }
}

fn wait_ready(host: &mut Host, port_file: &Path) -> Result<u16> {
    let begun = Instant::now();
    loop {
        if let Some(status) = host.0.try_wait()? {
            bail!("it ended: {status}");
        }
        let port = fs::read_to_string(port_file).ok().and_then(|text| text.trim().parse().ok());
        if let Some(port) = port
            && request(port, "GET", "/status", "").is_ok_and(|answer| all_serve(&answer.body))
        {
            println!("all lanes serve after {:.1} s", begun.elapsed().as_secs_f32());
            return Ok(port);
        }
        if begun.elapsed() > READY_LIMIT {
            bail!("not all lanes serve after {} s", READY_LIMIT.as_secs());
        }
        std::thread::park_timeout(Duration::from_millis(100));
    }
}

/// Does `/status` say that every lane is ready?
fn all_serve(status: &str) -> bool {
    let engines = status.matches("\"engine\":\"").count();
    engines > 0 && status.matches("\"engine\":\"ready\"").count() == engines
}

fn ask(port: u16) -> Result<()> {
    println!("== asking: {QUESTION}");
    let body = format!(
        r#"{{"model": "auto", "max_tokens": 60, "temperature": 0, "messages": [{{"role": "user", "content": "{QUESTION}"}}]}}"#
    );
    let answer = request(port, "POST", "/v1/chat/completions", &body)?;
    if answer.status != 200 {
        bail!("the answer has status {}: {}", answer.status, answer.body);
    }
    let content =
        answer.body.split("\"content\":\"").nth(1).and_then(|rest| rest.split("\"}").next());
    println!(
        "answer:  {}",
        content.context("the answer has no content")?.replace("\\n", "\n         ")
    );
    for (title, header) in [
        ("lane:   ", "x-pointsman-lane"),
        ("policy: ", "x-pointsman-policy"),
        ("reason: ", "x-pointsman-reason"),
    ] {
        let value =
            answer.headers.iter().find(|(name, _)| name == header).map(|(_, value)| value.as_str());
        println!("{title} {}", value.with_context(|| format!("the answer has no {header}"))?);
    }
    Ok(())
}

struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: String,
}

/// As plain as HTTP gets; the chores shall not need a client library.
fn request(port: u16, method: &str, path: &str, body: &str) -> Result<Answer> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
    )?;
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let status =
        line.split(' ').nth(1).and_then(|status| status.parse().ok()).context("no HTTP answer")?;
    let mut headers = Vec::new();
    loop {
        line.clear();
        reader.read_line(&mut line)?;
        // A header may be empty; the line that ends them has no colon.
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.push((name.to_owned(), value.trim().to_owned()));
    }
    let mut body = String::new();
    reader.read_to_string(&mut body)?;
    Ok(Answer { status, headers, body })
}
