//! What is wrong with a file, and where.

use std::cell::RefCell;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// One mistake in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// Line, from 1; 0 where the mistake has no place in the file.
    pub line: usize,
    /// Dotted path of the key.
    pub key: String,
    /// What is wrong, and what to write instead.
    pub what: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.key.as_str() {
            "" => f.write_str(&self.what),
            key => write!(f, "{key}: {}", self.what),
        }
    }
}

/// A key of the file, remembered for what can only be judged later.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Place {
    line: usize,
    key: String,
}

impl Place {
    /// A mistake there.
    pub fn mistake(&self, what: impl Into<String>) -> Mistake {
        Mistake { line: self.line, key: self.key.clone(), what: what.into() }
    }
}

/// Collects the mistakes of one file.
#[derive(Debug)]
pub struct Mistakes<'a> {
    source: &'a str,
    found: RefCell<Vec<(Range<usize>, Mistake)>>,
}

impl<'a> Mistakes<'a> {
    /// None yet.
    pub fn new(source: &'a str) -> Self {
        Self { source, found: RefCell::default() }
    }

    /// Note a mistake at `place`, a byte range of the source. What lies behind its end was not said in the file.
    pub fn add(&self, place: Range<usize>, key: &str, what: impl Into<String>) {
        let mistake = self.place(place.clone(), key).mistake(what);
        self.found.borrow_mut().push((place, mistake));
    }

    /// All mistakes in the order of the file.
    pub fn into_sorted(self) -> Vec<Mistake> {
        let mut found = self.found.into_inner();
        found.sort_by_key(|(place, _)| place.start);
        let mut sorted: Vec<Mistake> = Vec::with_capacity(found.len());
        for (_, mistake) in found {
            // What several forms of a document have in common is read, and found wrong, in each of them.
            if !sorted.contains(&mistake) {
                sorted.push(mistake);
            }
        }
        sorted
    }

    pub(crate) fn place(&self, place: Range<usize>, key: &str) -> Place {
        let before = self.source.as_bytes().get(..place.start);
        let line =
            before.map_or(0, |before| before.iter().filter(|byte| **byte == b'\n').count() + 1);
        Place { line, key: key.to_owned() }
    }
}

/// Everything that is wrong with a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileError {
    file: PathBuf,
    mistakes: Vec<Mistake>,
}

impl FileError {
    /// These mistakes in this file.
    pub fn new(file: &Path, mistakes: Vec<Mistake>) -> Self {
        Self { file: file.to_owned(), mistakes }
    }

    /// The text of a file.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn source(file: &Path) -> Result<String, Self> {
        std::fs::read_to_string(file).map_err(|error| {
            let what = format!("cannot be read: {error}");
            Self::new(file, vec![Mistake { line: 0, key: String::new(), what }])
        })
    }

    /// The mistakes in the order of the file.
    pub fn mistakes(&self) -> &[Mistake] {
        &self.mistakes
    }
}

impl fmt::Display for FileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, mistake) in self.mistakes.iter().enumerate() {
            let newline = if index == 0 { "" } else { "\n" };
            match mistake.line {
                0 => write!(f, "{newline}{}: {mistake}", self.file.display())?,
                line => write!(f, "{newline}{}:{line}: {mistake}", self.file.display())?,
            }
        }
        Ok(())
    }
}

impl std::error::Error for FileError {}
