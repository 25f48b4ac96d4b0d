use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

use super::*;
use crate::digest::sha256_hex;
use crate::wasm::engine::Allocator;
use crate::wasm::metering::Metering;

/// Counts warnings.
#[derive(Clone, Default)]
struct Warnings(Arc<AtomicUsize>);

impl Subscriber for Warnings {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() == Level::WARN
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, _: &Event<'_>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

#[test]
fn damaged_cache_entry_is_logged_once_and_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let engine = WasmEngine::new(Metering::Fuel, Allocator::OnDemand).unwrap();
    let cache_dir = dir.path().join("cache");
    let compiler = CachingCompiler::new(Compiler::InProcess, Some(cache_dir.clone()), &engine);
    let bytes = wat::parse_str(include_str!("../../../fixtures/small.wat")).unwrap();
    let digest = sha256_hex(&bytes);
    let warnings = Warnings::default();
    let load = || {
        let before = warnings.0.load(Ordering::Relaxed);
        tracing::subscriber::with_default(warnings.clone(), || {
            compiler.compile(&engine, &bytes, &digest).unwrap()
        });
        warnings.0.load(Ordering::Relaxed) - before
    };
    assert_eq!(load(), 0);
    let entry = fs::read_dir(&cache_dir).unwrap().next().unwrap().unwrap().path();
    let intact = fs::read(&entry).unwrap();
    fs::write(&entry, &intact[1..]).unwrap();
    assert_eq!(load(), 1, "a load looks twice, but reports the damage once");
    assert_eq!(fs::read(&entry).unwrap(), intact);
    assert_eq!(load(), 0);
}
