//! The subset of WASI 0.2 for guests that expect an operating system: a clock that stands still,
//! random numbers seeded by the decision, and output that goes to the log. Guests
//! get no input, cannot block, and cannot leave the sandbox; all other functions of `wasi:` trap.
//!
//! The same request gets the same results, so every decision of such a guest can be reproduced.

use wasmtime::component::{
    Component, ComponentNamedList, ComponentType, Lift, Linker, LinkerInstance, Lower, Resource,
};
use wasmtime::{AsContextMut, StoreContextMut};

use crate::contract::host_state::HostState;
use crate::contract::shared::Level;
use crate::contract::wasi_state::{SINGLETON, STDERR, STDOUT};

/// The prefix of all interfaces of WASI.
const NAMESPACE: &str = "wasi:";
/// Maximum bytes of one write, as `check-write` returns.
const MAX_WRITE_BYTES: u64 = 4 << 10;

/// A resource of WASI. All of them have one type in the host, because the type must be the one that
/// `Linker::define_unknown_imports_as_traps` uses; guests cannot confuse them, because the types of
/// a guest differ.
type AnyResource = Resource<()>;
type Cx<'a> = StoreContextMut<'a, HostState>;
type Defining<'a> = LinkerInstance<'a, HostState>;

/// Defines a function. It is a host call like those of the contract, with the same limits.
fn function<P, R>(
    to: &mut Defining<'_>,
    name: &str,
    call: impl Fn(Cx<'_>, P) -> wasmtime::Result<R> + Send + Sync + 'static,
) -> wasmtime::Result<()>
where
    P: ComponentNamedList + Lift + 'static,
    R: ComponentNamedList + Lower + 'static,
{
    to.func_wrap(name, move |mut cx: Cx<'_>, params: P| {
        let result = call(cx.as_context_mut(), params);
        cx.data_mut().api().call(|_| ())?;
        result
    })
}

/// The error of a stream.
#[derive(ComponentType, Lower)]
#[component(variant)]
enum StreamError {
    #[component(name = "last-operation-failed")]
    #[expect(dead_code, reason = "part of the type; no operation fails")]
    LastOperationFailed(AnyResource),
    #[component(name = "closed")]
    Closed,
}

/// A point in time.
#[derive(ComponentType, Lower)]
#[component(record)]
struct Datetime {
    seconds: u64,
    nanoseconds: u32,
}

impl HostState {
    fn print(&mut self, output: u32, text: &[u8]) {
        let level = if output == STDERR { Level::Warn } else { Level::Info };
        for line in self.wasi.write(output, text) {
            self.shared.log(level, &line);
        }
    }

    /// Ends a decision: logs incomplete lines.
    pub(crate) fn end_output(&mut self) {
        for output in [STDOUT, STDERR] {
            self.print(output, b"\n");
        }
    }
}

/// Defines the imports of a component: the supported functions, and traps for all others.
pub(crate) fn define(
    linker: &mut Linker<HostState>,
    component: &Component,
) -> wasmtime::Result<()> {
    let kind = component.component_type();
    for (import, _) in
        kind.imports(component.engine()).filter(|(name, _)| name.starts_with(NAMESPACE))
    {
        // Under the exact name of the import: the traps below would shadow a definition for another
        // version.
        let instance = linker.instance(import)?;
        match import.split_once('@').map_or(import, |(interface, _)| interface) {
            "wasi:random/random" => random(instance)?,
            "wasi:random/insecure" => insecure(instance)?,
            "wasi:random/insecure-seed" => insecure_seed(instance)?,
            "wasi:clocks/wall-clock" => wall_clock(instance)?,
            "wasi:clocks/monotonic-clock" => monotonic_clock(instance)?,
            "wasi:cli/environment" => environment(instance)?,
            "wasi:cli/exit" => exit(instance)?,
            "wasi:cli/stdin" => standard(instance, "get-stdin", SINGLETON)?,
            "wasi:cli/stdout" => standard(instance, "get-stdout", STDOUT)?,
            "wasi:cli/stderr" => standard(instance, "get-stderr", STDERR)?,
            "wasi:cli/terminal-stdin" => no_terminal(instance, "get-terminal-stdin")?,
            "wasi:cli/terminal-stdout" => no_terminal(instance, "get-terminal-stdout")?,
            "wasi:cli/terminal-stderr" => no_terminal(instance, "get-terminal-stderr")?,
            "wasi:io/streams" => streams(instance)?,
            "wasi:io/poll" => poll(instance)?,
            "wasi:filesystem/preopens" => preopens(instance)?,
            _ => {}
        }
    }
    linker.define_unknown_imports_as_traps(component)
}

fn random(mut to: Defining<'_>) -> wasmtime::Result<()> {
    function(&mut to, "get-random-bytes", |mut cx: Cx<'_>, (count,): (u64,)| {
        Ok((cx.data_mut().wasi.bytes(count)?,))
    })?;
    function(&mut to, "get-random-u64", |mut cx: Cx<'_>, (): ()| Ok((cx.data_mut().wasi.draw(),)))
}

fn insecure(mut to: Defining<'_>) -> wasmtime::Result<()> {
    function(&mut to, "get-insecure-random-bytes", |mut cx: Cx<'_>, (count,): (u64,)| {
        Ok((cx.data_mut().wasi.bytes(count)?,))
    })?;
    function(&mut to, "get-insecure-random-u64", |mut cx: Cx<'_>, (): ()| {
        Ok((cx.data_mut().wasi.draw(),))
    })
}

fn insecure_seed(mut to: Defining<'_>) -> wasmtime::Result<()> {
    for name in ["insecure-seed", "get-insecure-seed"] {
        function(&mut to, name, |mut cx: Cx<'_>, (): ()| {
            let wasi = &mut cx.data_mut().wasi;
            Ok(((wasi.draw(), wasi.draw()),))
        })?;
    }
    Ok(())
}

fn wall_clock(mut to: Defining<'_>) -> wasmtime::Result<()> {
    function(&mut to, "now", |cx: Cx<'_>, (): ()| {
        let now_ms = cx.data().wasi.now_ms;
        let nanoseconds = u32::try_from(now_ms % 1000).unwrap_or(0) * 1_000_000;
        Ok((Datetime { seconds: now_ms / 1000, nanoseconds },))
    })?;
    function(&mut to, "resolution", |_: Cx<'_>, (): ()| {
        Ok((Datetime { seconds: 0, nanoseconds: 1_000_000 },))
    })
}

fn monotonic_clock(mut to: Defining<'_>) -> wasmtime::Result<()> {
    function(&mut to, "now", |cx: Cx<'_>, (): ()| {
        Ok((cx.data().wasi.now_ms.saturating_mul(1_000_000),))
    })?;
    function(&mut to, "resolution", |_: Cx<'_>, (): ()| Ok((1_000_000_u64,)))?;
    for name in ["subscribe-instant", "subscribe-duration"] {
        function(&mut to, name, |_: Cx<'_>, (_when,): (u64,)| {
            Ok((AnyResource::new_own(SINGLETON),))
        })?;
    }
    Ok(())
}

fn environment(mut to: Defining<'_>) -> wasmtime::Result<()> {
    function(&mut to, "get-environment", |_: Cx<'_>, (): ()| {
        Ok((Vec::<(String, String)>::new(),))
    })?;
    function(&mut to, "get-arguments", |_: Cx<'_>, (): ()| Ok((Vec::<String>::new(),)))?;
    function(&mut to, "initial-cwd", |_: Cx<'_>, (): ()| Ok((None::<String>,)))
}

fn exit(mut to: Defining<'_>) -> wasmtime::Result<()> {
    function(&mut to, "exit", |_: Cx<'_>, (status,): (Result<(), ()>,)| -> wasmtime::Result<()> {
        wasmtime::bail!("called exit with {}", if status.is_ok() { "success" } else { "an error" })
    })
}

fn standard(mut to: Defining<'_>, name: &str, stream: u32) -> wasmtime::Result<()> {
    function(&mut to, name, move |_: Cx<'_>, (): ()| Ok((AnyResource::new_own(stream),)))
}

fn no_terminal(mut to: Defining<'_>, name: &str) -> wasmtime::Result<()> {
    function(&mut to, name, |_: Cx<'_>, (): ()| Ok((None::<AnyResource>,)))
}

fn streams(mut to: Defining<'_>) -> wasmtime::Result<()> {
    for name in ["[method]output-stream.write", "[method]output-stream.blocking-write-and-flush"] {
        function(&mut to, name, |mut cx: Cx<'_>, (stream, text): (AnyResource, Vec<u8>)| {
            cx.data_mut().print(stream.rep(), &text);
            Ok((Ok::<(), StreamError>(()),))
        })?;
    }
    function(
        &mut to,
        "[method]output-stream.check-write",
        |_: Cx<'_>, (_stream,): (AnyResource,)| Ok((Ok::<u64, StreamError>(MAX_WRITE_BYTES),)),
    )?;
    for name in ["[method]output-stream.flush", "[method]output-stream.blocking-flush"] {
        function(&mut to, name, |_: Cx<'_>, (_stream,): (AnyResource,)| {
            Ok((Ok::<(), StreamError>(()),))
        })?;
    }
    for name in ["[method]input-stream.read", "[method]input-stream.blocking-read"] {
        function(&mut to, name, |_: Cx<'_>, (_stream, _count): (AnyResource, u64)| {
            Ok((Err::<Vec<u8>, _>(StreamError::Closed),))
        })?;
    }
    for name in ["[method]output-stream.subscribe", "[method]input-stream.subscribe"] {
        function(&mut to, name, |_: Cx<'_>, (_stream,): (AnyResource,)| {
            Ok((AnyResource::new_own(SINGLETON),))
        })?;
    }
    Ok(())
}

/// Defines polling. Time stands still during a decision, so every pollable is ready.
fn poll(mut to: Defining<'_>) -> wasmtime::Result<()> {
    function(&mut to, "[method]pollable.ready", |_: Cx<'_>, (_pollable,): (AnyResource,)| {
        Ok((true,))
    })?;
    function(&mut to, "[method]pollable.block", |_: Cx<'_>, (_pollable,): (AnyResource,)| Ok(()))?;
    function(&mut to, "poll", |_: Cx<'_>, (all,): (Vec<AnyResource>,)| {
        wasmtime::ensure!(!all.is_empty(), "poll of an empty list");
        Ok(((0..u32::try_from(all.len())?).collect::<Vec<u32>>(),))
    })
}

fn preopens(mut to: Defining<'_>) -> wasmtime::Result<()> {
    function(&mut to, "get-directories", |_: Cx<'_>, (): ()| {
        Ok((Vec::<(AnyResource, String)>::new(),))
    })
}
