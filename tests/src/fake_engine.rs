//! A fake engine that behaves as real ones did when they were captured, vLLM 0.32.0 and llama.cpp
//! b115xx, and that fails on command.
//!
//! It can be started with flags of its own ([`Options`]) or with the command line of a real engine:
//! `serve MODEL --port …` (vLLM) or `--model FILE --port …` (llama-server). In the latter case its
//! own flags come from the environment variable `FAKE_ENGINE`, it prints what the real engine
//! prints, and its responses have exactly the keys of the real engine.

/// Prints a line to standard output. Errors are ignored, because the parent may have closed the
/// pipe.
macro_rules! say {
    ($($part:tt)*) => {{
        std::io::Write::write_fmt(
            &mut std::io::stdout(),
            format_args!("{}\n", format_args!($($part)*)),
        )
        .ok();
    }};
}
/// Prints a line to standard error.
macro_rules! warn {
    ($($part:tt)*) => {
        warn_text!(format_args!("{}\n", format_args!($($part)*)))
    };
}
/// Prints text, which has its line breaks, to standard error.
macro_rules! warn_text {
    ($text:expr) => {{
        std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("{}", $text)).ok();
    }};
}

mod command_line;
mod completion;
mod completions;
mod core_process;
mod engine;
mod fields;
mod llama;
mod loading;
mod media;
mod memory;
mod messages;
mod metrics;
mod options;
mod pooling;
mod queue;
mod received;
mod response_body;
mod responses;
mod responses_api;
mod script;
mod serve;
mod sleep_mode;
mod sleep_state;
mod slot_routes;
mod slots;
mod steps;
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
pub use self::script::ResponseScript;

/// Runs the program. `arguments` does not include the name of the program.
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
        ["core"] => {
            runtime(1).and_then(|runtime| runtime.block_on(core_process::run())).map(|()| 0)
        }
        ["memory-helper", root, pid, linger] => runtime(1).and_then(|runtime| {
            let linger = Duration::from_millis(linger.parse()?);
            runtime.block_on(memory::release_after_exit(Path::new(root), pid.parse()?, linger))?;
            Ok(0)
        }),
        _ => {
            let is_version = words == ["--version"];
            let arguments = if is_version { &[] } else { arguments };
            match command_line::parse(arguments, &std::env::var("FAKE_ENGINE").unwrap_or_default())
            {
                Err(command_line::UsageError { message, exit_code }) => {
                    warn_text!(message);
                    return ExitCode::from(exit_code);
                }
                Ok(Options { last_words: Some(file), exit_code, .. }) => {
                    warn_text!(std::fs::read_to_string(file).unwrap_or_default());
                    return ExitCode::from(exit_code.unwrap_or(1));
                }
                Ok(Options { exit_code: Some(code), .. }) => return ExitCode::from(code),
                Ok(_) if is_version => {
                    say!("0.32.0");
                    return ExitCode::SUCCESS;
                }
                Ok(options) => runtime(if options.bench { 1 } else { 2 })
                    .and_then(|runtime| runtime.block_on(run(options))),
            }
        }
    };
    ended.map_or_else(
        |error| {
            warn!("{error:#}");
            ExitCode::FAILURE
        },
        ExitCode::from,
    )
}

/// Serves until SIGTERM; returns the exit code.
///
/// # Errors
/// If the port cannot be bound, or if the script is invalid.
pub async fn run(options: Options) -> Result<u8> {
    let script: ResponseScript = serde_json::from_str(&options.script).context("--script")?;
    let ready_at = Instant::now() + Duration::from_millis(options.load_ms);
    // A process with a handler is not terminated by the signal.
    let early = options.ignore_sigterm.then(|| signal(SignalKind::terminate())).transpose()?;
    let socket = serve::bind(&options)?;
    let mut core = if options.fork_core { Some(core_process::start().await?) } else { None };
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
        // Left behind on purpose: the host must end the whole process group.
        say!("leaving child {}", child.id());
    }
    end(core.as_mut(), code).await
}

/// Ends the core before this process exits, as vLLM does.
async fn end(core: Option<&mut Child>, code: u8) -> Result<u8> {
    if let Some(core) = core {
        // The core may have exited already.
        core.kill().await.ok();
    }
    Ok(code)
}
