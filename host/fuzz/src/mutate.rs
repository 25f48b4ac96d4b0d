//! Mutations of inputs.

use std::collections::BTreeSet;

/// Numbers at the edges of types, and others that parsers treat differently.
const NUMBERS: [&str; 16] = [
    "0",
    "-1",
    "1",
    "255",
    "256",
    "65536",
    "2147483648",
    "4294967295",
    "4294967296",
    "9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "1e999",
    "-0.0",
    "0.1",
    "NaN",
];
/// Bytes with a meaning in JSON, TOML, HTTP, server-sent events and WebAssembly.
const BYTES: [u8; 24] = *b"\0\n\r\t \"'\\,:;=.-#[]{}()\x7f\x80\xff";
/// Maximum number of mutations of an input.
const MAX_MUTATIONS: usize = 6;

/// A pseudo-random generator (xorshift64*): the same seed gives the same numbers.
#[derive(Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        // The state must not be zero, and small seeds would begin with small numbers.
        Self((seed ^ 0x9e37_79b9_7f4a_7c15).max(1).wrapping_mul(0x2545_f491_4f6c_dd1d) | 1)
    }

    /// Returns a number below `end`, and 0 if `end` is 0.
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let number = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16;
        (number % (end as u64).max(1)) as usize
    }

    fn choose<'a, T>(&mut self, items: &'a [T]) -> Option<&'a T> {
        items.get(self.below(items.len()))
    }
}

/// Mutates inputs of a corpus.
#[derive(Debug)]
pub(crate) struct Mutator {
    words: Vec<Vec<u8>>,
}

impl Mutator {
    /// Returns a mutator that inserts these words and those of the corpus.
    pub(crate) fn new(corpus: &[Vec<u8>], words: Vec<Vec<u8>>) -> Self {
        let mut all: BTreeSet<Vec<u8>> = words.into_iter().collect();
        let is_word = |byte: &u8| byte.is_ascii_alphanumeric() || b"_-.\"".contains(byte);
        for input in corpus {
            let found = input.split(|byte| !is_word(byte)).filter(|word| !word.is_empty());
            all.extend(found.filter(|word| word.len() <= 40).map(<[u8]>::to_vec));
        }
        all.extend(NUMBERS.map(|number| number.as_bytes().to_vec()));
        Self { words: all.into_iter().collect() }
    }

    /// Returns a mutation of one of the inputs, of at most `max` bytes.
    pub(crate) fn mutate(&self, corpus: &[Vec<u8>], random: &mut Random, max: usize) -> Vec<u8> {
        let mut input = random.choose(corpus).cloned().unwrap_or_default();
        for _ in 0..=random.below(MAX_MUTATIONS) {
            self.mutate_once(&mut input, corpus, random);
        }
        input.truncate(max);
        input
    }

    fn mutate_once(&self, input: &mut Vec<u8>, corpus: &[Vec<u8>], random: &mut Random) {
        let at = random.below(input.len() + 1);
        let length = 1 << random.below(9);
        let range = at..(at + random.below(length)).min(input.len());
        match random.below(11) {
            0 if at < input.len() => input[at] ^= 1 << random.below(8),
            1 if at < input.len() => input[at] = *random.choose(&BYTES).unwrap_or(&0),
            2 => input.insert(at, *random.choose(&BYTES).unwrap_or(&0)),
            3 => drop(input.drain(range)),
            4 => input.truncate(at),
            5 => {
                let copy = input[range].to_vec();
                let to = random.below(input.len() + 1);
                input.splice(to..to, copy);
            }
            6 => {
                // The end of another input.
                let other = random.choose(corpus).cloned().unwrap_or_default();
                input.truncate(at);
                input.extend_from_slice(&other[random.below(other.len() + 1)..]);
            }
            7 => {
                let word = random.choose(&self.words).cloned().unwrap_or_default();
                input.splice(at..at, word);
            }
            8 => replace(input, at, random.choose(&self.words), is_word),
            9 => {
                let number = random.choose(&NUMBERS).map(|number| number.as_bytes().to_vec());
                replace(input, at, number.as_ref(), |byte| byte.is_ascii_digit());
            }
            // Of any bytes.
            _ => {
                let bytes: Vec<u8> =
                    (0..random.below(8)).map(|_| random.below(256) as u8).collect();
                input.splice(range, bytes);
            }
        }
    }
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"_-.".contains(&byte)
}

/// Replaces the next run of such bytes.
fn replace(input: &mut Vec<u8>, at: usize, with: Option<&Vec<u8>>, is_part: fn(u8) -> bool) {
    let (Some(start), Some(with)) = (input[at..].iter().position(|byte| is_part(*byte)), with)
    else {
        return;
    };
    let start = at + start;
    let length = input[start..].iter().take_while(|byte| is_part(**byte)).count();
    input.splice(start..start + length, with.iter().copied());
}
