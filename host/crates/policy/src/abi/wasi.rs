//! The subset of WASI 0.2 for guests that expect an operating system: a clock that stands still,
//! random numbers seeded by the decision, and output that goes to the log. Guests
//! get no input, cannot block, and cannot leave the sandbox; all other functions of `wasi:` trap.
//!
//! The same request gets the same results, so every decision of such a guest can be reproduced.

use wasmtime::StoreContextMut;
use wasmtime::component::{Component, ComponentType, Linker, LinkerInstance, Lower, Resource};

use crate::host_calls::{HostState, Level};

/// The prefix of all interfaces of WASI.
pub(crate) const NAMESPACE: &str = "wasi:";
/// Maximum random bytes of one host call.
const MAX_RANDOM_BYTES: u64 = 64 << 10;
/// Maximum bytes of one write, as `check-write` returns.
const MAX_WRITE_BYTES: u64 = 4 << 10;
/// Maximum length of a line in bytes; the rest is dropped.
const MAX_LINE_BYTES: usize = 1 << 10;
/// Maximum lines of one call; further lines are dropped.
const MAX_LINES: u32 = 64;

/// A resource of WASI. All of them have one type in the host, because the type must be the one that
/// `Linker::define_unknown_imports_as_traps` uses; guests cannot confuse them, because the types of
/// a guest differ.
type AnyResource = Resource<()>;
type Cx<'a> = StoreContextMut<'a, HostState>;

/// The representation of the standard output stream.
const STDOUT: u32 = 0;
/// The representation of the standard error stream.
const STDERR: u32 = 1;
/// The representation of the only input stream, and of the only pollable, which is always ready.
const SINGLETON: u32 = 2;

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

/// The state of WASI during one decision.
#[derive(Debug, Default)]
pub(crate) struct Wasi {
    now_ms: u64,
    seed: u64,
    drawn: u64,
    lines_left: u32,
    /// Incomplete lines of [`STDOUT`] and [`STDERR`].
    partial_lines: [Vec<u8>; 2],
}

impl Wasi {
    /// Starts a decision.
    pub(crate) fn begin(&mut self, now_ms: u64, seed: u64) {
        *self = Self { now_ms, seed, lines_left: MAX_LINES, ..Self::default() };
    }

    /// Returns the next random number: SplitMix64 over a counter (Steele, Lea and Flood, OOPSLA
    /// 2014).
    fn draw(&mut self) -> u64 {
        self.drawn += 1;
        let mut z = self.seed.wrapping_add(self.drawn.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn bytes(&mut self, count: u64) -> wasmtime::Result<Vec<u8>> {
        wasmtime::ensure!(
            count <= MAX_RANDOM_BYTES,
            "{count} random bytes requested (maximum: {MAX_RANDOM_BYTES})"
        );
        let mut bytes = Vec::new();
        while (bytes.len() as u64) < count {
            bytes.extend_from_slice(&self.draw().to_le_bytes());
        }
        bytes.truncate(usize::try_from(count)?);
        Ok(bytes)
    }

    /// Appends text to an output. Returns the lines that it completes.
    fn write(&mut self, output: u32, text: &[u8]) -> Vec<String> {
        let Some(line) = self.partial_lines.get_mut(output as usize) else { return Vec::new() };
        let mut lines = Vec::new();
        for piece in text.split_inclusive(|byte| *byte == b'\n') {
            let (piece, ends) =
                piece.strip_suffix(b"\n").map_or((piece, false), |piece| (piece, true));
            let free = MAX_LINE_BYTES - line.len();
            line.extend_from_slice(&piece[..piece.len().min(free)]);
            if ends {
                let complete = String::from_utf8_lossy(line).into_owned();
                line.clear();
                if self.lines_left > 0 && !complete.trim().is_empty() {
                    self.lines_left -= 1;
                    lines.push(complete);
                }
            }
        }
        lines
    }
}

impl HostState {
    fn print(&mut self, output: u32, text: &[u8]) {
        let level = if output == STDERR { Level::Warn } else { Level::Info };
        for line in self.wasi.write(output, text) {
            self.log(level, &line);
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

type Defining<'a> = LinkerInstance<'a, HostState>;

fn random(mut to: Defining<'_>) -> wasmtime::Result<()> {
    to.func_wrap("get-random-bytes", |mut cx: Cx<'_>, (count,): (u64,)| {
        Ok((cx.data_mut().wasi.bytes(count)?,))
    })?;
    to.func_wrap("get-random-u64", |mut cx: Cx<'_>, (): ()| Ok((cx.data_mut().wasi.draw(),)))
}

fn insecure(mut to: Defining<'_>) -> wasmtime::Result<()> {
    to.func_wrap("get-insecure-random-bytes", |mut cx: Cx<'_>, (count,): (u64,)| {
        Ok((cx.data_mut().wasi.bytes(count)?,))
    })?;
    to.func_wrap("get-insecure-random-u64", |mut cx: Cx<'_>, (): ()| {
        Ok((cx.data_mut().wasi.draw(),))
    })
}

fn insecure_seed(mut to: Defining<'_>) -> wasmtime::Result<()> {
    for name in ["insecure-seed", "get-insecure-seed"] {
        to.func_wrap(name, |mut cx: Cx<'_>, (): ()| {
            let wasi = &mut cx.data_mut().wasi;
            Ok(((wasi.draw(), wasi.draw()),))
        })?;
    }
    Ok(())
}

fn wall_clock(mut to: Defining<'_>) -> wasmtime::Result<()> {
    to.func_wrap("now", |cx: Cx<'_>, (): ()| {
        let now_ms = cx.data().wasi.now_ms;
        let nanoseconds = u32::try_from(now_ms % 1000).unwrap_or(0) * 1_000_000;
        Ok((Datetime { seconds: now_ms / 1000, nanoseconds },))
    })?;
    to.func_wrap("resolution", |_: Cx<'_>, (): ()| {
        Ok((Datetime { seconds: 0, nanoseconds: 1_000_000 },))
    })
}

fn monotonic_clock(mut to: Defining<'_>) -> wasmtime::Result<()> {
    to.func_wrap("now", |cx: Cx<'_>, (): ()| {
        Ok((cx.data().wasi.now_ms.saturating_mul(1_000_000),))
    })?;
    to.func_wrap("resolution", |_: Cx<'_>, (): ()| Ok((1_000_000_u64,)))?;
    for name in ["subscribe-instant", "subscribe-duration"] {
        to.func_wrap(name, |_: Cx<'_>, (_when,): (u64,)| Ok((AnyResource::new_own(SINGLETON),)))?;
    }
    Ok(())
}

fn environment(mut to: Defining<'_>) -> wasmtime::Result<()> {
    to.func_wrap("get-environment", |_: Cx<'_>, (): ()| Ok((Vec::<(String, String)>::new(),)))?;
    to.func_wrap("get-arguments", |_: Cx<'_>, (): ()| Ok((Vec::<String>::new(),)))?;
    to.func_wrap("initial-cwd", |_: Cx<'_>, (): ()| Ok((None::<String>,)))
}

fn exit(mut to: Defining<'_>) -> wasmtime::Result<()> {
    to.func_wrap("exit", |_: Cx<'_>, (status,): (Result<(), ()>,)| -> wasmtime::Result<()> {
        wasmtime::bail!("called exit with {}", if status.is_ok() { "success" } else { "an error" })
    })
}

fn standard(mut to: Defining<'_>, name: &str, stream: u32) -> wasmtime::Result<()> {
    to.func_wrap(name, move |_: Cx<'_>, (): ()| Ok((AnyResource::new_own(stream),)))
}

fn no_terminal(mut to: Defining<'_>, name: &str) -> wasmtime::Result<()> {
    to.func_wrap(name, |_: Cx<'_>, (): ()| Ok((None::<AnyResource>,)))
}

fn streams(mut to: Defining<'_>) -> wasmtime::Result<()> {
    for name in ["[method]output-stream.write", "[method]output-stream.blocking-write-and-flush"] {
        to.func_wrap(name, |mut cx: Cx<'_>, (stream, text): (AnyResource, Vec<u8>)| {
            cx.data_mut().print(stream.rep(), &text);
            Ok((Ok::<(), StreamError>(()),))
        })?;
    }
    to.func_wrap("[method]output-stream.check-write", |_: Cx<'_>, (_stream,): (AnyResource,)| {
        Ok((Ok::<u64, StreamError>(MAX_WRITE_BYTES),))
    })?;
    for name in ["[method]output-stream.flush", "[method]output-stream.blocking-flush"] {
        to.func_wrap(name, |_: Cx<'_>, (_stream,): (AnyResource,)| {
            Ok((Ok::<(), StreamError>(()),))
        })?;
    }
    for name in ["[method]input-stream.read", "[method]input-stream.blocking-read"] {
        to.func_wrap(name, |_: Cx<'_>, (_stream, _count): (AnyResource, u64)| {
            Ok((Err::<Vec<u8>, _>(StreamError::Closed),))
        })?;
    }
    for name in ["[method]output-stream.subscribe", "[method]input-stream.subscribe"] {
        to.func_wrap(name, |_: Cx<'_>, (_stream,): (AnyResource,)| {
            Ok((AnyResource::new_own(SINGLETON),))
        })?;
    }
    Ok(())
}

/// Defines polling. Time stands still during a decision, so every pollable is ready.
fn poll(mut to: Defining<'_>) -> wasmtime::Result<()> {
    to.func_wrap("[method]pollable.ready", |_: Cx<'_>, (_pollable,): (AnyResource,)| Ok((true,)))?;
    to.func_wrap("[method]pollable.block", |_: Cx<'_>, (_pollable,): (AnyResource,)| Ok(()))?;
    to.func_wrap("poll", |_: Cx<'_>, (all,): (Vec<AnyResource>,)| {
        wasmtime::ensure!(!all.is_empty(), "poll of an empty list");
        Ok(((0..u32::try_from(all.len())?).collect::<Vec<u32>>(),))
    })
}

fn preopens(mut to: Defining<'_>) -> wasmtime::Result<()> {
    to.func_wrap("get-directories", |_: Cx<'_>, (): ()| Ok((Vec::<(AnyResource, String)>::new(),)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wasi(seed: u64) -> Wasi {
        let mut wasi = Wasi::default();
        wasi.begin(1, seed);
        wasi
    }

    #[test]
    fn random_numbers_are_seeded_by_the_decision() {
        let (mut one, mut same, mut other) = (wasi(7), wasi(7), wasi(8));
        let first = one.bytes(19).unwrap();
        assert_eq!(first.len(), 19);
        assert_eq!(first, same.bytes(19).unwrap());
        assert_ne!(first, one.bytes(19).unwrap(), "the sequence continues");
        assert_ne!(first, other.bytes(19).unwrap());
        assert!(one.bytes(u64::MAX).is_err());
        // The first output of the reference implementation for the state 0.
        assert_eq!(wasi(0).draw(), 0xe220_a839_7b1d_cdaf);
    }

    #[test]
    fn output_is_split_into_a_bounded_number_of_lines() {
        let mut wasi = wasi(0);
        assert!(wasi.write(STDOUT, b"hel").is_empty());
        assert!(wasi.write(STDERR, b"\n \n").is_empty(), "blank lines are skipped");
        assert_eq!(wasi.write(STDOUT, b"lo\nyou\nthere"), ["hello", "you"]);
        assert_eq!(wasi.write(STDOUT, b"\n"), ["there"]);
        assert_eq!(
            wasi.write(STDERR, &[b"x".repeat(5000), b"\n".to_vec()].concat())[0].len(),
            MAX_LINE_BYTES
        );
        assert_eq!(wasi.write(STDOUT, &b"y\n".repeat(1000)).len(), MAX_LINES as usize - 4);
        assert!(wasi.write(SINGLETON, b"z\n").is_empty());
    }
}
