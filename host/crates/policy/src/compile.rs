//! Where components are compiled: in a process of its own, which may fail in any way without harm to the host.
//!
//! A compiler is a large program that is given strangers' bytes. So the host runs itself once more, with a hidden
//! subcommand, and gives that child little to work with: its memory, its time and the length of its answer are limited, it
//! may write no file, has no environment, and ends when its parent does. It reads the component from its standard input and
//! writes the code to its standard output:
//!
//! ```text
//!   "pointsman code\n\0" │ SHA-256 of what was read │ compatibility, u64 │ length, u64 │ code
//! ```
//!
//! The code is trusted because this program wrote it to a pipe that nobody else has; what it says of itself before is there
//! to find out when the two are not the same program or the bytes were mixed up.

use std::io::{self, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, ChildStderr, ChildStdout, Command, ExitCode, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Resource, Rlimit, Signal, WaitId, WaitIdOptions};
use sha2::{Digest, Sha256};
use wasmtime::Engine;

use crate::cache::{Code, compatibility};
use crate::component::MOST_BYTES;
use crate::runtime::{Metering, compiling_engine};

/// How the answer begins.
const MAGIC: [u8; 16] = *b"pointsman code\n\0";
/// Bytes of the answer before the code.
const HEADER: usize = MAGIC.len() + 32 + 8 + 8;
/// Bytes of what the child says of an error that are kept.
const MOST_WORDS: u64 = 4 << 10;
/// The exit code that means: it is the component's fault (`EX_DATAERR` of sysexits.h).
const REFUSED: u8 = 65;
/// Threads of the child. Each has its own heap, and all share the limit of memory.
const MOST_THREADS: usize = 4;
/// How much later than the host's own work the child's is done.
const NICE: i32 = 10;
/// Files that the child may have open.
const MOST_FILES: u64 = 32;

/// Where policies are compiled.
#[derive(Debug, Clone, Default)]
pub enum Compiler {
    /// In this process, without limits: for tests and benchmarks, whose components are their own.
    #[default]
    InProcess,
    /// In a child.
    Child {
        /// The program: it has to be this very one, and to call [`compile_main`] for its first argument `compile-policy`.
        program: PathBuf,
        /// What the child may use.
        limits: CompileLimits,
    },
}

/// What compiling one component may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CompileLimits {
    /// Bytes of address space. CPython's component takes 0.35 GB.
    pub memory: u64,
    /// CPU time of all threads, in whole seconds. CPython's component takes 16 s.
    pub cpu: Duration,
    /// Time.
    pub wall: Duration,
    /// Bytes of the compiled code. CPython's component has 35 MB.
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

/// Why there is no compiled code.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CompileError {
    /// The compiler does not take it.
    #[error("it cannot be compiled: {0}")]
    Refused(String),
    /// There is no child.
    #[error("the compiler cannot be started: {0}")]
    Start(String),
    /// The time is up.
    #[error("compiling took longer than {} s", .0.as_secs_f32())]
    TooLong(Duration),
    /// The CPU time is up.
    #[error("compiling took more than {} s of CPU time", .0.as_secs())]
    TooMuchCpu(Duration),
    /// The memory is used up.
    #[error("compiling needed more memory than {}", size(*.0))]
    TooMuchMemory(u64),
    /// It is too long.
    #[error("its compiled code is longer than {}", size(*.0))]
    TooMuchCode(u64),
    /// Somebody ended the child, or it crashed.
    #[error("the compiler was killed by {0}")]
    Killed(String),
    /// The child ended in some other way.
    #[error("the compiler failed: {0}")]
    Failed(String),
    /// What the child wrote is no answer.
    #[error("the compiler's answer cannot be used: {0}")]
    Answer(&'static str),
}

impl Compiler {
    /// A child that runs this very program, even when its file has been replaced meanwhile.
    pub fn this_program() -> Self {
        Self::Child { program: "/proc/self/exe".into(), limits: CompileLimits::default() }
    }

    /// Compile a component that is known to be valid, for an engine of that metering. This takes a while: seconds for an
    /// interpreter.
    pub(crate) fn compile(
        &self,
        engine: &Engine,
        metering: Metering,
        bytes: &[u8],
    ) -> Result<Code, CompileError> {
        match self {
            Self::InProcess => match engine.precompile_component(bytes) {
                Ok(code) => Ok(Code::of_our_compiler(code)),
                Err(error) => Err(CompileError::Refused(format!("{error:#}"))),
            },
            Self::Child { program, limits } => {
                let mut child =
                    start(program, metering, *limits).map_err(|error| failed_start(&error))?;
                let spoken =
                    attend(&mut child, *limits, bytes).map_err(|error| failed_start(&error))?;
                let answer = spoken.answer(*limits)?;
                let code = open(answer, &Sha256::digest(bytes), compatibility(engine))?;
                Ok(Code::of_our_compiler(code))
            }
        }
    }
}

fn failed_start(error: &io::Error) -> CompileError {
    CompileError::Start(error.to_string())
}

fn start(
    program: &std::path::Path,
    metering: Metering,
    limits: CompileLimits,
) -> io::Result<Child> {
    let threads = thread::available_parallelism().map_or(1, usize::from).min(MOST_THREADS);
    Command::new(program)
        .arg0("pointsman")
        .arg("compile-policy")
        .args(["--memory", &limits.memory.to_string()])
        .args(["--cpu", &limits.cpu.as_secs().to_string()])
        .args(["--parent", &std::process::id().to_string()])
        .args((metering == Metering::Fuel).then_some("--fuel"))
        .current_dir("/")
        .env_clear()
        // Every thread and every heap takes addresses, used or not.
        .env("RAYON_NUM_THREADS", threads.to_string())
        .env("MALLOC_ARENA_MAX", MOST_THREADS.to_string())
        // A group of its own, so that whatever it started ends with it.
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
}

/// What a child that has ended left behind.
struct Spoken {
    status: ExitStatus,
    /// The wall limit was reached.
    late: bool,
    /// What it wrote; one byte more than the limit if it was too much.
    output: Vec<u8>,
    words: String,
}

/// Talk to the child until it has ended, one way or another.
///
/// The death signal of the child is tied to the thread that started it, which is this one: it stays until the child is gone.
fn attend(child: &mut Child, limits: CompileLimits, bytes: &[u8]) -> io::Result<Spoken> {
    let pid = Pid::from_child(child);
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let most = limits.code.saturating_add(HEADER as u64);
    let talked = thread::scope(|scope| {
        let named = |name: &str| thread::Builder::new().name(name.into());
        let (ended, has_ended) = mpsc::channel::<()>();
        let watch = named("compile-watch").spawn_scoped(scope, move || {
            let late = has_ended.recv_timeout(limits.wall) == Err(RecvTimeoutError::Timeout);
            if late {
                kill(pid);
            }
            late
        });
        // Each thread that cannot be had ends the child, and with it the other ones.
        let watch = watch.inspect_err(|_| kill(pid))?;
        let feed = named("compile-in").spawn_scoped(scope, move || {
            // A child that does not want to read on will say why, or has ended.
            stdin.map(|mut stdin| stdin.write_all(bytes))
        });
        feed.inspect_err(|_| kill(pid))?;
        let words = named("compile-err").spawn_scoped(scope, move || read_words(stderr));
        let words = words.inspect_err(|_| kill(pid))?;
        let output =
            named("compile-out").spawn_scoped(scope, move || read_output(stdout, most, pid));
        let output = output.inspect_err(|_| kill(pid))?;
        // Its number stays taken until it is waited for below, so that nobody else is killed for it. Whoever else may hold its
        // pipes has to end as well, or reading them would not.
        let waited = rustix::process::waitid(
            WaitId::Pid(pid),
            WaitIdOptions::EXITED | WaitIdOptions::NOWAIT,
        );
        kill(pid);
        drop(ended);
        let late = watch.join().unwrap_or(true);
        let words = words.join().unwrap_or_default();
        let output =
            output.join().unwrap_or_else(|_| Err(io::Error::other("the reading thread panicked")));
        waited?;
        Ok::<_, io::Error>((late, output?, words))
    });
    let status = child.wait()?;
    let (late, output, words) = talked?;
    Ok(Spoken { status, late, output, words })
}

/// End a child and all that it started. It must not have been waited for.
fn kill(pid: Pid) {
    // An error says that it has ended by itself.
    let _gone = rustix::process::kill_process_group(pid, Signal::KILL);
}

fn read_output(stdout: Option<ChildStdout>, most: u64, pid: Pid) -> io::Result<Vec<u8>> {
    let mut output = Vec::new();
    let read = stdout.map(|stdout| stdout.take(most + 1).read_to_end(&mut output)).transpose();
    if read.is_err() || output.len() as u64 > most {
        kill(pid);
    }
    read.map(|_| output)
}

/// The first words; what follows is read too, so that the child is not held up.
fn read_words(stderr: Option<ChildStderr>) -> String {
    let mut words = Vec::new();
    if let Some(mut stderr) = stderr {
        let read = stderr.by_ref().take(MOST_WORDS).read_to_end(&mut words);
        drop(read.and_then(|_| io::copy(&mut stderr, &mut io::sink())));
    }
    let printable = |letter: char| if letter.is_control() { ' ' } else { letter };
    String::from_utf8_lossy(&words).trim().chars().map(printable).collect()
}

impl Spoken {
    /// What it wrote, or why that is no use.
    fn answer(self, limits: CompileLimits) -> Result<Vec<u8>, CompileError> {
        if self.late {
            return Err(CompileError::TooLong(limits.wall));
        }
        if self.output.len() as u64 > limits.code.saturating_add(HEADER as u64) {
            return Err(CompileError::TooMuchCode(limits.code));
        }
        // What an allocation that fails says, in Rust's library and in the system's.
        let starved = ["memory allocation of", "Cannot allocate memory", "out of memory"];
        let starved = starved.iter().any(|words| self.words.contains(words));
        match (self.status.code(), self.status.signal()) {
            (Some(0), _) => Ok(self.output),
            (Some(code), _) if code == i32::from(REFUSED) => Err(CompileError::Refused(self.words)),
            _ if starved => Err(CompileError::TooMuchMemory(limits.memory)),
            (_, Some(signal)) if signal == Signal::XCPU.as_raw() => {
                Err(CompileError::TooMuchCpu(limits.cpu))
            }
            (_, Some(signal)) => Err(CompileError::Killed(name_of(signal))),
            _ => Err(CompileError::Failed(format!("{}: {}", self.status, self.words))),
        }
    }
}

/// Take the code out of an answer.
fn open(mut answer: Vec<u8>, digest: &[u8], compatibility: u64) -> Result<Vec<u8>, CompileError> {
    let Some((header, code)) = answer.split_at_checked(HEADER) else {
        return Err(CompileError::Answer("it is cut short"));
    };
    let (magic, header) = header.split_at(MAGIC.len());
    let (read, header) = header.split_at(digest.len());
    let (made_for, length) = header.split_at(8);
    let problem = if magic != MAGIC {
        "it does not begin as one; is it the same program?"
    } else if read != digest {
        "the compiler read something else than it was sent"
    } else if made_for != compatibility.to_le_bytes() {
        "it is code for another version or for other settings; was the program replaced? Start the host again"
    } else if length != (code.len() as u64).to_le_bytes() {
        "it is cut short"
    } else {
        answer.drain(..HEADER);
        return Ok(answer);
    };
    Err(CompileError::Answer(problem))
}

/// What the parent asks of a child: the arguments of the subcommand.
#[derive(Debug, Clone, Copy)]
pub struct CompileOrders {
    /// Bytes of address space.
    pub memory: u64,
    /// Seconds of CPU time.
    pub cpu: u64,
    /// Process id of the parent, to end when it has gone.
    pub parent: i32,
    /// What the time of calls of the code will be measured in: `--fuel`, or the wall clock.
    pub metering: Metering,
}

/// The body of the compiling process: limit ourselves, read a component, write code.
pub fn compile_main(orders: CompileOrders, input: impl Read, output: impl Write) -> ExitCode {
    let result = confine(orders)
        .map_err(|error| (format!("the limits cannot be set: {error}"), ExitCode::FAILURE))
        .and_then(|()| compile_piped(orders.metering, input, output));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err((words, code)) => {
            // The parent may have gone.
            drop(writeln!(io::stderr(), "{words}"));
            code
        }
    }
}

/// Before anything is read: from here on we can take no more than we may.
fn confine(orders: CompileOrders) -> io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    // The parent may have ended before it was asked for.
    if rustix::process::getppid().map(Pid::as_raw_pid) != Some(orders.parent) {
        return Err(io::Error::other("the parent has gone"));
    }
    let limit = |resource, soft, hard| {
        rustix::process::setrlimit(resource, Rlimit { current: Some(soft), maximum: Some(hard) })
    };
    limit(Resource::As, orders.memory, orders.memory)?;
    // At the soft limit comes a signal of its own, at the hard one KILL, which could mean anything.
    limit(Resource::Cpu, orders.cpu, orders.cpu.saturating_add(1))?;
    limit(Resource::Core, 0, 0)?;
    limit(Resource::Fsize, 0, 0)?;
    limit(Resource::Nofile, MOST_FILES, MOST_FILES)?;
    rustix::process::nice(NICE)?;
    Ok(())
}

fn compile_piped(
    metering: Metering,
    input: impl Read,
    mut output: impl Write,
) -> Result<(), (String, ExitCode)> {
    let failed =
        |what: &str, error: &dyn std::fmt::Display| (format!("{what}: {error}"), ExitCode::FAILURE);
    let mut bytes = Vec::new();
    let read = input.take(MOST_BYTES + 1).read_to_end(&mut bytes);
    read.map_err(|error| failed("the component cannot be read", &error))?;
    let engine = compiling_engine(metering).map_err(|error| failed("no engine", &error))?;
    let code = engine.precompile_component(&bytes);
    let code = code.map_err(|error| (format!("{error:#}"), ExitCode::from(REFUSED)))?;
    let mut answer = Vec::with_capacity(HEADER);
    answer.extend(MAGIC);
    answer.extend(&Sha256::digest(&bytes)[..]);
    answer.extend(compatibility(&engine).to_le_bytes());
    answer.extend((code.len() as u64).to_le_bytes());
    let written = output
        .write_all(&answer)
        .and_then(|()| output.write_all(&code))
        .and_then(|()| output.flush());
    written.map_err(|error| failed("the code cannot be written", &error))
}

fn name_of(signal: i32) -> String {
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

/// A size as people write it.
fn size(bytes: u64) -> String {
    match (bytes % (1 << 30), bytes % (1 << 20)) {
        (0, _) => format!("{} GiB", bytes >> 30),
        (_, 0) => format!("{} MiB", bytes >> 20),
        _ => format!("{bytes} bytes"),
    }
}

#[cfg(test)]
mod tests;
