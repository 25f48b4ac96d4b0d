use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use super::{CompileLimits, Compiler, HEADER_LEN, MAGIC, extract_code};
use crate::version::runtime::{Runtime, RuntimeSettings};
use crate::wasm::cache::compatibility;
use crate::wasm::compile::error::format_size;
use crate::wasm::compile::error::{CompileError, OutputError};
use crate::wasm::engine::{AddressSpace, Allocator, compiling_engine};
use crate::wasm::metering::Metering;

/// Compiles with a child that behaves as `behaviour` says, and returns the error.
fn compile_with(behaviour: &str, limits: CompileLimits, bytes: &[u8]) -> CompileError {
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join(behaviour);
    let script =
        Path::new(&std::env::var("CARGO_MANIFEST_DIR").unwrap()).join("fixtures/compiler.sh");
    symlink(script, &program).unwrap();
    let engine = compiling_engine(Metering::Wall, AddressSpace::Ample).unwrap();
    Compiler::Child { program, limits }.compile(&engine, Metering::Wall, bytes).unwrap_err()
}

type Matches = fn(&CompileError) -> bool;

#[test]
fn every_exit_of_the_child_has_its_error() {
    let is_truncated: Matches =
        |error| matches!(error, CompileError::Output(OutputError::Truncated));
    let bytes = vec![0; 1 << 20];
    let expected: [(&str, &str, Matches); 11] = [
        ("silent", "compiler_failed", is_truncated),
        ("short", "compiler_failed", is_truncated),
        ("garbage", "compiler_failed", |error| {
            matches!(error, CompileError::Output(OutputError::NoHeader))
        }),
        ("deaf", "compiler_failed", |error| {
            matches!(error, CompileError::Failed { status, stderr }
                if status.code() == Some(3) && stderr == "not now")
        }),
        ("rejects", "compile_failed", |error| {
            matches!(error, CompileError::Rejected(message)
                    if message == "function 7 is  [31mbad")
        }),
        (
            "killed",
            "compiler_failed",
            |error| matches!(error, CompileError::Killed(signal) if signal == "SIGKILL"),
        ),
        (
            "crashed",
            "compiler_failed",
            |error| matches!(error, CompileError::Killed(signal) if signal == "SIGSEGV"),
        ),
        (
            "starved",
            "compile_memory_limit",
            |error| matches!(error, CompileError::MemoryLimit(limit) if *limit == 2 << 30),
        ),
        (
            "busy",
            "compile_cpu_limit",
            |error| matches!(error, CompileError::CpuLimit(limit) if limit.as_secs() == 120),
        ),
        ("leaves-another", "compiler_failed", is_truncated),
        ("environment", "compiler_failed", |error| {
            matches!(error, CompileError::Failed { status, stderr }
                if status.code() == Some(4) && stderr.is_empty())
        }),
    ];
    for (behaviour, code, matches) in expected {
        let start = Instant::now();
        let error = compile_with(behaviour, CompileLimits::default(), &bytes);
        assert!(matches(&error), "{behaviour}: {error:?}");
        assert_eq!(error.code(), code, "{behaviour}");
        assert!(start.elapsed() < Duration::from_secs(60), "{behaviour} delayed the host");
    }
}

#[test]
fn child_is_killed_at_the_wall_clock_limit() {
    let limits = CompileLimits { wall: Duration::from_millis(500), ..CompileLimits::default() };
    for behaviour in ["slow", "closed"] {
        let error = compile_with(behaviour, limits, &[0; 1 << 20]);
        assert!(
            matches!(error, CompileError::Timeout(limit) if limit == limits.wall),
            "{behaviour}: {error}"
        );
        assert_eq!(error.code(), "compile_timeout");
        assert!(error.to_string().contains("0.5 s"), "{error}");
    }
    let default = CompileError::Timeout(CompileLimits::default().wall).to_string();
    assert!(default.contains("180 s"), "{default}");
}

#[test]
fn output_of_the_child_is_bounded() {
    let limits = CompileLimits { code: 1 << 20, ..CompileLimits::default() };
    let error = compile_with("floods", limits, b"");
    assert!(matches!(error, CompileError::OutputLimit(limit) if limit == 1 << 20), "{error}");
    assert_eq!(error.code(), "compile_output_limit");
    let CompileError::Failed { stderr, .. } = compile_with("babbles", limits, b"") else {
        panic!("expected the exit status of the child")
    };
    assert!(stderr.len() < 5000, "{} bytes of standard error were kept", stderr.len());
}

#[test]
fn missing_program_is_reported() {
    let engine = compiling_engine(Metering::Wall, AddressSpace::Ample).unwrap();
    let compiler =
        Compiler::Child { program: "/nowhere/pointsman".into(), limits: CompileLimits::default() };
    let error = compiler.compile(&engine, Metering::Wall, b"").unwrap_err();
    assert!(matches!(error, CompileError::Start(_)), "{error}");
    assert_eq!(error.code(), "compiler_unavailable");
}

#[test]
fn code_is_only_extracted_for_its_input_and_its_program() {
    let digest = Sha256::digest(b"a component");
    let code = b"machine code";
    let output =
        [&MAGIC[..], &digest, &7_u64.to_le_bytes(), &(code.len() as u64).to_le_bytes(), code]
            .concat();
    assert_eq!(extract_code(output.clone(), &digest, 7).unwrap(), code);
    let error = |output: &[u8], digest: &[u8], compatibility| {
        extract_code(output.to_vec(), digest, compatibility).unwrap_err()
    };
    assert_eq!(error(&output, &digest, 8), OutputError::WrongVersion);
    assert_eq!(error(&output, &Sha256::digest(b"another"), 7), OutputError::WrongInput);
    for length in 0..output.len() {
        assert_eq!(error(&output[..length], &digest, 7), OutputError::Truncated, "{length}");
    }
    assert_eq!(error(&[&output[..], b"x"].concat(), &digest, 7), OutputError::Truncated);
    let mut other = output;
    other[0] ^= 1;
    assert_eq!(error(&other, &digest, 7), OutputError::NoHeader);
    assert_eq!(HEADER_LEN, 64);
}

/// Otherwise code from a child could not be used by an engine with a pool.
#[test]
fn code_is_compatible_with_and_without_a_pool() {
    let compatibility_with = |allocator| {
        let runtime =
            Runtime::new(RuntimeSettings { allocator, ..RuntimeSettings::default() }).unwrap();
        compatibility(runtime.engine.wasmtime())
    };
    let child = compatibility(&compiling_engine(Metering::Wall, AddressSpace::Ample).unwrap());
    assert_eq!(compatibility_with(Allocator::Pooling), child);
    assert_eq!(compatibility_with(Allocator::OnDemand), child);
}

#[test]
fn sizes_are_formatted_in_the_largest_exact_unit() {
    for (bytes, text) in [(2 << 30, "2 GiB"), (300 << 20, "300 MiB"), (1000, "1000 bytes")] {
        assert_eq!(format_size(bytes), text);
    }
}
