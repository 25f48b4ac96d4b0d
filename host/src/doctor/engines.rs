//! Checks of engines: whether their programs start, what a running host says of its lanes, and
//! processes that an earlier host has left.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result};
use http::Method;
use pointsman_config::Config;
use pointsman_fleet::{FAILURES, LaneContext, LaneSpec, diagnose, vllm::Vllm};
use serde_json::Value;
use tokio::io::AsyncReadExt as _;

use super::finding::Finding;
use super::system::System;
use super::targets;
use crate::policy::HostClient;

/// Maximum time for `--version` of an engine; vLLM imports PyTorch for it.
const VERSION_TIMEOUT: Duration = Duration::from_secs(60);
/// Maximum time for the response of a running host.
const HOST_TIMEOUT: Duration = Duration::from_secs(3);
/// Maximum number of bytes that are read of a program's output.
const MAX_OUTPUT: u64 = 256 * 1024;
/// Maximum number of processes that are named.
const MAX_NAMED: usize = 5;

/// Returns the status of the host that runs with a configuration, if there is one.
pub(super) async fn running(config: &Config) -> Option<Value> {
    let socket = config.admin.client_socket().filter(|socket| socket.exists())?;
    let client = HostClient::on_socket(socket);
    let call = client.call_text(Method::GET, "/status", String::new());
    let text = tokio::time::timeout(HOST_TIMEOUT, call).await.ok()?.ok()?;
    serde_json::from_str(&text).ok()
}

/// Reports what a running host says of its lanes.
pub(super) fn lanes(status: Option<&Value>) -> Vec<Finding> {
    const CHECK: &str = "lane";
    let lanes = status.and_then(|status| status["lanes"].as_array());
    let finding = |lane: &Value| {
        let (name, state) = (lane["name"].as_str()?, lane["state"].as_str()?);
        let Some(problem) = lane["problem"].as_str() else {
            return Some(Finding::ok(CHECK, format!("lane `{name}` is {state}")));
        };
        let kind = FAILURES.iter().find(|kind| Some(kind.code) == lane["problem_code"].as_str());
        let fix = kind.map_or("", |kind| kind.fix);
        // The problem contains the remedy, which has its own place here.
        let problem = problem.replace(&format!("; {fix}"), "");
        Some(Finding::problem(CHECK, format!("lane `{name}` is {state}: {problem}"), fix))
    };
    lanes.into_iter().flatten().filter_map(finding).collect()
}

/// A program of engines.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Program {
    words: Vec<String>,
    /// Variables of the first lane that uses it.
    env: Vec<(String, String)>,
}

/// Starts the programs of engines with `--version`, and checks which GPUs they were built for.
pub(super) async fn programs(system: &System, config: &Config) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut seen = BTreeSet::new();
    for lane in &config.fleet.lanes {
        let Some(program) = program(lane).filter(|program| seen.insert(program.words.clone()))
        else {
            continue;
        };
        let is_vllm = lane.engine.downcast_ref::<Vllm>().is_some();
        findings.push(version(&program).await);
        let has_gpu = system.gpus.iter().any(|gpu| gpu.gfx.is_some());
        match program.words.first() {
            Some(first) if has_gpu && is_vllm => {
                findings.extend(pytorch(system, first, &program.env).await);
            }
            Some(first) if has_gpu => findings.extend(targets::of_llama_cpp(system, first)),
            Some(_) | None => {}
        }
    }
    findings
}

/// Asks the PyTorch of an engine which GPUs it was built for. Why it cannot be asked is found with
/// `--version`.
async fn pytorch(system: &System, program: &str, env: &[(String, String)]) -> Option<Finding> {
    let interpreter = targets::interpreter(system, program)?;
    let words = [interpreter.clone(), "-c".to_owned(), targets::PYTORCH_CODE.to_owned()];
    let (_, output) = run(&words, env).await.ok()?;
    targets::of_pytorch(system, &interpreter, &output)
}

/// Returns the program of a lane's engine; `None` for an engine in a container or elsewhere, and
/// for commands that may do something else.
fn program(lane: &LaneSpec) -> Option<Program> {
    let context = LaneContext { need: lane.need, pool: None, pool_total: None, environment: &[] };
    let command = lane.engine.describe(&context).command?;
    let words = match lane.engine.downcast_ref::<Vllm>() {
        Some(vllm) => vllm.settings.program.clone(),
        None => vec![command.command.first()?.clone()],
    };
    let name = Path::new(words.first()?).file_name()?.to_str()?;
    let is_engine = name.contains("llama") || name.contains("vllm") || name.contains("engine");
    let is_python = name.starts_with("python") && words.len() > 1;
    (is_engine || is_python).then_some(Program { words, env: command.env })
}

async fn version(Program { words, env }: &Program) -> Finding {
    const CHECK: &str = "program";
    let shown = words.join(" ");
    let words = [words.as_slice(), &["--version".to_owned()]].concat();
    let (status, output) = match run(&words, env).await {
        Ok(ended) => ended,
        Err(error) => {
            let fix = "install it, or correct `program` or `command`";
            return Finding::problem(CHECK, format!("{error:#}"), fix);
        }
    };
    let Some(status) = status else {
        let seconds = VERSION_TIMEOUT.as_secs();
        let fact = format!("`{shown} --version` did not end within {seconds} s");
        return Finding::warning(
            CHECK,
            fact,
            "check that the disk of the program is not overloaded",
        );
    };
    match diagnose(status, &output) {
        None => {
            let last = output.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default();
            let last: String = last.chars().take(100).collect();
            Finding::ok(CHECK, format!("{shown}: {last}"))
        }
        Some(found) => Finding::problem(
            CHECK,
            format!("`{shown} --version` failed: {} [{}]", found.cause, found.kind.code),
            found.kind.fix,
        ),
    }
}

/// Runs a program, and returns its status, if it ended in time, and its output.
async fn run(words: &[String], env: &[(String, String)]) -> Result<(Option<ExitStatus>, String)> {
    let (program, arguments) = words.split_first().context("an empty command")?;
    let mut command = tokio::process::Command::new(program);
    command.args(arguments).envs(env.iter().cloned());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let started = command.kill_on_drop(true).spawn();
    let mut child = started.with_context(|| format!("failed to start `{program}`"))?;
    let (out, errors) = (child.stdout.take(), child.stderr.take());
    let (mut text, mut error_text) = (Vec::new(), Vec::new());
    let work = async {
        let read = async {
            if let Some(out) = out {
                out.take(MAX_OUTPUT).read_to_end(&mut text).await.ok();
            }
        };
        let read_errors = async {
            if let Some(errors) = errors {
                errors.take(MAX_OUTPUT).read_to_end(&mut error_text).await.ok();
            }
        };
        // Output that is incomplete explains less, and is not an error.
        tokio::join!(read, read_errors);
        child.wait().await
    };
    let status = match tokio::time::timeout(VERSION_TIMEOUT, work).await {
        Ok(status) => Some(status.context("failed to wait for the program")?),
        Err(_) => None,
    };
    error_text.extend(text);
    Ok((status, String::from_utf8_lossy(&error_text).into_owned()))
}

/// Looks for engines that no running host has, which hold memory.
pub(super) fn leftovers(system: &System, status: Option<&Value>) -> Finding {
    const CHECK: &str = "leftovers";
    let lanes = status.and_then(|status| status["lanes"].as_array()).into_iter().flatten();
    let pids = lanes.filter_map(|lane| lane["pid"].as_u64());
    // An engine is a session.
    let sessions: BTreeSet<u64> = pids.filter_map(|pid| session(system, pid)).collect();
    let mut found = BTreeSet::new();
    for holder in system.machine.holders() {
        found.insert((u64::from(holder.pid), holder.name));
    }
    for pid in system.names("proc").iter().filter_map(|name| name.parse::<u64>().ok()) {
        let name = system.line(&format!("proc/{pid}/comm")).unwrap_or_default();
        if name.starts_with("VLLM::") {
            found.insert((pid, name));
        }
    }
    let is_left = |pid: u64| !session(system, pid).is_some_and(|id| sessions.contains(&id));
    let left: Vec<String> = found
        .iter()
        .filter(|(pid, _)| is_left(*pid))
        .take(MAX_NAMED)
        .map(|(pid, name)| format!("{pid} ({name})"))
        .collect();
    if left.is_empty() {
        return Finding::ok(CHECK, "no other process holds a GPU");
    }
    let fact =
        format!("processes that are not lanes of a running host hold a GPU: {}", left.join(", "));
    let fix =
        "end them if an earlier engine left them (`kill PID`); the host cannot use their memory";
    Finding::warning(CHECK, fact, fix)
}

/// Returns the session of a process.
fn session(system: &System, pid: u64) -> Option<u64> {
    let stat = system.text(&format!("proc/{pid}/stat"))?;
    // The name is in parentheses, and may contain anything.
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_whitespace().nth(3)?.parse().ok()
}
