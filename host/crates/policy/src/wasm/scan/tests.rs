use std::cell::Cell;
use std::fmt::Write as _;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{RngAlgorithm, TestRng, TestRunner};

use super::{MAX_INSTANTIATIONS, Shape, scan};
use crate::contract::rules::POLICY;
use crate::contract::track::Track;
use crate::limits::MAX_COMPONENT_BYTES;
use crate::version::runtime::{Runtime, RuntimeSettings};
use crate::wasm::caching_compiler::Compiled;
use crate::wasm::compile::Compiler;
use crate::wasm::engine::Allocator;
use crate::wasm::error::{ComponentError, SizeError};
use crate::wasm::metering::Metering;
use crate::wasm::validate::{VALIDATION_TIMEOUT, validate, validate_within};

const SMALL: &str = include_str!("../../../fixtures/small.wat");

/// A valid policy with more content.
fn with(more: &str) -> Vec<u8> {
    let policy = SMALL.trim_end().strip_suffix(')').unwrap();
    wat::parse_str(format!("{policy} {more})")).unwrap()
}

fn module(content: &str) -> Vec<u8> {
    with(&format!("(core module {content})"))
}

fn cortex() -> Vec<u8> {
    let root = std::env::var("CARGO_MANIFEST_DIR").unwrap();
    std::fs::read(Path::new(&root).join("../../../policies/cortex/policy.wasm")).unwrap()
}

fn check(bytes: &[u8]) -> Result<Shape, ComponentError> {
    let shape = scan(bytes, &POLICY)?;
    validate(bytes)?;
    Ok(shape)
}

type Matches = fn(&ComponentError) -> bool;

fn assert_rejected(case: &str, bytes: &[u8], code: &str, matches: Matches) {
    let error = check(bytes).expect_err(case);
    assert!(matches(&error) && error.code() == code, "{case}: {error:?}");
}

fn is_truncated(error: &ComponentError) -> bool {
    matches!(error, ComponentError::Invalid(_)) && error.to_string().contains("unexpected end")
}

#[test]
fn scan_measures_policies() {
    let small = check(&with("")).unwrap();
    assert_eq!((small.modules, small.core_instances, small.memories, small.tables), (1, 1, 1, 1));
    assert_eq!((small.functions, small.data_bytes, small.longest_function), (4, 30, 29));
    assert_eq!((small.largest_memory, small.largest_table, small.depth), (2 << 16, 4, 1));
    assert_eq!(small.instantiations, 3);
    let cortex = check(&cortex()).unwrap();
    assert!(cortex.functions > 100 && cortex.memories == 1, "{cortex:?}");
}

#[test]
fn other_files_are_rejected() {
    let good = with("");
    let mut long = good.clone();
    long.resize(usize::try_from(MAX_COMPONENT_BYTES).unwrap() + 1, 0);
    let not_wasm: Matches = |error| matches!(error, ComponentError::NotWasm);
    let invalid = "component_invalid";
    assert_rejected("empty", b"", invalid, not_wasm);
    assert_rejected("text", b"(component)", invalid, not_wasm);
    assert_rejected("machine code", b"\x7fELF\x02\x01\x01", invalid, |error| {
        matches!(error, ComponentError::Precompiled)
    });
    assert_rejected("core module", b"\0asm\x01\0\0\0", invalid, |error| {
        matches!(error, ComponentError::CoreModule)
    });
    assert_rejected("header", b"\0asm\x0d\0", invalid, is_truncated);
    assert_rejected("other version", b"\0asm\x09\0\x01\0", invalid, |error| {
        matches!(error, ComponentError::Invalid(_))
            && error.to_string().contains("unknown binary version")
    });
    assert_rejected("half of a component", &good[..good.len() / 2], invalid, is_truncated);
    assert_rejected("too long", &long, "component_too_large", |error| {
        let max = 33_554_432;
        let expected = SizeError::Above { what: "bytes", found: max + 1, max };
        matches!(error, ComponentError::TooLarge(size) if *size == expected)
    });
}

#[test]
fn imports_and_exports_must_be_those_of_the_contract() {
    let no_advice =
        SMALL.replace("(export (;4;) \"pointsman:policy/on-request@0.1.0\" (instance 3))", "");
    let no_advice = wat::parse_str(no_advice).unwrap();
    let newer_export =
        SMALL.replace("policy/on-request@0.1.0\" (i", "policy/on-request@0.2.0\" (i");
    for (import, name) in [
        (
            r#"(import "wasi:http/outgoing-handler@0.2.0" (instance))"#,
            "wasi:http/outgoing-handler@0.2.0",
        ),
        (r#"(import "run" (func))"#, "run"),
        // A function with the name of an interface.
        (r#"(import "pointsman:policy/more@0.1.0" (func))"#, "pointsman:policy/more@0.1.0"),
        (
            r#"(import "pointsman:policy-x/request@0.1.0" (instance))"#,
            "pointsman:policy-x/request@0.1.0",
        ),
    ] {
        let error = check(&with(import)).unwrap_err();
        assert!(
            matches!(&error, ComponentError::ForbiddenImport(found) if found == name),
            "{import}: {error}"
        );
        assert_eq!(error.code(), "import_forbidden");
    }
    let newer_import = with(r#"(import "pointsman:policy/request@0.1.9" (instance))"#);
    assert_rejected("newer import", &newer_import, "contract_mismatch", |error| {
        matches!(error, ComponentError::NewerVersion { name, served, .. }
            if name == "pointsman:policy/request@0.1.9" && served == "0.1.3")
    });
    let older_import = with(r#"(import "pointsman:policy/request@0.0.9" (instance))"#);
    assert_rejected("older import", &older_import, "contract_mismatch", |error| {
        matches!(error, ComponentError::UnservedVersion { name, served, .. }
            if name == "pointsman:policy/request@0.0.9" && served == "0.1.3")
    });
    let newer_export = wat::parse_str(newer_export).unwrap();
    assert_rejected("newer export", &newer_export, "contract_mismatch", |error| {
        matches!(error, ComponentError::NewerVersion { name, .. }
            if name == "pointsman:policy/on-request@0.2.0")
    });
    assert_rejected("missing export", &no_advice, "export_missing", |error| {
        matches!(error, ComponentError::MissingExport { name, guest: "policy" }
            if name == "pointsman:policy/on-request")
    });
    let empty = wat::parse_str("(component)").unwrap();
    assert_rejected("empty component", &empty, "export_missing", |error| {
        matches!(error, ComponentError::MissingExport { name, .. }
            if name == "pointsman:policy/lifecycle")
    });
}

/// Nested components, each of which creates three instances of the previous one.
fn multiplying(levels: usize) -> String {
    let level = |text: &mut String, level: usize| {
        let before = level
            .checked_sub(1)
            .map(|before| format!("(alias outer 1 $c{before} (component $before))"));
        let three = if before.is_some() {
            "(instance (instantiate $before))".repeat(3)
        } else {
            String::new()
        };
        write!(text, "(component $c{level} {} {three})", before.unwrap_or_default()).unwrap();
    };
    (0..levels).fold(String::new(), |mut text, number| {
        level(&mut text, number);
        text
    })
}

#[test]
fn every_size_has_a_limit() {
    let deep = (0..9).fold(String::new(), |within, _| format!("(component {within})"));
    let wide = (0..22).fold(String::new(), |mut text, number| {
        write!(text, r#"(type (record (field "a{number}{}" u8)))"#, "x".repeat(99_000)).unwrap();
        text
    });
    let instances = format!("(core module $m) {}", "(core instance (instantiate $m))".repeat(64));
    // A count of zero stands for any.
    let cases: [(&str, u64, u64, Vec<u8>); 13] = [
        ("core modules", 65, 64, with(&"(core module)".repeat(64))),
        ("core instances", 65, 64, with(&instances)),
        ("instances of nested components", 196_608, 65_536, with(&multiplying(9))),
        ("memories", 5, 4, with(&"(core module (memory 1))".repeat(4))),
        ("tables", 17, 16, module(&"(table 1 funcref)".repeat(16))),
        ("functions", 100_004, 100_000, module(&"(func)".repeat(100_000))),
        (
            "declarations (types, imports, exports and others)",
            0,
            200_000,
            module(&"(global i32 (i32.const 0))".repeat(200_000)),
        ),
        ("bytes of component types and instances", 0, 2_097_152, with(&wide)),
        (
            "bytes of data",
            25_165_854,
            25_165_824,
            module(&format!("(memory 1) (data \"{}\")", "x".repeat(24 << 20))),
        ),
        (
            "bytes in one function",
            1_048_578,
            1_048_576,
            module(&format!("(func {})", "nop ".repeat(1 << 20))),
        ),
        ("initial bytes of a memory", 268_500_992, 268_435_456, module("(memory 4097)")),
        ("initial elements of a table", 20_001, 20_000, module("(table 20001 funcref)")),
        ("levels of nested components", 9, 8, with(&deep)),
    ];
    for (what, count, max, bytes) in cases {
        let error = check(&bytes).expect_err(what);
        let ComponentError::TooLarge(SizeError::Above { what: found_what, found, max: found_max }) =
            error
        else {
            panic!("{what}: {error}");
        };
        assert_eq!((found_what, found_max), (what, max));
        assert!(found > max && (count == 0 || found == count), "{what}: {found}");
        assert_eq!(error.code(), "component_too_large");
    }
    // One level less is within the limit.
    assert_eq!(check(&with(&multiplying(8))).unwrap().instantiations, 49_152);
    assert_eq!(MAX_INSTANTIATIONS, 65_536);
}

/// Sections that declare more items than they contain.
#[test]
fn false_section_counts_are_rejected() {
    let claim = |section: u8| {
        let mut bytes = b"\0asm\x0d\0\x01\0".to_vec();
        // A core module with a section that declares 4,294,967,295 items and contains none.
        bytes.extend([
            1, 15, 0, b'a', b's', b'm', 1, 0, 0, 0, section, 5, 0xff, 0xff, 0xff, 0xff, 0x0f,
        ]);
        bytes
    };
    for section in 1..=13 {
        let error = check(&claim(section)).unwrap_err();
        assert!(!error.code().is_empty(), "{section}");
    }
}

#[test]
fn scan_and_engine_allow_the_same_features() {
    let engine = crate::wasm::engine::compiling_engine(Metering::Wall, Default::default()).unwrap();
    for (proposal, allowed, text) in [
        (
            "bulk memory",
            true,
            "(memory 1) (func (memory.fill (i32.const 0) (i32.const 0) (i32.const 0)))",
        ),
        ("several results", true, "(func (result i32 i32) (i32.const 1) (i32.const 2))"),
        ("sign extension", true, "(func (result i32) (i32.extend8_s (i32.const 1)))"),
        ("saturating conversions", true, "(func (result i32) (i32.trunc_sat_f32_s (f32.const 1)))"),
        ("references", true, "(table 1 externref)"),
        ("SIMD", true, "(func (result v128) (i8x16.splat (i32.const 1)))"),
        ("constant expressions", true, "(global i32 (i32.add (i32.const 1) (i32.const 1)))"),
        ("threads", false, "(memory 1 1 shared)"),
        ("atomic instructions", false, "(memory 1) (func (drop (i32.atomic.load (i32.const 0))))"),
        ("64-bit memory", false, "(memory i64 1)"),
        ("multiple memories", false, "(memory 1) (memory 1)"),
        ("tail calls", false, "(func return_call 0)"),
        ("garbage collection", false, "(type (struct (field i32)))"),
        ("i31", false, "(func (param i31ref))"),
        ("exceptions", false, "(tag)"),
        ("references to functions", false, "(type $f (func)) (func (param (ref $f)))"),
        (
            "relaxed SIMD",
            false,
            "(func (param v128) (result v128) (i8x16.relaxed_swizzle (local.get 0) (local.get 0)))",
        ),
        (
            "wide arithmetic",
            false,
            "(func (param i64) (result i64 i64) (i64.mul_wide_s (local.get 0) (local.get 0)))",
        ),
        ("page sizes", false, "(memory 1 (pagesize 1))"),
        ("stack switching", false, "(type $f (func)) (type $c (cont $f))"),
    ] {
        let bytes = module(text);
        assert_eq!(check(&bytes).is_ok(), allowed, "{proposal}: {:?}", check(&bytes));
        // The engine needs multiple memories for its own adapters, and so cannot reject them; the
        // scan does.
        let compiles = allowed || proposal == "multiple memories";
        assert_eq!(engine.precompile_component(&bytes).is_ok(), compiles, "{proposal}");
    }
    for (proposal, text) in [
        ("asynchronous functions", "(type (func async))"),
        ("streams", "(type (stream u8))"),
        ("futures", "(type (future u8))"),
        ("error contexts", "(type error-context)"),
        ("maps", "(type (map string u8))"),
        ("lists of fixed length", "(type (list u8 4))"),
    ] {
        let bytes = with(text);
        assert_rejected(proposal, &bytes, "component_invalid", |error| {
            matches!(error, ComponentError::Invalid(_))
        });
        assert!(engine.precompile_component(&bytes).is_err(), "{proposal}");
    }
}

#[test]
fn validation_stops_at_its_timeout() {
    let error = validate_within(&with(""), Duration::ZERO).unwrap_err();
    assert!(matches!(error, ComponentError::Slow(Duration::ZERO)), "{error}");
    assert_eq!(error.code(), "validation_timeout");
    let error = ComponentError::Slow(VALIDATION_TIMEOUT).to_string();
    assert!(error.contains("30 s"), "{error}");
}

/// A mutation of bytes.
#[derive(Debug, Clone)]
enum Change {
    Flip(Index, u8),
    Truncate(Index),
    Remove(Index, usize),
    Repeat(Index, usize),
    Copy(Index, Index, usize),
    Insert(Index, Vec<u8>),
}

fn change() -> impl Strategy<Value = Change> {
    let position = any::<Index>;
    prop_oneof![
        8 => (position(), 0..8_u8).prop_map(|(position, bit)| Change::Flip(position, bit)),
        1 => position().prop_map(Change::Truncate),
        1 => (position(), 1..64_usize).prop_map(|(at, length)| Change::Remove(at, length)),
        1 => (position(), 1..64_usize).prop_map(|(at, length)| Change::Repeat(at, length)),
        2 => (position(), position(), 1..64_usize)
            .prop_map(|(from, to, length)| Change::Copy(from, to, length)),
        1 => (position(), vec(any::<u8>(), 1..16))
            .prop_map(|(at, bytes)| Change::Insert(at, bytes)),
    ]
}

/// Applies the changes to a part of the bytes.
fn changed(original: &[u8], part: &Range<usize>, changes: &[Change]) -> Vec<u8> {
    let mut bytes = original[part.clone()].to_vec();
    for change in changes {
        let length = bytes.len();
        if length == 0 {
            break;
        }
        let end = |from: usize, many: usize| (from + many).min(length);
        match change {
            Change::Flip(position, bit) => bytes[position.index(length)] ^= 1 << bit,
            Change::Truncate(position) => bytes.truncate(position.index(length)),
            Change::Remove(position, many) => {
                let from = position.index(length);
                bytes.drain(from..end(from, *many));
            }
            Change::Repeat(position, many) => {
                let from = position.index(length);
                let again = bytes[from..end(from, *many)].to_vec();
                bytes.splice(from..from, again);
            }
            Change::Copy(from, to, many) => {
                let (from, to) = (from.index(length), to.index(length));
                let many = end(from, *many).min(end(from, length - to)) - from;
                bytes.copy_within(from..from + many, to);
            }
            Change::Insert(position, more) => {
                let at = position.index(length);
                bytes.splice(at..at, more.iter().copied());
            }
        }
    }
    [&original[..part.start], &bytes, &original[part.end..]].concat()
}

/// Returns the range of code and data of the first core module in [`SMALL`].
fn code_of(component: &[u8]) -> Range<usize> {
    let module = component.windows(8).position(|window| window == b"\0asm\x01\0\0\0").unwrap();
    let code =
        component[module..].windows(3).position(|window| window == [0x0a, 0x31, 0x04]).unwrap()
            + module;
    let data = component[code..].windows(5).position(|window| window == b"small").unwrap() + code;
    code..data + 5
}

/// A runner with deterministic cases, so that the asserted counts are deterministic too.
fn runner(cases: u32) -> TestRunner {
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha))
}

#[test]
fn scan_does_not_panic() {
    let (small, cortex) = (with(""), cortex());
    // Most of a small component are types, of which hardly any can be changed alone.
    for (original, part, min_valid) in
        [(&small, 0..small.len(), 0), (&small, code_of(&small), 50), (&cortex, 0..cortex.len(), 10)]
    {
        let passed = Cell::new(0);
        let checked = runner(400).run(&vec(change(), 1..4), |changes| {
            passed
                .set(passed.get() + u32::from(check(&changed(original, &part, &changes)).is_ok()));
            Ok(())
        });
        checked.unwrap();
        assert!(
            (min_valid..400).contains(&passed.get()),
            "{part:?}: {} of 400 are valid",
            passed.get()
        );
    }
    let header =
        prop_oneof![Just(&b"\0asm\x0d\0\x01\0"[..]), Just(&b"\0asm\x01\0\0\0"[..]), Just(&b""[..])];
    let arbitrary = (header, vec(any::<u8>(), 0..256));
    let checked = runner(2000).run(&arbitrary, |(header, rest)| {
        prop_assert!(check(&[header, &rest].concat()).is_err());
        Ok(())
    });
    checked.unwrap();
}

/// A component that passes the scan compiles, and is linked or rejected.
#[test]
fn compiler_does_not_panic_on_scanned_components() {
    let settings = RuntimeSettings { allocator: Allocator::OnDemand, ..RuntimeSettings::default() };
    let runtime: Arc<Runtime> = Runtime::new(settings).unwrap();
    let original = with("");
    let part = code_of(&original);
    let linked = Cell::new(0);
    let checked = runner(600).run(&vec(change(), 1..3), |changes| {
        let bytes = changed(&original, &part, &changes);
        if check(&bytes).is_err() {
            return Ok(());
        }
        let code =
            Compiler::InProcess.compile(runtime.engine.wasmtime(), runtime.metering(), &bytes);
        let code =
            code.map_err(|error| TestCaseError::fail(format!("valid, but not compiled: {error}")))?;
        let component = code.component(runtime.engine.wasmtime()).unwrap();
        let compiled = Compiled::whole(component, None);
        linked.set(linked.get() + u32::from(runtime.linkers.link(Track::V0_1, &compiled).is_ok()));
        Ok(())
    });
    checked.unwrap();
    assert!(linked.get() > 20, "{} of 600 were linked", linked.get());
}
