//! Hostile policies: a few lines of WebAssembly text each, in `tests/guests`, made into components of the contract's world.

use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

use crate::host::root;

/// What every guest has, unless its text says otherwise with a line `;; without NAME`.
const PIECES: [(&str, &str); 4] = [
    ("memory", r#"(memory (export "memory") 32)"#),
    // Gives out the same place every time: a guest that keeps nothing needs no more.
    ("realloc", r#"(func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) (i32.const 65536))"#),
    (
        "describe",
        r#"(data (i32.const 16) "\40\00\00\00\NAME_LENGTH\00\00\00\80\00\00\00\01\00\00\00\00\00\00\00\00\00\00\00")
           (data (i32.const 64) "NAME") (data (i32.const 128) "1")
           (func (export "pointsman:policy/lifecycle@0.1.0#describe") (result i32) (i32.const 16))"#,
    ),
    // A pointer to zeros: `ok`.
    (
        "configure",
        r#"(func (export "pointsman:policy/lifecycle@0.1.0#configure") (param i32 i32) (result i32) (i32.const 1024))"#,
    ),
];

/// The head of `advise`: the context's fifteen figures, and a pointer to the advice. Zeros at it are advice without opinion.
const ADVISE: &str = r#"(func (export "pointsman:policy/on-request@0.1.0#advise")
    (param i64 i64 i64 i64 i32 i32 i32 i32 i64 i32 i32 i32 i32 i32 i32) (result i32)"#;

/// The component of the guest `tests/guests/NAME.wat`.
///
/// # Panics
/// If there is none, or it is not well-formed.
pub fn build(name: &str) -> Vec<u8> {
    let file = root().join("tests/guests").join(format!("{name}.wat"));
    let text = std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    component(&module(name, &text), "policy", |wit| wit)
}

/// The core module of a guest's text.
pub fn module(name: &str, text: &str) -> Vec<u8> {
    let pieces: String = PIECES
        .iter()
        .filter(|(piece, _)| !text.contains(&format!(";; without {piece}")))
        .map(|(_, code)| code.replace("NAME_LENGTH", &format!("{:02x}", name.len())).replace("NAME", name))
        .collect();
    let text = format!("(module {pieces} {})", text.replace("(ADVISE", ADVISE));
    wat::parse_str(&text).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// A component of the contract, or of what `change` makes of the contract's text.
pub fn component(module: &[u8], world: &str, change: impl Fn(String) -> String) -> Vec<u8> {
    let mut wit = String::from("package pointsman:policy@0.1.0;\n");
    for file in ["types", "host", "policy"] {
        let text = std::fs::read_to_string(root().join(format!("wit/0.1/{file}.wit"))).unwrap();
        wit.push_str(
            &text
                .replace("package pointsman:policy@0.1.0;", "")
                .replace("/// The contract between", "// The contract between"),
        );
    }
    let mut resolve = Resolve::default();
    let package = resolve.push_str("policy.wit", &change(wit)).unwrap();
    let world = resolve.select_world(&[package], Some(world)).unwrap();
    let mut module = module.to_vec();
    embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8, false).unwrap();
    let mut encoder = ComponentEncoder::default();
    encoder.validate(true).module(&module).and_then(|encoder| encoder.encode()).unwrap()
}
