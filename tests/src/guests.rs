//! Guests: small policies in WebAssembly text, in `tests/guests`, which are built as components of
//! the contract.

mod guest;

use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::{Resolve, WorldId};

pub use self::guest::{ADVICE, Guest, replace_file};
use crate::host::root;

/// The default parts of a policy guest. A line `;; without NAME` in its text omits a part.
const POLICY_PARTS: [(&str, &str); 4] = [
    ("memory", r#"(memory (export "memory") 32)"#),
    // Always returns the same address, which is sufficient for a guest that keeps no memory.
    (
        "realloc",
        r#"(func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) (i32.const 65536))"#,
    ),
    (
        "describe",
        r#"(data (i32.const 16)
             "\40\00\00\00\NAME_LENGTH\00\00\00\80\00\00\00\01\00\00\00"
             "\00\00\00\00\00\00\00\00")
           (data (i32.const 64) "NAME") (data (i32.const 128) "1")
           (func (export "pointsman:policy/lifecycle@0.1.3#describe") (result i32)
             (i32.const 16))"#,
    ),
    // Returns a pointer to zeros, which is `ok`.
    (
        "configure",
        r#"(func (export "pointsman:policy/lifecycle@0.1.3#configure") (param i32 i32) (result i32)
             (i32.const 1024))"#,
    ),
];

/// The head of the function `advise`: the fifteen numbers of the context, and a pointer to the
/// advice. Zeros are advice without an opinion. It replaces `(ADVISE` in the text.
const ADVISE: &str = r#"(func (export "pointsman:policy/on-request@0.1.3#advise")
    (param i64 i64 i64 i64 i32 i32 i32 i32 i64 i32 i32 i32 i32 i32 i32) (result i32)"#;

/// The default parts of a guest that is a middleware for vLLM Router.
const MIDDLEWARE_PARTS: [(&str, &str); 3] = [
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

/// The head of a middleware's function `handle`, which replaces `(HANDLE` in the text.
const HANDLE: &str = r#"(func (export "vllm:router-middleware/on-request@0.1.0#handle")
    (param $method i32) (param $method_len i32) (param $path i32) (param $path_len i32)
    (param $query i32) (param $query_len i32) (param $headers i32) (param $headers_len i32)
    (param $body i32) (param $body_len i32) (param $id i32) (param $id_len i32) (result i32)"#;

/// The part of WASI that the middleware guests import, and their world.
const MIDDLEWARE_WORLD: [&str; 7] = [
    "package wasi:random@0.2.3; interface random { get-random-u64: func() -> u64; }",
    "package wasi:clocks@0.2.3;
     interface wall-clock { record datetime { seconds: u64, nanoseconds: u32 } now: func() -> \
     datetime; }",
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
     interface stderr { use wasi:io/streams@0.2.3.{output-stream}; get-stderr: func() -> \
     output-stream; }",
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

/// Builds the component of `tests/guests/middleware/NAME.wat`, a middleware for vLLM Router.
///
/// # Panics
/// If the file does not exist or is malformed.
pub fn middleware(name: &str) -> Vec<u8> {
    let file = root().join("tests/guests/middleware").join(format!("{name}.wat"));
    let text = std::fs::read_to_string(&file)
        .unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    // Imports must come first in a module.
    let (imports, rest): (Vec<&str>, Vec<&str>) =
        text.lines().partition(|line| line.starts_with("(import"));
    let text = format!(
        "(module {} {} {})",
        imports.join("\n"),
        default_parts(&MIDDLEWARE_PARTS, &text),
        rest.join("\n").replace("(HANDLE", HANDLE)
    );
    let module = wat::parse_str(&text).unwrap_or_else(|error| panic!("{name}: {error}"));
    let mut resolve = Resolve::default();
    resolve.push_dir(root().join("wit/vllm-router-middleware-0.1")).unwrap();
    let packages = MIDDLEWARE_WORLD.map(|wit| resolve.push_str("guest.wit", wit).unwrap());
    let world = resolve.select_world(&packages[6..], Some("guest")).unwrap();
    encode_component(module, &resolve, world)
}

/// Builds the component of the policy `tests/guests/NAME.wat`.
///
/// # Panics
/// If the file does not exist or is malformed.
pub fn build(name: &str) -> Vec<u8> {
    let file = root().join("tests/guests").join(format!("{name}.wat"));
    let text = std::fs::read_to_string(&file)
        .unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    component(&module(name, &text), "policy", |wit| wit)
}

/// Builds the core module of a policy from its text.
pub fn module(name: &str, text: &str) -> Vec<u8> {
    let length = format!("{:02x}", name.len());
    let parts =
        default_parts(&POLICY_PARTS, text).replace("NAME_LENGTH", &length).replace("NAME", name);
    let text = format!("(module {parts} {})", text.replace("(ADVISE", ADVISE));
    wat::parse_str(&text).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Builds a component for a world of the contract, whose text `change` may modify.
pub fn component(module: &[u8], world: &str, change: impl Fn(String) -> String) -> Vec<u8> {
    let mut wit = String::from("package pointsman:policy@0.1.3;\n");
    for file in ["types", "host", "policy"] {
        let text = std::fs::read_to_string(root().join(format!("wit/0.1/{file}.wit"))).unwrap();
        wit.push_str(
            &text
                .replace("package pointsman:policy@0.1.3;", "")
                .replace("/// The contract between", "// The contract between"),
        );
    }
    let mut resolve = Resolve::default();
    let package = resolve.push_str("policy.wit", &change(wit)).unwrap();
    let world = resolve.select_world(&[package], Some(world)).unwrap();
    encode_component(module.to_vec(), &resolve, world)
}

/// Returns the default parts that the text does not omit.
fn default_parts(all: &[(&str, &str)], text: &str) -> String {
    let used = all.iter().filter(|(part, _)| !text.contains(&format!(";; without {part}")));
    used.map(|(_, code)| *code).collect()
}

fn encode_component(mut module: Vec<u8>, resolve: &Resolve, world: WorldId) -> Vec<u8> {
    embed_component_metadata(&mut module, resolve, world, StringEncoding::UTF8).unwrap();
    ComponentEncoder::default()
        .validate(true)
        .module(&module)
        .and_then(|mut encoder| encoder.encode())
        .unwrap()
}
