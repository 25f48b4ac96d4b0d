//! As much of WASI 0.2 as a guest gets that was built to expect a system around it: a clock that stands still, random numbers
//! that are the decision's, and an output that ends in the log. There is nothing to read, nothing to wait for, and nothing
//! that leads out of the sandbox; all other functions of `wasi:` trap when they are called.
//!
//! The same request gives the same answers, so whatever such a guest decides can be decided again.

use wasmtime::StoreContextMut;
use wasmtime::component::{Component, ComponentType, Linker, LinkerInstance, Lower, Resource};

use crate::host_calls::{HostState, Level};

/// All interfaces of WASI begin with this.
pub(crate) const NAMESPACE: &str = "wasi:";
/// Random bytes that one question yields.
const MOST_RANDOM: u64 = 64 << 10;
/// Bytes that a guest may write at once, as its stream tells it.
const MOST_WRITE: u64 = 4 << 10;
/// Longest line that is put together from several writes.
const LONGEST_LINE: usize = 1 << 10;
/// Lines of one call; more are thrown away.
const MOST_LINES: u32 = 64;

/// Any resource of WASI. They have one type on our side, because the one that stands in for those that we do not know
/// (`Linker::define_unknown_imports_as_traps`) has to be the same; guests cannot mistake one for another, for theirs differ.
type Any = Resource<()>;
type Cx<'a> = StoreContextMut<'a, HostState>;

/// Which output a stream is, by the number that its handle stands for.
const STDOUT: u32 = 0;
const STDERR: u32 = 1;
/// What there is only one of: the input, and the thing that is always ready.
const ONLY: u32 = 2;

/// Why a stream gives nothing.
#[derive(ComponentType, Lower)]
#[component(variant)]
enum StreamError {
    #[component(name = "last-operation-failed")]
    #[expect(dead_code, reason = "part of the type, and nothing here fails")]
    LastOperationFailed(Any),
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

/// What a guest sees of the world during one decision.
#[derive(Debug, Default)]
pub(crate) struct Wasi {
    now_ms: u64,
    seed: u64,
    drawn: u64,
    lines_left: u32,
    /// Lines that have no end yet, of [`STDOUT`] and [`STDERR`].
    begun: [Vec<u8>; 2],
}

impl Wasi {
    /// Begin a decision.
    pub(crate) fn begin(&mut self, now_ms: u64, seed: u64) {
        *self = Self { now_ms, seed, lines_left: MOST_LINES, ..Self::default() };
    }

    /// The next random number: SplitMix64 over a counter (Steele, Lea and Flood, OOPSLA 2014).
    fn draw(&mut self) -> u64 {
        self.drawn += 1;
        let mut z = self.seed.wrapping_add(self.drawn.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn bytes(&mut self, count: u64) -> wasmtime::Result<Vec<u8>> {
        wasmtime::ensure!(count <= MOST_RANDOM, "it wants {count} random bytes at once");
        let mut bytes = Vec::new();
        while (bytes.len() as u64) < count {
            bytes.extend_from_slice(&self.draw().to_le_bytes());
        }
        bytes.truncate(usize::try_from(count)?);
        Ok(bytes)
    }

    /// Take what was written to an output; the lines that are complete with it.
    fn write(&mut self, output: u32, text: &[u8]) -> Vec<String> {
        let Some(begun) = self.begun.get_mut(output as usize) else { return Vec::new() };
        let mut lines = Vec::new();
        for piece in text.split_inclusive(|byte| *byte == b'\n') {
            let (piece, ends) =
                piece.strip_suffix(b"\n").map_or((piece, false), |piece| (piece, true));
            let room = LONGEST_LINE - begun.len();
            begun.extend_from_slice(&piece[..piece.len().min(room)]);
            if ends {
                let line = String::from_utf8_lossy(begun).into_owned();
                begun.clear();
                if self.lines_left > 0 && !line.trim().is_empty() {
                    self.lines_left -= 1;
                    lines.push(line);
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

    /// The decision is over: lines that were not ended are ended.
    pub(crate) fn end_output(&mut self) {
        for output in [STDOUT, STDERR] {
            self.print(output, b"\n");
        }
    }
}

/// Give a component all it wants of WASI, and traps for whatever else that is.
pub(crate) fn define(
    linker: &mut Linker<HostState>,
    component: &Component,
) -> wasmtime::Result<()> {
    let kind = component.component_type();
    for (import, _) in
        kind.imports(component.engine()).filter(|(name, _)| name.starts_with(NAMESPACE))
    {
        // Each under the name that it is imported by: the traps below would hide what is there under another version.
        let instance = linker.instance(import)?;
        match import.split_once('@').map_or(import, |(interface, _)| interface) {
            "wasi:random/random" => random(instance)?,
            "wasi:random/insecure" => insecure(instance)?,
            "wasi:random/insecure-seed" => insecure_seed(instance)?,
            "wasi:clocks/wall-clock" => wall_clock(instance)?,
            "wasi:clocks/monotonic-clock" => monotonic_clock(instance)?,
            "wasi:cli/environment" => environment(instance)?,
            "wasi:cli/exit" => exit(instance)?,
            "wasi:cli/stdin" => standard(instance, "get-stdin", ONLY)?,
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
        to.func_wrap(name, |_: Cx<'_>, (_when,): (u64,)| Ok((Any::new_own(ONLY),)))?;
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
        wasmtime::bail!(
            "it ends its program, {}",
            if status.is_ok() { "well" } else { "with an error" }
        )
    })
}

fn standard(mut to: Defining<'_>, name: &str, stream: u32) -> wasmtime::Result<()> {
    to.func_wrap(name, move |_: Cx<'_>, (): ()| Ok((Any::new_own(stream),)))
}

fn no_terminal(mut to: Defining<'_>, name: &str) -> wasmtime::Result<()> {
    to.func_wrap(name, |_: Cx<'_>, (): ()| Ok((None::<Any>,)))
}

fn streams(mut to: Defining<'_>) -> wasmtime::Result<()> {
    for name in ["[method]output-stream.write", "[method]output-stream.blocking-write-and-flush"] {
        to.func_wrap(name, |mut cx: Cx<'_>, (stream, text): (Any, Vec<u8>)| {
            cx.data_mut().print(stream.rep(), &text);
            Ok((Ok::<(), StreamError>(()),))
        })?;
    }
    to.func_wrap("[method]output-stream.check-write", |_: Cx<'_>, (_stream,): (Any,)| {
        Ok((Ok::<u64, StreamError>(MOST_WRITE),))
    })?;
    for name in ["[method]output-stream.flush", "[method]output-stream.blocking-flush"] {
        to.func_wrap(name, |_: Cx<'_>, (_stream,): (Any,)| Ok((Ok::<(), StreamError>(()),)))?;
    }
    for name in ["[method]input-stream.read", "[method]input-stream.blocking-read"] {
        to.func_wrap(name, |_: Cx<'_>, (_stream, _count): (Any, u64)| {
            Ok((Err::<Vec<u8>, _>(StreamError::Closed),))
        })?;
    }
    for name in ["[method]output-stream.subscribe", "[method]input-stream.subscribe"] {
        to.func_wrap(name, |_: Cx<'_>, (_stream,): (Any,)| Ok((Any::new_own(ONLY),)))?;
    }
    Ok(())
}

/// Time does not pass during a decision, so whatever is waited for is there.
fn poll(mut to: Defining<'_>) -> wasmtime::Result<()> {
    to.func_wrap("[method]pollable.ready", |_: Cx<'_>, (_it,): (Any,)| Ok((true,)))?;
    to.func_wrap("[method]pollable.block", |_: Cx<'_>, (_it,): (Any,)| Ok(()))?;
    to.func_wrap("poll", |_: Cx<'_>, (all,): (Vec<Any>,)| {
        wasmtime::ensure!(!all.is_empty(), "it waits for nothing");
        Ok(((0..u32::try_from(all.len())?).collect::<Vec<u32>>(),))
    })
}

fn preopens(mut to: Defining<'_>) -> wasmtime::Result<()> {
    to.func_wrap("get-directories", |_: Cx<'_>, (): ()| Ok((Vec::<(Any, String)>::new(),)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn world(seed: u64) -> Wasi {
        let mut wasi = Wasi::default();
        wasi.begin(1, seed);
        wasi
    }

    #[test]
    fn random_numbers_are_those_of_the_decision() {
        let (mut one, mut same, mut other) = (world(7), world(7), world(8));
        let first = one.bytes(19).unwrap();
        assert_eq!(first.len(), 19);
        assert_eq!(first, same.bytes(19).unwrap());
        assert_ne!(first, one.bytes(19).unwrap(), "they go on");
        assert_ne!(first, other.bytes(19).unwrap());
        assert!(one.bytes(u64::MAX).is_err());
        // The reference's first output for the state 0.
        assert_eq!(world(0).draw(), 0xe220_a839_7b1d_cdaf);
    }

    #[test]
    fn output_becomes_lines_and_not_too_many() {
        let mut wasi = world(0);
        assert!(wasi.write(STDOUT, b"hel").is_empty());
        assert!(wasi.write(STDERR, b"\n \n").is_empty(), "blank lines say nothing");
        assert_eq!(wasi.write(STDOUT, b"lo\nyou\nthere"), ["hello", "you"]);
        assert_eq!(wasi.write(STDOUT, b"\n"), ["there"]);
        assert_eq!(
            wasi.write(STDERR, &[b"x".repeat(5000), b"\n".to_vec()].concat())[0].len(),
            LONGEST_LINE
        );
        assert_eq!(wasi.write(STDOUT, &b"y\n".repeat(1000)).len(), MOST_LINES as usize - 4);
        assert!(wasi.write(ONLY, b"z\n").is_empty());
    }
}
