//! A stand-in for an engine that does on command what real ones did when they were recorded: vLLM 0.32.0 and llama.cpp
//! b115xx. It loads, streams, stalls, dies and lies; it shows its slots, and says what it has seen.
//!
//! It can be started with flags of its own ([`Options`]), or as the real ones are: `serve MODEL --port …` (vLLM) and
//! `--model FILE --port …` (llama-server). Then its own flags come from the environment variable `FAKE_ENGINE`, it prints
//! what they print, and its answers have their keys and no others.

/// Print a line; whoever started us may have closed the pipe.
macro_rules! say {
    ($($part:tt)*) => {{
        let _printed = std::io::Write::write_fmt(&mut std::io::stdout(), format_args!("{}\n", format_args!($($part)*)));
    }};
}
/// The same for the other pipe.
macro_rules! warn {
    ($($part:tt)*) => {
        warn_text!(format_args!("{}\n", format_args!($($part)*)))
    };
}
/// The same for lines that have their ends already.
macro_rules! warn_text {
    ($text:expr) => {{
        let _printed = std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("{}", $text));
    }};
}

mod answer;
mod command;
mod complete;
mod core;
mod engine;
mod llama;
mod loading;
mod memory;
mod metrics;
mod options;
mod queue;
mod reply;
mod script;
mod serve;
mod sleep;
mod text;
mod vllm;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::process::Child;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;

use self::engine::Engine;
pub use self::options::{Flavour, Options};
pub use self::script::Script;

/// The whole program: its arguments without its name.
#[must_use]
pub fn main(arguments: &[String]) -> ExitCode {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let runtime = |workers| {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(workers)
            .enable_all()
            .build()
            .map_err(Into::into)
    };
    let ended = match words[..] {
        ["core"] => runtime(1).and_then(|runtime| runtime.block_on(core::run())).map(|()| 0),
        ["memory-helper", root, pid, linger] => runtime(1).and_then(|runtime| {
            let linger = Duration::from_millis(linger.parse()?);
            runtime.block_on(memory::help(Path::new(root), pid.parse()?, linger))?;
            Ok(0)
        }),
        _ => match command::parse(arguments, &std::env::var("FAKE_ENGINE").unwrap_or_default()) {
            Err(command::Wrong(text, code)) => {
                warn_text!(text);
                return ExitCode::from(code);
            }
            Ok(Options { exit_code: Some(code), .. }) => return ExitCode::from(code),
            Ok(options) => runtime(if options.bench { 1 } else { 2 })
                .and_then(|runtime| runtime.block_on(run(options))),
        },
    };
    ended.map_or_else(
        |error| {
            warn!("{error:#}");
            ExitCode::FAILURE
        },
        ExitCode::from,
    )
}

/// Serve until SIGTERM; the exit code.
///
/// # Errors
/// When the port cannot be had, or the script is none.
pub async fn run(options: Options) -> Result<u8> {
    let script: Script = serde_json::from_str(&options.script).context("--script")?;
    let ready_at = Instant::now() + Duration::from_millis(options.load_ms);
    // Who listens for it is not ended by it.
    let early = options.ignore_sigterm.then(|| signal(SignalKind::terminate())).transpose()?;
    let socket = serve::bind(&options)?;
    let mut core = if options.fork_core { Some(core::start().await?) } else { None };
    let worker = core.as_ref().and_then(Child::id);
    let memory =
        match memory::Memory::hold(&options, worker.unwrap_or_else(std::process::id)).await? {
            Ok(memory) => memory,
            Err(full) => {
                warn_text!(loading::out_of_memory(&options, Some(full)));
                return end(core.as_mut(), 1).await;
            }
        };
    let child = options.fork_child.then(|| std::process::Command::new("sleep").arg("1000").spawn());
    if options.vllm()
        && let Some(code) = loading::load(&options).await
    {
        return end(core.as_mut(), code).await;
    }
    let listener = serve::listen(&options, socket)?;
    let terminate = match early {
        Some(early) => early,
        None => signal(SignalKind::terminate())?,
    };
    let slow = Duration::from_millis(options.slow_exit_ms);
    let engine = Arc::new(Engine::new(options, script, ready_at, memory));
    engine.core.store(worker.unwrap_or(0), Ordering::SeqCst);
    let code = serve::serve(&engine, listener, terminate, core.as_mut()).await?;
    tokio::time::sleep(slow).await;
    if let Some(Ok(child)) = &child {
        // Left behind on purpose: whoever started us has to end the whole group.
        say!("leaving child {}", child.id());
    }
    end(core.as_mut(), code).await
}

/// End as the real one does: not without its core.
async fn end(core: Option<&mut Child>, code: u8) -> Result<u8> {
    if let Some(core) = core {
        let _ended = core.kill().await;
    }
    Ok(code)
}
