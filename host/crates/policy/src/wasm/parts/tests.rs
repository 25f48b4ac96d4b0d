use std::fs;
use std::path::Path;

use wasmtime::Store;
use wasmtime::component::Linker;

use super::*;
use crate::digest::sha256_hex;
use crate::wasm::caching_compiler::CachingCompiler;
use crate::wasm::compile::Compiler;
use crate::wasm::engine::{Allocator, WasmEngine};
use crate::wasm::metering::Metering;
use crate::wasm::validate::validate;

/// The parts of a policy in JavaScript: a snapshot with the memory, which starts with `state`, and
/// an interpreter that imports something of each kind. The result is the first byte of the state,
/// plus two.
fn interpreter(state: char) -> String {
    let (snapshot, code) = ("s".repeat(MIN_PART_BYTES), "c".repeat(INTERPRETER_BYTES));
    format!(
        r#"(core module $state
            (memory (export "memory") 16)
            (global (export "stack") (mut i32) (i32.const 1))
            (table (export "table") 2 funcref)
            (func (export "one") (result i32) (i32.const 1))
            (data (i32.const 16) "{state}{snapshot}"))
        (core module $engine
            (import "state" "memory" (memory 1))
            (import "state" "stack" (global $stack (mut i32)))
            (import "state" "table" (table 1 funcref))
            (import "state" "one" (func $one (result i32)))
            (func (export "run") (result i32)
                (i32.load8_u (i32.const 16))
                (i32.add (i32.add (global.get $stack) (call $one))))
            (data (i32.const 200000) "{code}"))
        (core instance $s (instantiate $state))
        (core instance $e (instantiate $engine (with "state" (instance $s))))
        (func $run (result u32) (canon lift (core func $e "run")))"#
    )
}

/// Returns a component with an interpreter in nested components, as in JavaScript, or directly in
/// the outermost one, as in Python.
fn component(state: char, is_nested: bool) -> Vec<u8> {
    let parts = interpreter(state);
    let text = if is_nested {
        format!(
            r#"(component (component $outer
                (component $inner {parts} (export "run" (func $run)))
                (instance $i (instantiate $inner))
                (export "run" (func $i "run")))
            (instance $o (instantiate $outer))
            (export "run" (func $o "run")))"#
        )
    } else {
        format!(r#"(component (core module $small) {parts} (export "run" (func $run)))"#)
    };
    wat::parse_str(text).unwrap()
}

fn cached(folder: &Path) -> usize {
    fs::read_dir(folder).unwrap().count()
}

#[test]
fn next_version_compiles_only_its_snapshot() {
    for is_nested in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("cache");
        let engine = WasmEngine::new(Metering::Fuel, Allocator::OnDemand).unwrap();
        let compiler = CachingCompiler::new(Compiler::InProcess, Some(folder.clone()), &engine);
        let run = |state: char| {
            let bytes = component(state, is_nested);
            let compiled = compiler.compile(&engine, &bytes, &sha256_hex(&bytes)).unwrap();
            let mut linker = Linker::new(engine.wasmtime());
            compiled.define_parts(&mut linker).unwrap();
            let mut store = Store::new(engine.wasmtime(), ());
            store.set_fuel(1_000_000).unwrap();
            let instance = linker.instantiate(&mut store, compiled.component()).unwrap();
            let run = instance.get_typed_func::<(), (u32,)>(&mut store, "run").unwrap();
            run.call(&mut store, ()).unwrap().0
        };
        assert_eq!(run('A'), 67, "nested: {is_nested}");
        assert_eq!(cached(&folder), 3, "outline, snapshot and interpreter");
        assert_eq!(run('B'), 68, "nested: {is_nested}");
        assert_eq!(cached(&folder), 4, "only the snapshot is new");

        // A damaged part is compiled again.
        let entries: Vec<_> =
            fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        for entry in entries {
            let intact = fs::read(&entry).unwrap();
            fs::write(&entry, &intact[1..]).unwrap();
            assert_eq!((run('A'), run('B')), (67, 68));
            assert!(fs::read(&entry).unwrap() == intact, "{}", entry.display());
        }
    }
}

#[test]
fn outline_is_valid_and_independent_of_the_snapshot() {
    for is_nested in [true, false] {
        let (one, two) = (component('A', is_nested), component('B', is_nested));
        let (one, two) = (split(&one).unwrap(), split(&two).unwrap());
        validate(&one.outline).unwrap();
        assert_eq!(one.modules.len(), 2);
        assert!(one.outline == two.outline && one.modules[1] == two.modules[1]);
        assert!(one.modules[0] != two.modules[0]);
        assert!(one.outline.len() < MIN_PART_BYTES);
    }
}

#[test]
fn component_is_not_split_if_indices_would_change() {
    let large = format!(r#"(core module $m (data "{}"))"#, "x".repeat(INTERPRETER_BYTES));
    let medium = format!(r#"(core module $m (data "{}"))"#, "x".repeat(MIN_PART_BYTES));
    let nested = format!("(component {large})");
    let exporting = format!(r#"(component $c {large} (export "m" (core module $m)))"#);
    for (what, is_split, inner) in [
        ("a large module", true, large.clone()),
        ("a nested one", true, nested.clone()),
        ("modules that are not large", false, medium),
        ("a type of core modules", false, format!("(core type (func)) {large}")),
        ("a module beside a nested one", false, format!("(core module) {nested}")),
        ("large ones at two depths", false, format!("{large} {nested}")),
        (
            "the alias of a nested module",
            false,
            format!(
                r#"{exporting} (instance $i (instantiate $c)) (alias export $i "m" (core module))"#
            ),
        ),
    ] {
        // Not all of them pass the scan, which checks imports and exports.
        let text = format!("(component {inner})");
        let bytes = wat::parse_str(&text).unwrap_or_else(|error| panic!("{what}: {error}"));
        validate(&bytes).unwrap_or_else(|error| panic!("{what}: {error}"));
        let parts = split(&bytes);
        assert_eq!(parts.is_some(), is_split, "{what}");
        if let Some(parts) = parts {
            validate(&parts.outline).unwrap_or_else(|error| panic!("{what}: {error}"));
        }
    }
}

#[test]
fn damaged_components_are_not_split() {
    let bytes = component('A', true);
    for length in [0, 7, 8, 9, 100, bytes.len() / 2, bytes.len() - 1] {
        assert!(split(&bytes[..length]).is_none(), "{length} bytes");
    }
}
