//! Errors of compiling a component.

use std::io;
use std::process::ExitStatus;
use std::time::Duration;

/// An error of compiling a component.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    /// The compiler rejected the component; its message.
    #[error("compilation failed: {0}")]
    Rejected(String),
    /// The child could not be started, or communication with it failed.
    #[error("failed to run the compiler: {0}")]
    Start(io::Error),
    /// The wall clock limit was reached.
    #[error("compilation timed out after {} s", .0.as_secs_f32())]
    Timeout(Duration),
    /// The CPU time limit was reached.
    #[error("compilation exceeded {} s of CPU time", .0.as_secs())]
    CpuLimit(Duration),
    /// The memory limit was reached.
    #[error("compilation exceeded {} of memory", format_size(*.0))]
    MemoryLimit(u64),
    /// The compiled code is too large.
    #[error("compiled code exceeds {}", format_size(*.0))]
    OutputLimit(u64),
    /// The child was killed, or crashed; the name of the signal.
    #[error("compiler killed by {0}")]
    Killed(String),
    /// The child exited with an error.
    #[error("compiler failed: {status}: {stderr}")]
    Failed {
        /// The exit status.
        status: ExitStatus,
        /// The beginning of its standard error.
        stderr: String,
    },
    /// The output of the child is unusable.
    #[error("invalid compiler output: {0}")]
    Output(OutputError),
}

/// The reason why the output of the compiling child is unusable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OutputError {
    /// The output ends early, or its length is wrong.
    #[error("truncated")]
    Truncated,
    /// The output does not begin with a header.
    #[error("missing header; is the compiler the same program as the host?")]
    NoHeader,
    /// The child compiled other bytes than those that were sent.
    #[error("compiled other input than was sent")]
    WrongInput,
    /// The code is for an engine of another version or with other settings.
    #[error("built by another version; restart the host if its executable was replaced")]
    WrongVersion,
}

impl CompileError {
    /// Returns the stable, machine-readable code of this error.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Rejected(_) => "compile_failed",
            Self::Start(_) => "compiler_unavailable",
            Self::Timeout(_) => "compile_timeout",
            Self::CpuLimit(_) => "compile_cpu_limit",
            Self::MemoryLimit(_) => "compile_memory_limit",
            Self::OutputLimit(_) => "compile_output_limit",
            Self::Killed(_) | Self::Failed { .. } | Self::Output(_) => "compiler_failed",
        }
    }
}

/// Formats a size in the largest binary unit that divides it.
pub(super) fn format_size(bytes: u64) -> String {
    match (bytes % (1 << 30), bytes % (1 << 20)) {
        (0, _) => format!("{} GiB", bytes >> 30),
        (_, 0) => format!("{} MiB", bytes >> 20),
        _ => format!("{bytes} bytes"),
    }
}
