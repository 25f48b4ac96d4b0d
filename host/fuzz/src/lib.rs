//! Fuzzing on the stable toolchain: a target is a test, and its corpus are committed files.
//!
//! ```ignore
//! #[test]
//! fn manifests() {
//!     Fuzz::new("manifests").files("policies", "toml").run(|input| {
//!         let accepted = parse(input);
//!         // Assert properties.
//!         accepted.is_ok()
//!     });
//! }
//! ```
//!
//! The tests run a bounded number of inputs, which are mutations of the corpus. `cargo xtask fuzz`
//! runs a target for as long as wanted, and compiles the crate under test so that it counts which
//! of its code was reached (`coverage`): inputs that reach new code are kept and mutated further.
//!
//! | environment variable | effect |
//! |---|---|
//! | `POINTSMAN_FUZZ_SEED` | repeats a run with the seed that it has printed |
//! | `POINTSMAN_FUZZ_SECONDS` | runs for this time |
//! | `POINTSMAN_FUZZ_FOUND` | a folder for inputs that reach new code, read at the start |
//! | `POINTSMAN_FUZZ_INPUT` | runs this file only |

mod coverage;
pub mod json_schema;
mod mutate;

use std::fs;
use std::hash::{BuildHasher as _, DefaultHasher, Hash as _, Hasher as _, RandomState};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use self::coverage::Coverage;
use self::mutate::{Mutator, Random};

/// Number of inputs of a run without `POINTSMAN_FUZZ_SECONDS`.
const INPUTS: u64 = 10_000;
/// Maximum duration of such a run.
const MAX_DURATION: Duration = Duration::from_secs(4);
/// Maximum size of an input, and of a file of the corpus.
const MAX_BYTES: usize = 128 << 10;

/// A fuzz target and its corpus.
#[derive(Debug)]
pub struct Fuzz {
    target: &'static str,
    corpus: Vec<Vec<u8>>,
    words: Vec<Vec<u8>>,
}

/// What a run did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Totals {
    /// Number of inputs.
    pub inputs: u64,
    /// Number of inputs that the target has accepted.
    pub accepted: u64,
}

impl Fuzz {
    /// Returns a target with an empty corpus.
    pub fn new(target: &'static str) -> Self {
        Self { target, corpus: Vec::new(), words: Vec::new() }
    }

    /// Adds an input to the corpus.
    #[must_use]
    pub fn input(mut self, input: impl Into<Vec<u8>>) -> Self {
        self.corpus.push(input.into());
        self
    }

    /// Adds words that mutations insert, in addition to those that are in the corpus.
    #[must_use]
    pub fn words(mut self, words: &[&str]) -> Self {
        self.words.extend(words.iter().map(|word| word.as_bytes().to_vec()));
        self
    }

    /// Adds the files with this name ending in a folder of the repository, and in the folders
    /// below it.
    ///
    /// # Panics
    /// If there are no such files.
    #[must_use]
    pub fn files(mut self, folder: &str, ending: &str) -> Self {
        let before = self.corpus.len();
        read_files(&repository().join(folder), ending, &mut self.corpus);
        assert!(self.corpus.len() > before, "no files in {folder} end with {ending}");
        self
    }

    /// Runs the target with the corpus, and then with mutations of it. The target asserts
    /// properties, and returns true if it has accepted the input.
    ///
    /// # Panics
    /// If the target panics, after the input was written to a file. And if the target has accepted
    /// all inputs or none: then it would test only half of what it should.
    pub fn run(mut self, target: impl Fn(&[u8]) -> bool) -> Totals {
        if let Some(file) = std::env::var_os("POINTSMAN_FUZZ_INPUT") {
            let accepted = target(&fs::read(file).expect("POINTSMAN_FUZZ_INPUT cannot be read"));
            return Totals { inputs: 1, accepted: u64::from(accepted) };
        }
        let seconds = number("POINTSMAN_FUZZ_SECONDS");
        let seed = number("POINTSMAN_FUZZ_SEED")
            .unwrap_or_else(|| RandomState::new().hash_one(self.target) >> 32);
        let found = std::env::var_os("POINTSMAN_FUZZ_FOUND").map(PathBuf::from);
        if let Some(folder) = &found {
            fs::create_dir_all(folder).expect("POINTSMAN_FUZZ_FOUND cannot be written");
            read_files(folder, "", &mut self.corpus);
        }
        println!("fuzz {}: POINTSMAN_FUZZ_SEED={seed}", self.target);
        let time = seconds.map_or(MAX_DURATION, Duration::from_secs);
        let max_inputs = if seconds.is_some() { u64::MAX } else { INPUTS };
        let start = Instant::now();
        let mut coverage = Coverage::start();
        let mut random = Random::new(seed);
        let mutator = Mutator::new(&self.corpus, self.words);
        let mut totals = Totals { inputs: 0, accepted: 0 };
        let seeds = self.corpus.len() as u64;
        while totals.inputs < seeds || (totals.inputs < max_inputs && start.elapsed() < time) {
            let input = match usize::try_from(totals.inputs) {
                Ok(index) if totals.inputs < seeds => self.corpus[index].clone(),
                _ => mutator.mutate(&self.corpus, &mut random, MAX_BYTES),
            };
            match catch_unwind(AssertUnwindSafe(|| target(&input))) {
                Ok(accepted) => totals.accepted += u64::from(accepted),
                Err(panic) => {
                    report(self.target, seed, totals.inputs, &input);
                    resume_unwind(panic);
                }
            }
            if coverage.has_grown() && totals.inputs >= seeds {
                if let Some(folder) = &found {
                    fs::write(folder.join(name_of(&input)), &input).expect("cannot write an input");
                }
                self.corpus.push(input);
            }
            totals.inputs += 1;
        }
        println!(
            "fuzz {}: {} inputs in {:.1} s, {} accepted; corpus: {seeds} and {} more; {}",
            self.target,
            totals.inputs,
            start.elapsed().as_secs_f64(),
            totals.accepted,
            self.corpus.len() as u64 - seeds,
            coverage
        );
        assert!(
            totals.accepted > 0 && totals.accepted < totals.inputs,
            "the target accepts all inputs or none: {totals:?}"
        );
        totals
    }
}

/// Returns the value of an environment variable.
fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|error| panic!("{name}={text}: {error}")))
}

/// Returns the root of the repository.
fn repository() -> PathBuf {
    // Read at run time, because two clones may share a target directory.
    let package = std::env::var("CARGO_MANIFEST_DIR").expect("run by cargo");
    let root = Path::new(&package).ancestors().find(|folder| folder.join("Cargo.lock").exists());
    root.expect("within the repository").to_owned()
}

fn read_files(folder: &Path, ending: &str, into: &mut Vec<Vec<u8>>) {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{folder:?}: {error}"));
    let mut paths: Vec<PathBuf> =
        entries.map(|entry| entry.expect("cannot read a folder").path()).collect();
    // The same order everywhere, so that a seed repeats a run.
    paths.sort();
    for path in paths {
        if path.is_dir() {
            read_files(&path, ending, into);
        } else if path.to_string_lossy().ends_with(ending) {
            let bytes = fs::read(&path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
            if bytes.len() <= MAX_BYTES {
                into.push(bytes);
            }
        }
    }
}

fn name_of(input: &[u8]) -> String {
    let mut hasher = DefaultHasher::new();
    input.hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

/// Writes an input that made the target panic to a file.
fn report(target: &str, seed: u64, number: u64, input: &[u8]) {
    let file = std::env::temp_dir().join(format!("pointsman-{target}-{}", name_of(input)));
    let written = fs::write(&file, input);
    println!(
        "fuzz {target}: input {number} of seed {seed} fails. Repeat it with \
         POINTSMAN_FUZZ_INPUT={} ({written:?})\n{}",
        file.display(),
        String::from_utf8_lossy(&input[..input.len().min(2_000)])
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn planted_bug_is_found_and_reported() {
        let fuzz = Fuzz::new("planted").input(r#"{"tokens": 17, "role": "user"}"#);
        let run = || {
            fuzz.run(|input| {
                let text = String::from_utf8_lossy(input);
                assert!(!text.contains("-1"), "planted");
                text.contains("tokens")
            })
        };
        let panic = catch_unwind(AssertUnwindSafe(run)).unwrap_err();
        assert_eq!(panic.downcast_ref::<&str>(), Some(&"planted"));
    }

    #[test]
    fn vacuous_targets_are_refused() {
        for accepts in [true, false] {
            let fuzz = Fuzz::new("vacuous").input("a");
            assert!(catch_unwind(AssertUnwindSafe(|| fuzz.run(|_| accepts))).is_err());
        }
    }

    #[test]
    fn same_seed_gives_same_inputs() {
        let corpus = vec![b"[1, 2, 3]".to_vec(), b"model = \"a\"".to_vec()];
        let inputs = |seed| {
            let (mut random, mutator) = (Random::new(seed), Mutator::new(&corpus, Vec::new()));
            let mut next = || mutator.mutate(&corpus, &mut random, 100);
            (0..200).map(|_| next()).collect::<Vec<_>>()
        };
        assert_eq!(inputs(1), inputs(1));
        assert_ne!(inputs(1), inputs(2));
        assert!(inputs(3).iter().all(|input| input.len() <= 100));
    }
}
