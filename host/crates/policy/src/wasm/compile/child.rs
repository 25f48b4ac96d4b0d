//! The process that compiles: confines itself, reads a component, and writes the code.

use std::io::{self, Read, Write};
use std::process::ExitCode;

use rustix::process::{Pid, Resource, Rlimit, Signal};
use sha2::{Digest, Sha256};

use crate::limits::MAX_COMPONENT_BYTES;
use crate::wasm::cache::compatibility;
use crate::wasm::compile::{EXIT_REJECTED, HEADER_LEN, MAGIC, precompile};
use crate::wasm::engine::{AddressSpace, compiling_engine};
use crate::wasm::metering::Metering;

/// The niceness of the child, which yields to the host.
const NICENESS: i32 = 10;
/// Maximum open files of the child.
const MAX_OPEN_FILES: u64 = 32;

/// The arguments of the hidden subcommand that compiles.
#[derive(Debug, Clone, Copy)]
pub struct CompileArgs {
    /// Maximum address space in bytes.
    pub memory: u64,
    /// Maximum CPU time in seconds.
    pub cpu: u64,
    /// The process id of the parent: the child exits with it.
    pub parent: i32,
    /// The unit in which the time of calls to the code is measured: fuel, or the wall clock.
    pub metering: Metering,
    /// The address space of the process that runs the code.
    pub address_space: AddressSpace,
}

/// Runs the compiling process: sets its own limits, reads a component, and writes the code.
pub fn compile_main(orders: CompileArgs, input: impl Read, output: impl Write) -> ExitCode {
    let result = confine(orders)
        .map_err(|error| (format!("failed to set resource limits: {error}"), ExitCode::FAILURE))
        .and_then(|()| compile_piped(orders, input, output));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err((message, code)) => {
            // The parent may have exited; then the message has no reader.
            writeln!(io::stderr(), "{message}").ok();
            code
        }
    }
}

/// Sets the limits of this process. Called before any input is read.
fn confine(orders: CompileArgs) -> io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    // The parent may have exited before the signal was requested.
    if rustix::process::getppid().map(Pid::as_raw_pid) != Some(orders.parent) {
        return Err(io::Error::other("parent process has exited"));
    }
    let limit = |resource, soft: u64, hard: u64| {
        // The process may have been started with a lower limit, which it cannot raise.
        let inherited = rustix::process::getrlimit(resource).maximum.unwrap_or(u64::MAX);
        let (current, maximum) = (Some(soft.min(inherited)), Some(hard.min(inherited)));
        rustix::process::setrlimit(resource, Rlimit { current, maximum })
    };
    limit(Resource::As, orders.memory, orders.memory)?;
    // The soft limit raises SIGXCPU, which the parent recognises; the hard one SIGKILL, which could
    // have any cause.
    limit(Resource::Cpu, orders.cpu, orders.cpu.saturating_add(1))?;
    limit(Resource::Core, 0, 0)?;
    limit(Resource::Fsize, 0, 0)?;
    limit(Resource::Nofile, MAX_OPEN_FILES, MAX_OPEN_FILES)?;
    rustix::process::nice(NICENESS)?;
    Ok(())
}

fn compile_piped(
    orders: CompileArgs,
    input: impl Read,
    mut output: impl Write,
) -> Result<(), (String, ExitCode)> {
    let failed =
        |what: &str, error: &dyn std::fmt::Display| (format!("{what}: {error}"), ExitCode::FAILURE);
    let mut bytes = Vec::new();
    let read = input.take(MAX_COMPONENT_BYTES + 1).read_to_end(&mut bytes);
    read.map_err(|error| failed("failed to read the component", &error))?;
    let engine = compiling_engine(orders.metering, orders.address_space)
        .map_err(|error| failed("failed to create the engine", &error))?;
    let code = precompile(&engine, &bytes);
    let code = code.map_err(|error| (format!("{error:#}"), ExitCode::from(EXIT_REJECTED)))?;
    let mut header = Vec::with_capacity(HEADER_LEN);
    header.extend(MAGIC);
    header.extend(&Sha256::digest(&bytes)[..]);
    header.extend(compatibility(&engine).to_le_bytes());
    header.extend((code.len() as u64).to_le_bytes());
    let written = output
        .write_all(&header)
        .and_then(|()| output.write_all(&code))
        .and_then(|()| output.flush());
    written.map_err(|error| failed("failed to write the code", &error))
}
