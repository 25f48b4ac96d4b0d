//! Fuzzing of what a policy consists of: its manifest and its component.

use std::path::Path;

use pointsman_fuzz::Fuzz;

use crate::contract::rules::POLICY;
use crate::version::manifest::Manifest;
use crate::wasm::scan::scan;
use crate::wasm::validate::validate;

fn parse(text: &str) -> Option<Manifest> {
    let parsed = Manifest::parse(Path::new("policy.toml"), text);
    parsed.map_err(|error| assert_eq!(error.code(), "manifest_invalid")).ok()
}

/// An accepted manifest is TOML with these values, names files in its own folder, and has no key
/// that is not known.
#[test]
fn manifests() {
    let fuzz = Fuzz::new("manifests").files("policies", "policy.toml");
    let fuzz = fuzz.files("tests/compat", "policy.toml").words(&[
        "[hooks]",
        "tick = \"30s\"",
        "[limits]",
        "budget = \"300us\"",
        "memory = \"1MiB\"",
        "../x",
    ]);
    fuzz.run(|input| {
        let Ok(text) = std::str::from_utf8(input) else { return false };
        let Some(manifest) = parse(text) else { return false };
        let table: toml::Table = text.parse().expect("a manifest is TOML");
        assert_eq!(table["api"].as_str(), Some(manifest.api.as_str()));
        for file in [&manifest.file, &manifest.cases] {
            let mut parts = file.components();
            assert!(parts.all(|part| matches!(part, std::path::Component::Normal(_))), "{file:?}");
        }
        for name in manifest.interfaces() {
            assert!(["log", "metrics", "state"].contains(&name.as_str()), "{name}");
        }
        assert!(parse(&format!("unknown-key = 1\n{text}")).is_none());
        assert!(parse(&format!("{text}\n[unknown-table]\n")).is_none());
        true
    });
}

/// An accepted component imports nothing but its contract, is within the limits whatever its size,
/// and is not accepted without its last byte.
#[test]
fn components() {
    let small = wat::parse_str(include_str!("../fixtures/small.wat")).unwrap();
    let accepts = |input: &[u8]| {
        let shape = scan(input, &POLICY).ok()?;
        validate(input).ok().map(|()| shape)
    };
    Fuzz::new("components").input(small).files("policies", "policy.wasm").run(|input| {
        let Some(shape) = accepts(input) else { return false };
        assert!(shape.modules >= 1 && shape.depth >= 1, "{shape:?}");
        let code = shape.functions.max(shape.longest_function).max(shape.data_bytes);
        assert!(code <= input.len() as u64, "{shape:?} in {} bytes", input.len());
        assert!(accepts(&input[..input.len() - 1]).is_none());
        true
    });
}
