//! A reader of TOML tables that reports *all* errors in one pass, each with its position.
//!
//! serde stops at the first error. Here tables are read key by key from the parsed document, errors
//! are collected, and a key that was never read is reported as unknown.

use std::cell::RefCell;
use std::ops::{Range, RangeInclusive};
use std::time::Duration;

use pointsman_domain::units;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::diagnostics::{Code, Diagnostics, Location, Problem};
use crate::overrides::merge;
use crate::shape::Kind;
use crate::value::{found, missing, nearest, to_json};
use crate::variable::Variable;

/// One table of a file.
#[derive(Debug)]
pub struct Section<'a> {
    diagnostics: &'a Diagnostics<'a>,
    table: Option<&'a DeTable<'a>>,
    path: String,
    range: Range<usize>,
    known: RefCell<Known>,
}

/// The keys that were asked for, in one text: files of keys have thousands of tables.
#[derive(Debug, Default)]
struct Known {
    names: String,
    ends: Vec<usize>,
}

impl Known {
    fn add(&mut self, name: &str) {
        if !self.names().any(|known| known == name) {
            self.names.push_str(name);
            self.ends.push(self.names.len());
        }
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).filter_map(|(start, end)| self.names.get(start..*end))
    }
}

impl<'a> Section<'a> {
    /// Creates the reader of the root table.
    pub fn root(diagnostics: &'a Diagnostics<'a>, table: &'a DeTable<'a>) -> Self {
        Self {
            diagnostics,
            table: Some(table),
            path: String::new(),
            range: 0..0,
            known: RefCell::default(),
        }
    }

    /// Returns the names of the environment variables that secrets were read from, anywhere in the
    /// file so far. A process that the program starts must not inherit them.
    pub fn secret_variables(&self) -> Vec<String> {
        self.diagnostics.secret_variables()
    }

    /// Returns the references to environment variables in the file that were replaced.
    pub fn variables(&self) -> Vec<Variable> {
        self.diagnostics.variables()
    }

    /// Returns true if secrets are replaced by placeholders.
    pub(crate) fn is_without_secrets(&self) -> bool {
        self.diagnostics.is_without_secrets()
    }

    pub(crate) fn add_secret_variable(&self, name: &str) {
        self.diagnostics.add_secret_variable(name);
    }

    /// Returns a copy of this table with the keys of another table merged into it.
    pub fn merged(&self, over: &DeTable<'a>) -> DeTable<'a> {
        let mut table = self.table.cloned().unwrap_or_default();
        merge(&mut table, over.clone(), &self.path, self.diagnostics);
        table
    }

    /// Creates the reader of a derived document that reports to the same collection.
    pub fn subsection<'b>(&self, table: &'b DeTable<'b>) -> Section<'b>
    where
        'a: 'b,
    {
        Section::root(self.diagnostics, table)
    }

    /// Returns the dotted path of a key of this table.
    pub fn path(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// Reports an error at `key` of this table, or at the table itself if the key is missing.
    pub fn error_at(&self, key: &str, problem: impl Into<Problem>) {
        self.diagnostics.add(self.key_range(key), &self.path(key), problem);
    }

    /// Returns true if an error was reported at `key` of this table.
    pub fn has_error_at(&self, key: &str) -> bool {
        self.diagnostics.has_error_at(&self.key_range(key))
    }

    /// Reports an error about this table.
    pub fn error(&self, problem: impl Into<Problem>) {
        self.diagnostics.add(self.range.clone(), &self.path, problem);
    }

    /// Returns true if the table has the key.
    pub fn has(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    /// Reads a string.
    pub fn string(&self, key: &str) -> Option<&'a str> {
        self.note(key, Kind::Text);
        self.text(key)
    }

    fn text(&self, key: &str) -> Option<&'a str> {
        let value = self.get(key)?;
        let text = value.get_ref().as_str();
        if text.is_none() {
            self.wrong_type(key, value, "a string");
        }
        text
    }

    /// Reads a string that must be present and not empty.
    pub fn required_string(&self, key: &str, example: &str) -> Option<&'a str> {
        self.note(key, Kind::RequiredText);
        match self.text(key) {
            Some("") => self
                .error_at(key, format!("must not be empty; set for example `{key} = {example}`")),
            Some(text) => return Some(text),
            None if !self.has(key) => self.error_at(key, missing(format!("`{key} = {example}`"))),
            None => {}
        }
        None
    }

    /// Reads an integer within a range.
    pub fn integer<T: TryFrom<i64>>(&self, key: &str, range: RangeInclusive<i64>, default: T) -> T {
        self.note(key, Kind::Integer { min: *range.start(), max: *range.end() });
        let Some(value) = self.get(key) else { return default };
        let Some(integer) = value.get_ref().as_integer() else {
            self.wrong_type(key, value, "an integer");
            return default;
        };
        let number = i64::from_str_radix(&integer.as_str().replace('_', ""), integer.radix()).ok();
        match number
            .filter(|number| range.contains(number))
            .and_then(|number| T::try_from(number).ok())
        {
            Some(number) => number,
            None => {
                let (low, high) = range.into_inner();
                let message =
                    format!("{} is out of range: expected {low} to {high}", integer.as_str());
                self.error_at(key, Code::OutOfRange.with(message));
                default
            }
        }
    }

    /// Reads an integer that may be missing.
    pub fn optional_integer(&self, key: &str, range: RangeInclusive<i64>) -> Option<u32> {
        self.note(key, Kind::Integer { min: *range.start(), max: *range.end() });
        self.has(key).then(|| self.integer(key, range, 1))
    }

    /// Reads an integer or a float, and returns it as text in a form that `str::parse` accepts.
    pub fn decimal(&self, key: &str) -> Option<String> {
        self.note(key, Kind::Number);
        let value = self.get(key)?;
        match value.get_ref() {
            DeValue::Float(float) => Some(float.as_str().replace('_', "")),
            DeValue::Integer(integer) => {
                let number =
                    i64::from_str_radix(&integer.as_str().replace('_', ""), integer.radix());
                // A number that does not fit into an i64 is above the upper bound of every caller.
                Some(number.unwrap_or(i64::MAX).to_string())
            }
            _ => {
                self.wrong_type(key, value, "a number, for example 0.5");
                None
            }
        }
    }

    /// Reads a string, or an integer as text.
    pub fn string_or_integer(&self, key: &str) -> Option<String> {
        const RANGE: RangeInclusive<i64> = 0..=1_000_000;
        self.note(key, Kind::Text);
        self.note(key, Kind::Integer { min: *RANGE.start(), max: *RANGE.end() });
        match self.get(key)?.get_ref() {
            DeValue::Integer(_) => Some(self.integer(key, RANGE, 0u32).to_string()),
            _ => self.text(key).map(str::to_owned),
        }
    }

    /// Reads a boolean.
    pub fn bool(&self, key: &str, default: bool) -> bool {
        self.note(key, Kind::Bool);
        let Some(value) = self.get(key) else { return default };
        value.get_ref().as_bool().unwrap_or_else(|| {
            self.wrong_type(key, value, "a boolean");
            default
        })
    }

    /// Reads a duration with a unit.
    pub fn duration(&self, key: &str, default: Duration) -> Duration {
        self.note(key, Kind::Duration);
        self.parse_text(key, units::duration).unwrap_or(default)
    }

    /// Reads a duration that must be greater than zero.
    pub fn positive_duration(&self, key: &str, default: Duration) -> Duration {
        let duration = self.duration(key, default);
        if duration.is_zero() {
            self.error_at(key, Code::OutOfRange.with("must be greater than zero"));
        }
        duration
    }

    /// Reads a size in bytes, written with a unit.
    pub fn bytes(&self, key: &str) -> Option<u64> {
        self.note(key, Kind::Size);
        self.parse_text(key, units::bytes)
    }

    /// Reads a string and parses it.
    pub fn parsed<T, E: Into<Problem>>(
        &self,
        key: &str,
        parse: impl Fn(&str) -> Result<T, E>,
    ) -> Option<T> {
        self.note(key, Kind::Text);
        self.parse_text(key, parse)
    }

    fn parse_text<T, E: Into<Problem>>(
        &self,
        key: &str,
        parse: impl Fn(&str) -> Result<T, E>,
    ) -> Option<T> {
        match parse(self.text(key)?) {
            Ok(parsed) => Some(parsed),
            Err(error) => {
                self.error_at(key, error);
                None
            }
        }
    }

    /// Reads a string that must be one of a few choices.
    pub fn choice<T: Copy>(&self, key: &str, words: &[(&str, T)], default: T) -> T {
        self.note(key, Kind::Choice(words.iter().map(|(word, _)| (*word).to_owned()).collect()));
        let Some(text) = self.text(key) else { return default };
        match words.iter().find(|(word, _)| *word == text) {
            Some((_, value)) => *value,
            None => {
                let known: Vec<String> =
                    words.iter().map(|(word, _)| format!("\"{word}\"")).collect();
                let known = known.join(", ");
                self.error_at(key, format!("unknown value \"{text}\": expected one of {known}"));
                default
            }
        }
    }

    /// Reads a list of strings.
    pub fn strings(&self, key: &str) -> Option<Vec<String>> {
        self.note(key, Kind::Texts);
        let value = self.get(key)?;
        let array = value.get_ref().as_array();
        let texts = array.and_then(|array| {
            array.iter().map(|item| item.get_ref().as_str().map(str::to_owned)).collect()
        });
        if texts.is_none() {
            self.wrong_type(key, value, "a list of strings, for example [\"one\", \"two\"]");
        }
        texts
    }

    /// Reads a table whose values are strings.
    pub fn string_pairs(&self, key: &str) -> Vec<(String, String)> {
        self.note(key, Kind::TextPairs);
        let Some(value) = self.get(key) else { return Vec::new() };
        let pair = |(name, value): (&Spanned<_>, &'a Spanned<DeValue<'a>>)| {
            let name: &std::borrow::Cow<'_, str> = name.get_ref();
            value.get_ref().as_str().map(|value| (name.to_string(), value.to_owned()))
        };
        let pairs = value.get_ref().as_table().and_then(|table| table.iter().map(pair).collect());
        pairs.unwrap_or_else(|| {
            self.wrong_type(key, value, "a table of strings, for example { name = \"value\" }");
            Vec::new()
        })
    }

    /// Reads a table. A missing table reads as an empty one, so that defaults apply.
    pub fn section(&self, key: &str) -> Section<'a> {
        self.note(key, Kind::Table);
        let value = self.get(key);
        let table = value.and_then(|value| value.get_ref().as_table());
        if let (Some(value), None) = (value, table) {
            self.wrong_type(key, value, "a table");
        }
        let range = value.map_or(self.range.clone(), Spanned::span);
        Section {
            diagnostics: self.diagnostics,
            table,
            path: self.path(key),
            range,
            known: RefCell::default(),
        }
    }

    /// Reads a list of tables, written `[[key]]`.
    pub fn sections(&self, key: &str) -> Vec<Section<'a>> {
        self.note(key, Kind::Tables);
        let Some(value) = self.get(key) else { return Vec::new() };
        let Some(array) = value.get_ref().as_array() else {
            self.wrong_type(
                key,
                value,
                &format!("a list of tables, written `[[{}]]`", self.path(key)),
            );
            return Vec::new();
        };
        let section = |(index, item): (usize, &'a Spanned<DeValue<'a>>)| {
            let path = format!("{}[{index}]", self.path(key));
            let table = item.get_ref().as_table();
            if table.is_none() {
                self.diagnostics.add(item.span(), &path, Code::WrongType.with("expected a table"));
            }
            Section {
                diagnostics: self.diagnostics,
                table,
                path,
                range: item.span(),
                known: RefCell::default(),
            }
        };
        array.iter().enumerate().map(section).collect()
    }

    /// Reads any value as JSON.
    pub fn json(&self, key: &str) -> Option<serde_json::Value> {
        let value = self.value(key)?;
        match to_json(value.get_ref()) {
            Ok(json) => Some(json),
            Err(problem) => {
                self.error_at(key, problem);
                None
            }
        }
    }

    /// Reports every key that was never read as unknown.
    pub fn report_unknown(&self) {
        self.diagnostics.recorder().inspect(|recorder| recorder.close(&self.path));
        let known = self.known.borrow();
        for key in self.table.iter().flat_map(|table| table.keys()) {
            let name = key.get_ref();
            if known.names().any(|known| known == name) {
                continue;
            }
            let hint = match nearest(name, known.names()) {
                Some(near) => format!("did you mean `{near}`?"),
                None => {
                    let known: Vec<&str> = known.names().collect();
                    format!("expected one of `{}`", known.join("`, `"))
                }
            };
            let problem = Code::UnknownKey.with(format!("unknown key; {hint}"));
            self.diagnostics.add(key.span(), &self.path(name), problem);
        }
    }

    /// Returns any value, and marks its key as known.
    pub fn value(&self, key: &str) -> Option<&'a Spanned<DeValue<'a>>> {
        self.note(key, Kind::Any);
        self.get(key)
    }

    /// Notes how a key is read.
    fn note(&self, key: &str, kind: Kind) {
        self.diagnostics.recorder().inspect(|recorder| recorder.read(&self.path, key, kind));
    }

    fn get(&self, key: &str) -> Option<&'a Spanned<DeValue<'a>>> {
        self.diagnostics.recorder().inspect(|recorder| recorder.know(&self.path, key));
        // A table that is missing has no unknown keys.
        let table = self.table?;
        self.known.borrow_mut().add(key);
        table.get(key)
    }

    /// Returns the keys of the table, for tables with arbitrary keys.
    pub fn keys(&self) -> Vec<&'a str> {
        self.table.iter().flat_map(|table| table.keys()).map(|key| key.get_ref().as_ref()).collect()
    }

    /// Returns the position of a key, or of the table if the key is missing, for errors that are
    /// detected after reading.
    pub fn location(&self, key: &str) -> Location {
        self.diagnostics.location(self.key_range(key), &self.path(key))
    }

    fn key_range(&self, key: &str) -> Range<usize> {
        self.table.and_then(|table| table.get(key)).map_or(self.range.clone(), Spanned::span)
    }

    /// Reports a value of the wrong type.
    pub fn wrong_type(&self, key: &str, value: &Spanned<DeValue<'_>>, expected: &str) {
        let message = format!("expected {expected}, found {}", found(value.get_ref()));
        self.diagnostics.add(value.span(), &self.path(key), Code::WrongType.with(message));
    }
}
