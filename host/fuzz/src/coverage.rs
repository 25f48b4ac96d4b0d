//! Which code was reached, if the crates under test were compiled with `rustc-with-coverage`.
//!
//! LLVM's SanitizerCoverage pass gives each branch a counter of eight bits, and registers the
//! counters of each module when the program starts. The flags of the pass are part of the stable
//! compiler. Without them there are no counters, and no input reaches anything new.
#![expect(unsafe_code, reason = "LLVM registers the counters by a C function, as raw memory")]

use std::fmt;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, PoisonError};

/// The counters of all modules.
static COUNTERS: Mutex<Vec<&'static [AtomicU8]>> = Mutex::new(Vec::new());

/// Called by constructors of the instrumented modules, before `main`.
#[unsafe(no_mangle)]
extern "C" fn __sanitizer_cov_8bit_counters_init(start: *const AtomicU8, end: *const AtomicU8) {
    let length = (end as usize).saturating_sub(start as usize);
    if length > 0 && !start.is_null() {
        // SAFETY: the pass calls this with a section of static memory, whose bytes only its code
        // and this module use.
        let counters = unsafe { std::slice::from_raw_parts(start, length) };
        COUNTERS.lock().unwrap_or_else(PoisonError::into_inner).push(counters);
    }
}

/// The code that was reached so far.
#[derive(Debug)]
pub(crate) struct Coverage {
    counters: Vec<&'static [AtomicU8]>,
    /// For each counter the magnitudes it had, one bit each.
    seen: Vec<Vec<u8>>,
}

impl Coverage {
    pub(crate) fn start() -> Self {
        let counters = COUNTERS.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let seen = counters.iter().map(|counters| vec![0; counters.len()]).collect();
        let mut coverage = Self { counters, seen };
        // What ran before does not count.
        coverage.has_grown();
        coverage.seen.iter_mut().for_each(|seen| seen.fill(0));
        coverage
    }

    /// Returns true if a counter has a new magnitude since the last call, and resets all counters.
    pub(crate) fn has_grown(&mut self) -> bool {
        let mut grown = false;
        for (counters, seen) in self.counters.iter().zip(&mut self.seen) {
            for (counter, seen) in counters.iter().zip(seen) {
                let count = counter.load(Ordering::Relaxed);
                if count > 0 {
                    counter.store(0, Ordering::Relaxed);
                    let magnitude = 1 << count.ilog2();
                    grown |= *seen & magnitude == 0;
                    *seen |= magnitude;
                }
            }
        }
        grown
    }
}

impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all: usize = self.seen.iter().map(Vec::len).sum();
        let reached = self.seen.iter().flatten().filter(|seen| **seen != 0).count();
        match all {
            0 => write!(f, "coverage is not measured"),
            _ => write!(f, "{reached} of {all} branches reached"),
        }
    }
}
