//! Hostile policies: a few lines of WebAssembly text each, in `tests/guests`, made into components of the contract's world.

mod guest;

use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::{Resolve, WorldId};

pub use self::guest::{ADVICE, Guest, swap};
use crate::host::root;

/// What every guest has, unless its text says otherwise with a line `;; without NAME`.
const PIECES: [(&str, &str); 4] = [
    ("memory", r#"(memory (export "memory") 32)"#),
    // Gives out the same place every time: a guest that keeps nothing needs no more.
    (
        "realloc",
        r#"(func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) (i32.const 65536))"#,
    ),
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

/// What every guest has that was built as a middleware for vLLM Router, unless its text says otherwise.
const MIDDLEWARE_PIECES: [(&str, &str); 3] = [
    ("memory", r#"(memory (export "memory") 32)"#),
    (
        "realloc",
        r#"(global $next (mut i32) (i32.const 65536))
           (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32)
             (local $at i32)
             (local.set $at (i32.and (i32.add (global.get $next) (i32.const 7)) (i32.const -8)))
             (global.set $next (i32.add (local.get $at) (local.get 3)))
             (block $fits
               (loop $more
                 (br_if $fits (i32.le_u (global.get $next) (i32.shl (memory.size) (i32.const 16))))
                 (br_if $more (i32.ne (memory.grow (i32.const 1)) (i32.const -1)))
                 (unreachable)))
             (local.get $at))"#,
    ),
    (
        "post-return",
        r#"(func (export "cabi_post_vllm:router-middleware/on-request@0.1.0#handle") (param i32)
             (global.set $next (i32.const 65536)))"#,
    ),
];

/// The head of a middleware's `handle`.
const HANDLE: &str = r#"(func (export "vllm:router-middleware/on-request@0.1.0#handle")
    (param $method i32) (param $method_len i32) (param $path i32) (param $path_len i32)
    (param $query i32) (param $query_len i32) (param $headers i32) (param $headers_len i32)
    (param $body i32) (param $body_len i32) (param $id i32) (param $id_len i32) (result i32)"#;

/// What of WASI the middlewares here were "built" with, and the world that they think they are in.
const MIDDLEWARE_WORLD: [&str; 7] = [
    "package wasi:random@0.2.3; interface random { get-random-u64: func() -> u64; }",
    "package wasi:clocks@0.2.3;
     interface wall-clock { record datetime { seconds: u64, nanoseconds: u32 } now: func() -> datetime; }",
    "package wasi:io@0.2.3;
     interface error { resource error; }
     interface streams {
       use error.{error};
       variant stream-error { last-operation-failed(error), closed }
       resource output-stream {
         blocking-write-and-flush: func(contents: list<u8>) -> result<_, stream-error>;
       }
     }",
    "package wasi:cli@0.2.3;
     interface stderr { use wasi:io/streams@0.2.3.{output-stream}; get-stderr: func() -> output-stream; }",
    "package wasi:sockets@0.2.3;
     interface tcp-create-socket {
       resource tcp-socket;
       create-tcp-socket: func(family: bool) -> result<tcp-socket, u8>;
     }",
    "package test:other@1.0.0; interface thing { do-it: func(); }",
    "package test:guest;
     world guest {
       include vllm:router-middleware/middleware@0.1.0;
       import wasi:random/random@0.2.3;
       import wasi:clocks/wall-clock@0.2.3;
       import wasi:cli/stderr@0.2.3;
       import wasi:sockets/tcp-create-socket@0.2.3;
       import test:other/thing@1.0.0;
     }",
];

/// The component of the guest `tests/guests/middleware/NAME.wat`: one that was made for vLLM Router.
///
/// # Panics
/// If there is none, or it is not well-formed.
pub fn middleware(name: &str) -> Vec<u8> {
    let file = root().join("tests/guests/middleware").join(format!("{name}.wat"));
    let text = std::fs::read_to_string(&file)
        .unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    // Imports have to come first.
    let (imports, rest): (Vec<&str>, Vec<&str>) =
        text.lines().partition(|line| line.starts_with("(import"));
    let text = format!(
        "(module {} {} {})",
        imports.join("\n"),
        pieces(&MIDDLEWARE_PIECES, &text),
        rest.join("\n").replace("(HANDLE", HANDLE)
    );
    let module = wat::parse_str(&text).unwrap_or_else(|error| panic!("{name}: {error}"));
    let mut resolve = Resolve::default();
    resolve.push_dir(root().join("wit/vllm-router-middleware-0.1")).unwrap();
    let packages = MIDDLEWARE_WORLD.map(|wit| resolve.push_str("guest.wit", wit).unwrap());
    let world = resolve.select_world(&packages[6..], Some("guest")).unwrap();
    encoded(module, &resolve, world)
}

/// The component of the guest `tests/guests/NAME.wat`.
///
/// # Panics
/// If there is none, or it is not well-formed.
pub fn build(name: &str) -> Vec<u8> {
    let file = root().join("tests/guests").join(format!("{name}.wat"));
    let text = std::fs::read_to_string(&file)
        .unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    component(&module(name, &text), "policy", |wit| wit)
}

/// The core module of a guest's text.
pub fn module(name: &str, text: &str) -> Vec<u8> {
    let length = format!("{:02x}", name.len());
    let pieces = pieces(&PIECES, text).replace("NAME_LENGTH", &length).replace("NAME", name);
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
    encoded(module.to_vec(), &resolve, world)
}

/// Those pieces that the text does not say it is without.
fn pieces(all: &[(&str, &str)], text: &str) -> String {
    let wanted = all.iter().filter(|(piece, _)| !text.contains(&format!(";; without {piece}")));
    wanted.map(|(_, code)| *code).collect()
}

fn encoded(mut module: Vec<u8>, resolve: &Resolve, world: WorldId) -> Vec<u8> {
    embed_component_metadata(&mut module, resolve, world, StringEncoding::UTF8, false).unwrap();
    let mut encoder = ComponentEncoder::default();
    encoder.validate(true).module(&module).and_then(|encoder| encoder.encode()).unwrap()
}
