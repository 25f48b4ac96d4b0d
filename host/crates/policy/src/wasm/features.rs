//! The WebAssembly features of guests.

use wasmparser::{Parser, WasmFeatures};

/// The WebAssembly features that policies may use, for the engine and for this scan: components,
/// WebAssembly 2.0, and the extended constant expressions that LLVM emits. Features that policies
/// do not need are off, because past sandbox escapes and crashes used them: threads, 64-bit and
/// multiple memories, tail calls, garbage collection, exceptions, function references, async
/// components. Relaxed SIMD is off because its results differ between CPUs.
pub(crate) const FEATURES: WasmFeatures =
    WasmFeatures::COMPONENT_MODEL.union(WasmFeatures::WASM2).union(WasmFeatures::EXTENDED_CONST);

/// Creates a parser of guests.
pub(crate) fn parser() -> Parser {
    let mut parser = Parser::new(0);
    parser.set_features(FEATURES);
    parser
}
