//! Searches texts for several patterns in one pass.

use std::ops::ControlFlow;

use aho_corasick::Anchored;
use aho_corasick::automaton::{Automaton as _, StateID};
use aho_corasick::nfa::contiguous::{Builder, NFA};
use pointsman_domain::TextMatch;

/// A search for the first occurrence of each pattern.
#[derive(Debug)]
pub(crate) struct TextSearch {
    automaton: NFA,
    found: Vec<Option<TextMatch>>,
    /// The number of patterns that were not found yet.
    left: usize,
    /// The states of the automaton whose patterns were noted. A text may reach the same state at
    /// each of its bytes, and a state may stand for many patterns, so this keeps the search linear.
    noted: Vec<bool>,
}

impl TextSearch {
    /// Creates a search for patterns, of which callers limit number and size; `None` if they
    /// exceed what the automaton can have. `ignore_case` folds ASCII letters.
    pub(crate) fn new(patterns: &[String], ignore_case: bool) -> Option<Self> {
        let mut builder = Builder::new();
        // The automaton is used once, so it has to be built fast.
        let automaton = builder.ascii_case_insensitive(ignore_case).prefilter(false);
        Some(Self {
            automaton: automaton.build(patterns).ok()?,
            found: vec![None; patterns.len()],
            left: patterns.len(),
            noted: Vec::new(),
        })
    }

    /// Searches a text that begins at byte `begin` of a message. An occurrence does not extend to
    /// the next text. Breaks once all patterns were found.
    pub(crate) fn read(&mut self, message: u32, begin: u64, text: &str) -> ControlFlow<()> {
        let Ok(mut state) = self.automaton.start_state(Anchored::No) else {
            return ControlFlow::Break(());
        };
        self.note(state, message, begin);
        for (byte, end) in text.bytes().zip(begin + 1..) {
            state = self.automaton.next_state(Anchored::No, state, byte);
            if self.automaton.is_match(state) {
                self.note(state, message, end);
                if self.left == 0 {
                    break;
                }
            }
        }
        if self.left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    /// Returns the occurrences, in the order of the patterns.
    pub(crate) fn into_matches(self) -> Vec<TextMatch> {
        self.found.into_iter().flatten().collect()
    }

    /// Notes the patterns that end at byte `end` of a message, where the automaton is in `state`.
    fn note(&mut self, state: StateID, message: u32, end: u64) {
        let index = state.as_usize();
        if self.noted.len() <= index {
            self.noted.resize(index + 1, false);
        }
        if !self.automaton.is_match(state) || std::mem::replace(&mut self.noted[index], true) {
            return;
        }
        for part in 0..self.automaton.match_len(state) {
            let pattern = self.automaton.match_pattern(state, part);
            let length = self.automaton.pattern_len(pattern) as u64;
            let slot = &mut self.found[pattern.as_usize()];
            if slot.is_none() {
                self.left -= 1;
                let pattern = pattern.as_u32();
                *slot = Some(TextMatch { pattern, message, offset: end - length });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn search(patterns: &[String], ignore_case: bool, texts: &[String]) -> Vec<TextMatch> {
        let mut search = TextSearch::new(patterns, ignore_case).unwrap();
        for (message, text) in (0..).zip(texts) {
            if search.read(message, 0, text).is_break() {
                break;
            }
        }
        search.into_matches()
    }

    #[test]
    fn overlapping_patterns_are_all_found() {
        let patterns = ["catalog", "cat", "log", "at", "", "dog"].map(str::to_owned);
        let texts = ["a".to_owned(), "The CATalog".to_owned()];
        let found: Vec<(u32, u32, u64)> = search(&patterns, true, &texts)
            .iter()
            .map(|found| (found.pattern, found.message, found.offset))
            .collect();
        assert_eq!(found, [(0, 1, 4), (1, 1, 4), (2, 1, 8), (3, 1, 5), (4, 0, 0)]);
        assert_eq!(search(&patterns, false, &texts).len(), 2, "`log` and the empty pattern");
    }

    proptest! {
        #[test]
        fn first_occurrences_equal_those_of_single_searches(
            patterns in prop::collection::vec("[ab]{0,4}", 0..12),
            texts in prop::collection::vec("[abc]{0,24}", 0..4),
        ) {
            let first = |(index, pattern): (u32, &String)| {
                let found = |(message, text): (u32, &String)| {
                    let offset = text.find(pattern.as_str())? as u64;
                    Some(TextMatch { pattern: index, message, offset })
                };
                (0..).zip(&texts).find_map(found)
            };
            let expected: Vec<TextMatch> = (0..).zip(&patterns).filter_map(first).collect();
            prop_assert_eq!(search(&patterns, false, &texts), expected);
        }
    }
}
