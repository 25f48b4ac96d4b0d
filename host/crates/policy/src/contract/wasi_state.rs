//! The state of WASI during one decision: seeded random numbers, and incomplete lines of output.

/// Maximum random bytes of one host call.
const MAX_RANDOM_BYTES: u64 = 64 << 10;
/// Maximum length of a line in bytes; the rest is dropped.
const MAX_LINE_BYTES: usize = 1 << 10;
/// Maximum lines of one call; further lines are dropped.
const MAX_LINES: u32 = 64;

/// The representation of the standard output stream.
pub(crate) const STDOUT: u32 = 0;
/// The representation of the standard error stream.
pub(crate) const STDERR: u32 = 1;
/// The representation of the only input stream, and of the only pollable, which is always ready.
pub(crate) const SINGLETON: u32 = 2;

/// The state of WASI during one decision.
#[derive(Debug, Default)]
pub(crate) struct Wasi {
    pub(crate) now_ms: u64,
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
    pub(crate) fn draw(&mut self) -> u64 {
        self.drawn += 1;
        let mut z = self.seed.wrapping_add(self.drawn.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Returns random bytes.
    pub(crate) fn bytes(&mut self, count: u64) -> wasmtime::Result<Vec<u8>> {
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
    pub(crate) fn write(&mut self, output: u32, text: &[u8]) -> Vec<String> {
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
