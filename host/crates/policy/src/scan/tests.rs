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

use super::{MOST_INSTANTIATIONS, Shape, look, validate, validate_within};
use crate::component::{ComponentError, MOST_BYTES, link};
use crate::contract::POLICY;
use crate::runtime::{Allocator, Metering, Runtime, RuntimeSettings};

const SMALL: &str = include_str!("../../fixtures/small.wat");

/// A policy with something more in it.
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

fn scan(bytes: &[u8]) -> Result<Shape, ComponentError> {
    let shape = look(bytes, &POLICY)?;
    validate(bytes)?;
    Ok(shape)
}

fn assert_refused(what: &str, bytes: &[u8], sentence: &str) {
    let said = scan(bytes).map_or_else(|error| error.to_string(), |shape| format!("{shape:?}"));
    assert!(said.contains(sentence), "{what}: {said}");
}

#[test]
fn policies_have_a_shape() {
    let small = scan(&with("")).unwrap();
    assert_eq!((small.modules, small.core_instances, small.memories, small.tables), (1, 1, 1, 1));
    assert_eq!((small.functions, small.data_bytes, small.longest_function), (4, 30, 29));
    assert_eq!((small.largest_memory, small.largest_table, small.depth), (2 << 16, 4, 1));
    assert_eq!(small.instantiations, 3);
    let cortex = scan(&cortex()).unwrap();
    assert!(cortex.functions > 100 && cortex.memories == 1, "{cortex:?}");
}

#[test]
fn what_is_no_component_is_refused() {
    let good = with("");
    let mut long = good.clone();
    long.resize(usize::try_from(MOST_BYTES).unwrap() + 1, 0);
    for (what, bytes, sentence) in [
        ("empty", &b""[..], "it does not begin as WebAssembly does"),
        ("text", b"(component)", "it does not begin as WebAssembly does"),
        ("machine code", b"\x7fELF\x02\x01\x01", "it is compiled machine code (.cwasm)"),
        ("a core module", b"\0asm\x01\0\0\0", "it is a core module and no component"),
        ("a header", b"\0asm\x0d\0", "unexpected end"),
        ("another version", b"\0asm\x09\0\x01\0", "unknown binary version"),
        ("half of it", &good[..good.len() / 2], "unexpected end"),
        ("too long", &long, "it has 33554433 bytes, and 33554432 are the limit"),
    ] {
        assert_refused(what, bytes, sentence);
    }
}

#[test]
fn names_are_those_of_the_contract() {
    let no_advice =
        SMALL.replace("(export (;4;) \"pointsman:policy/on-request@0.1.0\" (instance 3))", "");
    let no_advice = wat::parse_str(no_advice).unwrap();
    for (what, bytes, sentence) in [
        (
            "wasi",
            with(r#"(import "wasi:http/outgoing-handler@0.2.0" (instance))"#),
            "it imports `wasi:http/outgoing-handler@0.2.0`, which policies may not use",
        ),
        (
            "a function",
            with(r#"(import "run" (func))"#),
            "it imports `run`, which policies may not use",
        ),
        (
            "a function by the name of an interface",
            with(r#"(import "pointsman:policy/more@0.1.0" (func))"#),
            "it imports `pointsman:policy/more@0.1.0`, which policies may not use",
        ),
        (
            "another package",
            with(r#"(import "pointsman:policy-x/request@0.1.0" (instance))"#),
            "which policies may not use",
        ),
        (
            "a newer host",
            with(r#"(import "pointsman:policy/request@0.1.9" (instance))"#),
            "it needs `pointsman:policy/request@0.1.9`, and this host has policy API 0.1.0",
        ),
        (
            "an older host",
            with(r#"(import "pointsman:policy/request@0.0.9" (instance))"#),
            "it needs `pointsman:policy/request@0.0.9`, which this host does not serve: it has policy API 0.1.0",
        ),
        (
            "a newer hook",
            wat::parse_str(
                SMALL.replace("policy/on-request@0.1.0\" (i", "policy/on-request@0.2.0\" (i"),
            )
            .unwrap(),
            "it needs `pointsman:policy/on-request@0.2.0`, and this host has policy API 0.1.0",
        ),
        (
            "no export",
            no_advice,
            "it does not export `pointsman:policy/on-request`, which every policy has to",
        ),
        (
            "nothing",
            wat::parse_str("(component)").unwrap(),
            "it does not export `pointsman:policy/lifecycle`",
        ),
    ] {
        assert_refused(what, &bytes, sentence);
    }
}

/// Components of which each makes three instances of the one before.
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
fn every_number_has_a_limit() {
    let deep = (0..9).fold(String::new(), |within, _| format!("(component {within})"));
    let wide = (0..22).fold(String::new(), |mut text, number| {
        write!(text, r#"(type (record (field "a{number}{}" u8)))"#, "x".repeat(99_000)).unwrap();
        text
    });
    let instances = format!("(core module $m) {}", "(core instance (instantiate $m))".repeat(64));
    for (what, bytes, sentence) in [
        ("modules", with(&"(core module)".repeat(64)), "65 core modules, and 64 are"),
        ("core instances", with(&instances), "65 core instances, and 64 are"),
        ("instances", with(&multiplying(8)), "49152"),
        (
            "too many instances",
            with(&multiplying(9)),
            "196608 instances of components within each other, and 65536 are",
        ),
        ("memories", with(&"(core module (memory 1))".repeat(4)), "5 memories, and 4 are"),
        ("tables", module(&"(table 1 funcref)".repeat(16)), "17 tables, and 16 are"),
        ("functions", module(&"(func)".repeat(100_000)), "100004 functions, and 100000 are"),
        (
            "declarations",
            module(&"(global i32 (i32.const 0))".repeat(200_000)),
            "types, imports, exports and other declarations, and 200000 are",
        ),
        ("types", with(&wide), "bytes of types and wiring, and 2097152 are"),
        (
            "data",
            module(&format!("(memory 1) (data \"{}\")", "x".repeat(24 << 20))),
            "25165854 bytes of data, and 25165824 are",
        ),
        (
            "a function",
            module(&format!("(func {})", "nop ".repeat(1 << 20))),
            "1048578 bytes in one function, and 1048576",
        ),
        (
            "a memory",
            module("(memory 4097)"),
            "268500992 bytes in one memory from the start, and 268435456 are",
        ),
        (
            "a table",
            module("(table 20001 funcref)"),
            "20001 elements in one table from the start, and 20000 are",
        ),
        ("depth", with(&deep), "9 components within each other, and 8 are"),
    ] {
        assert_refused(what, &bytes, sentence);
    }
    assert_eq!(MOST_INSTANTIATIONS, 65_536);
}

/// Sections that claim to hold more than they do.
#[test]
fn claims_are_not_believed() {
    let claim = |section: u8| {
        let mut bytes = b"\0asm\x0d\0\x01\0".to_vec();
        // A core module whose section holds 4,294,967,295 items, and nothing of them.
        bytes.extend([
            1, 15, 0, b'a', b's', b'm', 1, 0, 0, 0, section, 5, 0xff, 0xff, 0xff, 0xff, 0x0f,
        ]);
        bytes
    };
    for section in 1..=13 {
        let error = scan(&claim(section)).unwrap_err();
        assert!(!error.to_string().is_empty(), "{section}");
    }
}

#[test]
fn scan_and_engine_allow_the_same() {
    let engine = crate::runtime::compiling_engine(Metering::Wall).unwrap();
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
        ("several memories", false, "(memory 1) (memory 1)"),
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
        assert_eq!(scan(&bytes).is_ok(), allowed, "{proposal}: {:?}", scan(&bytes));
        // The engine needs several memories for code of its own, and so cannot refuse them; the scan comes first.
        let compiles = allowed || proposal == "several memories";
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
        assert_refused(proposal, &bytes, "it is no WebAssembly component that this host can run");
        assert!(engine.precompile_component(&bytes).is_err(), "{proposal}");
    }
}

#[test]
fn validation_ends() {
    let error = validate_within(&with(""), Duration::ZERO).unwrap_err();
    assert_eq!(error, ComponentError::Slow(Duration::ZERO));
    assert_eq!(
        ComponentError::Slow(super::LONGEST).to_string(),
        "validating it took longer than 30 s"
    );
}

/// One thing done to bytes.
#[derive(Debug, Clone)]
enum Change {
    Flip(Index, u8),
    Cut(Index),
    Remove(Index, usize),
    Repeat(Index, usize),
    Copy(Index, Index, usize),
    Insert(Index, Vec<u8>),
}

fn change() -> impl Strategy<Value = Change> {
    let place = any::<Index>;
    prop_oneof![
        8 => (place(), 0..8_u8).prop_map(|(place, bit)| Change::Flip(place, bit)),
        1 => place().prop_map(Change::Cut),
        1 => (place(), 1..64_usize).prop_map(|(place, length)| Change::Remove(place, length)),
        1 => (place(), 1..64_usize).prop_map(|(place, length)| Change::Repeat(place, length)),
        2 => (place(), place(), 1..64_usize).prop_map(|(from, to, length)| Change::Copy(from, to, length)),
        1 => (place(), vec(any::<u8>(), 1..16)).prop_map(|(place, bytes)| Change::Insert(place, bytes)),
    ]
}

/// The bytes with these changes, all of them within a part.
fn changed(original: &[u8], part: &Range<usize>, changes: &[Change]) -> Vec<u8> {
    let mut bytes = original[part.clone()].to_vec();
    for change in changes {
        let length = bytes.len();
        if length == 0 {
            break;
        }
        let end = |from: usize, many: usize| (from + many).min(length);
        match change {
            Change::Flip(place, bit) => bytes[place.index(length)] ^= 1 << bit,
            Change::Cut(place) => bytes.truncate(place.index(length)),
            Change::Remove(place, many) => {
                let from = place.index(length);
                bytes.drain(from..end(from, *many));
            }
            Change::Repeat(place, many) => {
                let from = place.index(length);
                let again = bytes[from..end(from, *many)].to_vec();
                bytes.splice(from..from, again);
            }
            Change::Copy(from, to, many) => {
                let (from, to) = (from.index(length), to.index(length));
                let many = end(from, *many).min(end(from, length - to)) - from;
                bytes.copy_within(from..from + many, to);
            }
            Change::Insert(place, more) => {
                let at = place.index(length);
                bytes.splice(at..at, more.iter().copied());
            }
        }
    }
    [&original[..part.start], &bytes, &original[part.end..]].concat()
}

/// Where code and data of the first core module are, in a component that has only small ones.
fn code_of(component: &[u8]) -> Range<usize> {
    let module = component.windows(8).position(|window| window == b"\0asm\x01\0\0\0").unwrap();
    let code =
        component[module..].windows(3).position(|window| window == [0x0a, 0x31, 0x04]).unwrap()
            + module;
    let data = component[code..].windows(5).position(|window| window == b"small").unwrap() + code;
    code..data + 5
}

/// The same cases every time, so that the numbers that are asserted are the same too.
fn runner(cases: u32) -> TestRunner {
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha))
}

#[test]
fn no_bytes_make_the_scan_panic() {
    let (small, cortex) = (with(""), cortex());
    // Most of a small component are types, of which none can be changed alone.
    for (original, part, least) in
        [(&small, 0..small.len(), 0), (&small, code_of(&small), 50), (&cortex, 0..cortex.len(), 10)]
    {
        let passed = Cell::new(0);
        let checked = runner(400).run(&vec(change(), 1..4), |changes| {
            passed.set(passed.get() + u32::from(scan(&changed(original, &part, &changes)).is_ok()));
            Ok(())
        });
        checked.unwrap();
        assert!(
            (least..400).contains(&passed.get()),
            "{part:?}: {} of 400 are valid",
            passed.get()
        );
    }
    let header =
        prop_oneof![Just(&b"\0asm\x0d\0\x01\0"[..]), Just(&b"\0asm\x01\0\0\0"[..]), Just(&b""[..])];
    let arbitrary = (header, vec(any::<u8>(), 0..256));
    let checked = runner(2000).run(&arbitrary, |(header, rest)| {
        prop_assert!(scan(&[header, &rest].concat()).is_err());
        Ok(())
    });
    checked.unwrap();
}

/// What passes the scan is compiled and linked, or refused with a sentence.
#[test]
fn no_component_makes_the_compiler_panic() {
    let settings = RuntimeSettings { allocator: Allocator::OnDemand, ..RuntimeSettings::default() };
    let runtime: Arc<Runtime> = Runtime::new(settings).unwrap();
    let original = with("");
    let part = code_of(&original);
    let linked = Cell::new(0);
    let checked = runner(600).run(&vec(change(), 1..3), |changes| {
        let bytes = changed(&original, &part, &changes);
        if scan(&bytes).is_err() {
            return Ok(());
        }
        let code = runtime.compiler.compile(&runtime.engine, runtime.metering, &bytes);
        let code =
            code.map_err(|error| TestCaseError::fail(format!("valid, and not compiled: {error}")))?;
        let component = code.component(&runtime.engine).unwrap();
        linked.set(
            linked.get() + u32::from(link(&runtime, crate::abi::Track::V0_1, &component).is_ok()),
        );
        Ok(())
    });
    checked.unwrap();
    assert!(linked.get() > 20, "{} of 600 were linked", linked.get());
}
