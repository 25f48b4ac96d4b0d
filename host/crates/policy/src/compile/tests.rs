use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use super::{CompileError, CompileLimits, Compiler, HEADER, MAGIC, open, size};
use crate::cache::compatibility;
use crate::runtime::{Allocator, Metering, Runtime, RuntimeSettings, compiling_engine};

/// What comes of a child that behaves like this.
fn compile_with(behaviour: &str, limits: CompileLimits, bytes: &[u8]) -> CompileError {
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join(behaviour);
    let script =
        Path::new(&std::env::var("CARGO_MANIFEST_DIR").unwrap()).join("fixtures/compiler.sh");
    symlink(script, &program).unwrap();
    let engine = compiling_engine(Metering::Wall).unwrap();
    Compiler::Child { program, limits }.compile(&engine, Metering::Wall, bytes).unwrap_err()
}

#[test]
fn every_end_of_the_child_has_a_sentence() {
    let bytes = vec![0; 1 << 20];
    for (behaviour, sentence) in [
        ("silent", "the compiler's answer cannot be used: it is cut short"),
        ("short", "the compiler's answer cannot be used: it is cut short"),
        (
            "garbage",
            "the compiler's answer cannot be used: it does not begin as one; is it the same program?",
        ),
        ("deaf", "the compiler failed: exit status: 3: not now"),
        ("refuses", "it cannot be compiled: function 7 is  [31mbad"),
        ("killed", "the compiler was killed by SIGKILL"),
        ("crashed", "the compiler was killed by SIGSEGV"),
        ("starved", "compiling needed more memory than 2 GiB"),
        ("busy", "compiling took more than 120 s of CPU time"),
        ("leaves-another", "the compiler's answer cannot be used: it is cut short"),
        ("environment", "the compiler failed: exit status: 4: "),
    ] {
        let begun = Instant::now();
        let error = compile_with(behaviour, CompileLimits::default(), &bytes);
        assert_eq!(error.to_string(), sentence, "{behaviour}");
        assert!(begun.elapsed() < Duration::from_secs(60), "{behaviour} was waited for");
    }
}

#[test]
fn a_child_that_takes_too_long_is_ended() {
    let limits = CompileLimits { wall: Duration::from_millis(500), ..CompileLimits::default() };
    for behaviour in ["slow", "closed"] {
        let error = compile_with(behaviour, limits, &[0; 1 << 20]);
        assert_eq!(error, CompileError::TooLong(limits.wall), "{behaviour}");
        assert_eq!(error.to_string(), "compiling took longer than 0.5 s");
    }
    assert_eq!(
        CompileError::TooLong(CompileLimits::default().wall).to_string(),
        "compiling took longer than 180 s"
    );
}

#[test]
fn a_child_cannot_fill_our_memory() {
    let limits = CompileLimits { code: 1 << 20, ..CompileLimits::default() };
    let error = compile_with("floods", limits, b"");
    assert_eq!(error.to_string(), "its compiled code is longer than 1 MiB");
    let CompileError::Failed(words) = compile_with("babbles", limits, b"") else {
        panic!("it fails")
    };
    assert!(words.len() < 5000, "{} bytes of words were kept", words.len());
}

#[test]
fn there_has_to_be_a_program() {
    let engine = compiling_engine(Metering::Wall).unwrap();
    let compiler =
        Compiler::Child { program: "/nowhere/pointsman".into(), limits: CompileLimits::default() };
    let error = compiler.compile(&engine, Metering::Wall, b"").unwrap_err().to_string();
    assert!(error.starts_with("the compiler cannot be started: "), "{error}");
}

#[test]
fn an_answer_is_for_these_bytes_and_for_this_program() {
    let digest = Sha256::digest(b"a component");
    let code = b"machine code";
    let answer =
        [&MAGIC[..], &digest, &7_u64.to_le_bytes(), &(code.len() as u64).to_le_bytes(), code]
            .concat();
    assert_eq!(open(answer.clone(), &digest, 7).unwrap(), code);
    let sentence = |answer: &[u8], digest: &[u8], compatibility| {
        open(answer.to_vec(), digest, compatibility).unwrap_err().to_string()
    };
    assert!(sentence(&answer, &digest, 8).contains("for another version"));
    assert!(
        sentence(&answer, &Sha256::digest(b"another"), 7)
            .contains("something else than it was sent")
    );
    for length in 0..answer.len() {
        assert!(sentence(&answer[..length], &digest, 7).contains("cut short"), "{length}");
    }
    assert!(sentence(&[&answer[..], b"x"].concat(), &digest, 7).contains("cut short"));
    let mut other = answer;
    other[0] ^= 1;
    assert!(sentence(&other, &digest, 7).contains("the same program"));
    assert_eq!(HEADER, 64);
}

/// Otherwise no code from a child could be used where there is a pool.
#[test]
fn code_is_the_same_with_and_without_a_pool() {
    let of = |allocator| {
        let runtime =
            Runtime::new(RuntimeSettings { allocator, ..RuntimeSettings::default() }).unwrap();
        compatibility(&runtime.engine)
    };
    let child = compatibility(&compiling_engine(Metering::Wall).unwrap());
    assert_eq!(of(Allocator::Pooling), child);
    assert_eq!(of(Allocator::OnDemand), child);
}

#[test]
fn sizes_are_written_as_people_do() {
    for (bytes, text) in [(2 << 30, "2 GiB"), (300 << 20, "300 MiB"), (1000, "1000 bytes")] {
        assert_eq!(size(bytes), text);
    }
}
