//! Compiles components in a child process, whose failure does not affect the host.
//!
//! A compiler is a large program that processes untrusted input. So the host runs its own
//! executable with a hidden subcommand, and confines that child: memory, time and the length of the
//! output are limited, it cannot write files, has no environment, and is killed when its parent
//! exits. It reads the component from its standard input and writes the code to its standard
//! output:
//!
//! ```text
//!   "pointsman code\n\0" │ SHA-256 of what was read │ compatibility, u64 │ length, u64 │ code
//! ```
//!
//! The code is trusted because this program wrote it to a private pipe. The header detects that the
//! executable was replaced in between, or that the streams were mixed up.

pub(crate) mod child;
pub(crate) mod error;

use std::io::{self, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, ChildStderr, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};
use sha2::{Digest, Sha256};
use wasmparser::Parser;
use wasmtime::Engine;

use crate::wasm::cache::{Code, compatibility};
use crate::wasm::compile::error::{CompileError, OutputError};
use crate::wasm::engine::AddressSpace;
use crate::wasm::metering::Metering;

/// The beginning of the output.
const MAGIC: [u8; 16] = *b"pointsman code\n\0";
/// Bytes of the output before the code.
const HEADER_LEN: usize = MAGIC.len() + 32 + 8 + 8;
/// Bytes of the child's standard error that are kept.
const MAX_STDERR_BYTES: u64 = 4 << 10;
/// The exit code for a component that does not compile (`EX_DATAERR` of sysexits.h).
const EXIT_REJECTED: u8 = 65;
/// Threads of the child. Each has its own heap, and all share the memory limit.
const MAX_THREADS: usize = 4;

/// The place where policies are compiled.
#[derive(Debug, Clone, Default)]
pub enum Compiler {
    /// In this process, without limits: for tests and benchmarks, whose components are trusted.
    #[default]
    InProcess,
    /// In a confined child process.
    Child {
        /// The executable: the same program, which calls
        /// [`compile_main`](crate::compile_main) for the subcommand `compile-policy`.
        program: PathBuf,
        /// The limits of the child.
        limits: CompileLimits,
    },
}

/// The limits of compiling one component.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CompileLimits {
    /// Maximum address space in bytes. CPython's component needs 0.35 GB.
    pub memory: u64,
    /// Maximum CPU time of all threads, in whole seconds. CPython's component needs 16 s.
    pub cpu: Duration,
    /// Maximum wall clock time.
    pub wall: Duration,
    /// Maximum size of the compiled code in bytes. CPython's component has 35 MB.
    pub code: u64,
}

impl Default for CompileLimits {
    fn default() -> Self {
        Self {
            memory: 2 << 30,
            cpu: Duration::from_secs(120),
            wall: Duration::from_secs(180),
            code: 256 << 20,
        }
    }
}

impl Compiler {
    /// Returns a compiler that runs the executable of this process, even if its file was replaced.
    pub fn this_program() -> Self {
        Self::Child { program: "/proc/self/exe".into(), limits: CompileLimits::default() }
    }

    /// Compiles a component or a core module that has been validated, for an engine with this
    /// metering. This takes seconds for an interpreter.
    pub(crate) fn compile(
        &self,
        engine: &Engine,
        metering: Metering,
        bytes: &[u8],
    ) -> Result<Code, CompileError> {
        match self {
            Self::InProcess => match precompile(engine, bytes) {
                Ok(code) => Ok(Code::from_compiler(code)),
                Err(error) => Err(CompileError::Rejected(format!("{error:#}"))),
            },
            Self::Child { program, limits } => {
                let mut child = start(program, metering, AddressSpace::for_engine(engine), *limits)
                    .map_err(CompileError::Start)?;
                let output = run_child(&mut child, *limits, bytes).map_err(CompileError::Start)?;
                let output = output.into_result(*limits)?;
                let code = extract_code(output, &Sha256::digest(bytes), compatibility(engine))
                    .map_err(CompileError::Output)?;
                Ok(Code::from_compiler(code))
            }
        }
    }
}

/// Compiles a component or a core module in this process.
fn precompile(engine: &Engine, bytes: &[u8]) -> wasmtime::Result<Vec<u8>> {
    if Parser::is_core_wasm(bytes) {
        engine.precompile_module(bytes)
    } else {
        engine.precompile_component(bytes)
    }
}

fn start(
    program: &std::path::Path,
    metering: Metering,
    space: AddressSpace,
    limits: CompileLimits,
) -> io::Result<Child> {
    let threads = thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS);
    Command::new(program)
        .arg0("pointsman")
        .arg("compile-policy")
        .args(["--memory", &limits.memory.to_string()])
        .args(["--cpu", &limits.cpu.as_secs().to_string()])
        .args(["--parent", &std::process::id().to_string()])
        .args((metering == Metering::Fuel).then_some("--fuel"))
        .args((space == AddressSpace::Limited).then_some("--limited-address-space"))
        .current_dir("/")
        .env_clear()
        // Every thread and every heap reserves address space, used or not.
        .env("RAYON_NUM_THREADS", threads.to_string())
        .env("MALLOC_ARENA_MAX", MAX_THREADS.to_string())
        // Its own process group, so that its descendants are killed with it.
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
}

/// The status and the output of a child that has exited.
struct ChildOutput {
    status: ExitStatus,
    timed_out: bool,
    /// The standard output; one byte more than the limit if there was more.
    stdout: Vec<u8>,
    /// The beginning of the standard error.
    stderr: String,
}

/// Feeds the child and reads its output until it exits or is killed.
///
/// The parent death signal of the child is tied to the thread that started it, which is this one:
/// the thread waits here until the child has exited.
fn run_child(child: &mut Child, limits: CompileLimits, bytes: &[u8]) -> io::Result<ChildOutput> {
    let pid = Pid::from_child(child);
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    // Saturates if the limit is "unlimited".
    let max_bytes = limits.code.saturating_add(HEADER_LEN as u64);
    let exchanged = thread::scope(|scope| {
        let named = |name: &str| thread::Builder::new().name(name.into());
        let (exited, has_exited) = mpsc::channel::<()>();
        let watch = named("compile-watch").spawn_scoped(scope, move || {
            let timed_out = has_exited.recv_timeout(limits.wall) == Err(RecvTimeoutError::Timeout);
            if timed_out {
                kill(pid);
            }
            timed_out
        });
        // If a thread cannot be spawned, the child is killed, which ends the other threads.
        let watch = watch.inspect_err(|_| kill(pid))?;
        let feed = named("compile-in").spawn_scoped(scope, move || {
            // A child that stops reading reports an error, or has exited; a broken pipe adds
            // nothing.
            stdin.map(|mut stdin| stdin.write_all(bytes))
        });
        feed.inspect_err(|_| kill(pid))?;
        let stderr = named("compile-err").spawn_scoped(scope, move || read_stderr(stderr));
        let stderr = stderr.inspect_err(|_| kill(pid))?;
        let stdout =
            named("compile-out").spawn_scoped(scope, move || read_stdout(stdout, max_bytes, pid));
        let stdout = stdout.inspect_err(|_| kill(pid))?;
        // NOWAIT keeps the process id reserved until the child is reaped below, so that the kill
        // cannot hit another process. Descendants of the child may hold its pipes, so they have to
        // go too, or reading would not end.
        let waited = rustix::process::waitid(
            WaitId::Pid(pid),
            WaitIdOptions::EXITED | WaitIdOptions::NOWAIT,
        );
        kill(pid);
        drop(exited);
        let timed_out = watch.join().unwrap_or(true);
        let stderr = stderr.join().unwrap_or_default();
        let stdout =
            stdout.join().unwrap_or_else(|_| Err(io::Error::other("the reading thread panicked")));
        waited?;
        Ok::<_, io::Error>((timed_out, stdout?, stderr))
    });
    let status = child.wait()?;
    let (timed_out, stdout, stderr) = exchanged?;
    Ok(ChildOutput { status, timed_out, stdout, stderr })
}

/// Kills a child and its descendants. The child must not have been reaped.
fn kill(pid: Pid) {
    // An error means that the group has exited already.
    rustix::process::kill_process_group(pid, Signal::KILL).ok();
}

fn read_stdout(stdout: Option<ChildStdout>, max_bytes: u64, pid: Pid) -> io::Result<Vec<u8>> {
    let mut output = Vec::new();
    let read = stdout.map(|stdout| stdout.take(max_bytes + 1).read_to_end(&mut output)).transpose();
    if read.is_err() || output.len() as u64 > max_bytes {
        kill(pid);
    }
    read.map(|_| output)
}

/// Reads the beginning of the standard error. The rest is discarded, so that the child does not
/// block.
fn read_stderr(stderr: Option<ChildStderr>) -> String {
    let mut text = Vec::new();
    if let Some(mut stderr) = stderr {
        let read = stderr.by_ref().take(MAX_STDERR_BYTES).read_to_end(&mut text);
        // A broken pipe ends the text, which is all that is wanted.
        read.and_then(|_| io::copy(&mut stderr, &mut io::sink())).ok();
    }
    // It ends up in logs and terminals.
    let printable = |c: char| if c.is_control() { ' ' } else { c };
    String::from_utf8_lossy(&text).trim().chars().map(printable).collect()
}

impl ChildOutput {
    /// Returns the standard output, or the error that the child ended with.
    fn into_result(self, limits: CompileLimits) -> Result<Vec<u8>, CompileError> {
        if self.timed_out {
            return Err(CompileError::Timeout(limits.wall));
        }
        if self.stdout.len() as u64 > limits.code.saturating_add(HEADER_LEN as u64) {
            return Err(CompileError::OutputLimit(limits.code));
        }
        // A failed allocation is reported on standard error only: by Rust's library, by the C
        // library, or by the allocator.
        let out_of_memory = ["memory allocation of", "Cannot allocate memory", "out of memory"];
        let out_of_memory = out_of_memory.iter().any(|text| self.stderr.contains(text));
        match (self.status.code(), self.status.signal()) {
            (Some(0), _) => Ok(self.stdout),
            (Some(code), _) if code == i32::from(EXIT_REJECTED) => {
                Err(CompileError::Rejected(self.stderr))
            }
            _ if out_of_memory => Err(CompileError::MemoryLimit(limits.memory)),
            (_, Some(signal)) if signal == Signal::XCPU.as_raw() => {
                Err(CompileError::CpuLimit(limits.cpu))
            }
            (_, Some(signal)) => Err(CompileError::Killed(signal_name(signal))),
            _ => Err(CompileError::Failed { status: self.status, stderr: self.stderr }),
        }
    }
}

/// Checks the header of an output, and returns the code that follows it.
fn extract_code(
    mut output: Vec<u8>,
    digest: &[u8],
    compatibility: u64,
) -> Result<Vec<u8>, OutputError> {
    let Some((header, code)) = output.split_at_checked(HEADER_LEN) else {
        return Err(OutputError::Truncated);
    };
    let (magic, header) = header.split_at(MAGIC.len());
    let (input, header) = header.split_at(digest.len());
    let (built_for, length) = header.split_at(8);
    if magic != MAGIC {
        Err(OutputError::NoHeader)
    } else if input != digest {
        Err(OutputError::WrongInput)
    } else if built_for != compatibility.to_le_bytes() {
        Err(OutputError::WrongVersion)
    } else if length != (code.len() as u64).to_le_bytes() {
        Err(OutputError::Truncated)
    } else {
        output.drain(..HEADER_LEN);
        Ok(output)
    }
}

fn signal_name(signal: i32) -> String {
    let names = [
        (Signal::HUP, "SIGHUP"),
        (Signal::INT, "SIGINT"),
        (Signal::QUIT, "SIGQUIT"),
        (Signal::ILL, "SIGILL"),
        (Signal::ABORT, "SIGABRT"),
        (Signal::BUS, "SIGBUS"),
        (Signal::FPE, "SIGFPE"),
        (Signal::KILL, "SIGKILL"),
        (Signal::SEGV, "SIGSEGV"),
        (Signal::PIPE, "SIGPIPE"),
        (Signal::TERM, "SIGTERM"),
        (Signal::XFSZ, "SIGXFSZ"),
        (Signal::SYS, "SIGSYS"),
    ];
    let known = names.iter().find(|(known, _)| known.as_raw() == signal);
    known.map_or_else(|| format!("signal {signal}"), |(_, name)| (*name).to_owned())
}

#[cfg(test)]
mod tests;
