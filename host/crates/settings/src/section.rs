//! Reading TOML so that *all* mistakes are found at once, each with its place.
//!
//! serde stops at the first mistake; so tables are read key by key from the parsed document, mistakes are collected, and
//! what nobody asked for is a mistake too.

use std::cell::RefCell;
use std::ops::{Range, RangeInclusive};
use std::time::Duration;

use pointsman_domain::units;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::mistakes::{Mistakes, Place};
use crate::over::merge;

/// One table of the file.
#[derive(Debug)]
pub struct Section<'a> {
    mistakes: &'a Mistakes<'a>,
    table: Option<&'a DeTable<'a>>,
    path: String,
    place: Range<usize>,
    asked: RefCell<Vec<String>>,
}

impl<'a> Section<'a> {
    /// The file itself.
    pub fn root(mistakes: &'a Mistakes<'a>, table: &'a DeTable<'a>) -> Self {
        Self {
            mistakes,
            table: Some(table),
            path: String::new(),
            place: 0..0,
            asked: RefCell::default(),
        }
    }

    /// The document that this table of a file would be with the keys of another one of its tables.
    pub fn merged(&self, over: &DeTable<'a>) -> DeTable<'a> {
        let mut table = self.table.cloned().unwrap_or_default();
        merge(&mut table, over.clone(), &self.path, self.mistakes);
        table
    }

    /// The root of another form of this document.
    pub fn form<'b>(&self, table: &'b DeTable<'b>) -> Section<'b>
    where
        'a: 'b,
    {
        Section::root(self.mistakes, table)
    }

    /// Dotted path of a key of this table.
    pub fn path(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// Note a mistake at `key` of this table, or at the table itself where the key is missing.
    pub fn mistake(&self, key: &str, what: impl Into<String>) {
        self.mistakes.add(self.range(key), &self.path(key), what);
    }

    /// Note a mistake about this table.
    pub fn wrong(&self, what: impl Into<String>) {
        self.mistakes.add(self.place.clone(), &self.path, what);
    }

    /// Is the key there?
    pub fn has(&self, key: &str) -> bool {
        self.value(key).is_some()
    }

    /// A text.
    pub fn text(&self, key: &str) -> Option<&'a str> {
        let value = self.value(key)?;
        let text = value.get_ref().as_str();
        if text.is_none() {
            self.wrong_type(key, value, "a text in quotes");
        }
        text
    }

    /// A text that has to be there and not empty.
    pub fn required_text(&self, key: &str, example: &str) -> Option<&'a str> {
        match self.text(key) {
            Some("") => self
                .mistake(key, format!("must not be empty; write for example `{key} = {example}`")),
            Some(text) => return Some(text),
            None if !self.has(key) => {
                self.mistake(key, format!("is missing; write for example `{key} = {example}`"))
            }
            None => {}
        }
        None
    }

    /// A whole number in this range.
    pub fn number<T: TryFrom<i64>>(&self, key: &str, range: RangeInclusive<i64>, default: T) -> T {
        let Some(value) = self.value(key) else { return default };
        let Some(integer) = value.get_ref().as_integer() else {
            self.wrong_type(key, value, "a whole number");
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
                self.mistake(key, format!("`{}` is not from {low} to {high}", integer.as_str()));
                default
            }
        }
    }

    /// A whole number that may be left out.
    pub fn count(&self, key: &str, range: RangeInclusive<i64>) -> Option<u32> {
        self.has(key).then(|| self.number(key, range, 1))
    }

    /// A number with or without decimals, as a text that can be parsed.
    pub fn decimal(&self, key: &str) -> Option<String> {
        let value = self.value(key)?;
        match value.get_ref() {
            DeValue::Float(float) => Some(float.as_str().replace('_', "")),
            DeValue::Integer(integer) => {
                let number =
                    i64::from_str_radix(&integer.as_str().replace('_', ""), integer.radix());
                // One that is out of range here is out of every range.
                Some(number.unwrap_or(i64::MAX).to_string())
            }
            _ => {
                self.wrong_type(key, value, "a number, such as 0.5");
                None
            }
        }
    }

    /// A word, or a whole number.
    pub fn word_or_number(&self, key: &str) -> Option<String> {
        match self.value(key)?.get_ref() {
            DeValue::Integer(_) => Some(self.number(key, 0..=1_000_000, 0u32).to_string()),
            _ => self.text(key).map(str::to_owned),
        }
    }

    /// `true` or `false`.
    pub fn flag(&self, key: &str, default: bool) -> bool {
        let Some(value) = self.value(key) else { return default };
        value.get_ref().as_bool().unwrap_or_else(|| {
            self.wrong_type(key, value, "true or false");
            default
        })
    }

    /// A duration with its unit.
    pub fn duration(&self, key: &str, default: Duration) -> Duration {
        self.parsed(key, units::duration).unwrap_or(default)
    }

    /// A duration that has to be more than nothing.
    pub fn pause(&self, key: &str, default: Duration) -> Duration {
        let duration = self.duration(key, default);
        if duration.is_zero() {
            self.mistake(key, "must be more than nothing");
        }
        duration
    }

    /// A size with its unit.
    pub fn bytes(&self, key: &str) -> Option<u64> {
        self.parsed(key, units::bytes)
    }

    /// A text with a form of its own.
    pub fn parsed<T>(&self, key: &str, parse: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        match parse(self.text(key)?) {
            Ok(parsed) => Some(parsed),
            Err(what) => {
                self.mistake(key, what);
                None
            }
        }
    }

    /// One of a few words.
    pub fn word<T: Copy>(&self, key: &str, words: &[(&str, T)], default: T) -> T {
        let Some(text) = self.text(key) else { return default };
        match words.iter().find(|(word, _)| *word == text) {
            Some((_, value)) => *value,
            None => {
                let known: Vec<String> =
                    words.iter().map(|(word, _)| format!("\"{word}\"")).collect();
                self.mistake(key, format!("there is no \"{text}\"; write {}", known.join(" or ")));
                default
            }
        }
    }

    /// A list of texts.
    pub fn texts(&self, key: &str) -> Option<Vec<String>> {
        let value = self.value(key)?;
        let array = value.get_ref().as_array();
        let texts = array.and_then(|array| {
            array.iter().map(|item| item.get_ref().as_str().map(str::to_owned)).collect()
        });
        if texts.is_none() {
            self.wrong_type(key, value, "a list of texts, such as [\"one\", \"two\"]");
        }
        texts
    }

    /// A table whose values are texts.
    pub fn text_pairs(&self, key: &str) -> Vec<(String, String)> {
        let Some(value) = self.value(key) else { return Vec::new() };
        let pair = |(name, value): (&Spanned<_>, &'a Spanned<DeValue<'a>>)| {
            let name: &std::borrow::Cow<'_, str> = name.get_ref();
            value.get_ref().as_str().map(|value| (name.to_string(), value.to_owned()))
        };
        let pairs = value.get_ref().as_table().and_then(|table| table.iter().map(pair).collect());
        pairs.unwrap_or_else(|| {
            self.wrong_type(key, value, "a table of texts, such as { name = \"value\" }");
            Vec::new()
        })
    }

    /// A table; an empty one where it is missing, so that its defaults apply.
    pub fn section(&self, key: &str) -> Section<'a> {
        let value = self.value(key);
        let table = value.and_then(|value| value.get_ref().as_table());
        if let (Some(value), None) = (value, table) {
            self.wrong_type(key, value, "a table");
        }
        let place = value.map_or(self.place.clone(), Spanned::span);
        Section {
            mistakes: self.mistakes,
            table,
            path: self.path(key),
            place,
            asked: RefCell::default(),
        }
    }

    /// A list of tables, written `[[key]]`.
    pub fn sections(&self, key: &str) -> Vec<Section<'a>> {
        let Some(value) = self.value(key) else { return Vec::new() };
        let Some(array) = value.get_ref().as_array() else {
            self.wrong_type(
                key,
                value,
                &format!("a list of tables, each written `[[{}]]`", self.path(key)),
            );
            return Vec::new();
        };
        let section = |(index, item): (usize, &'a Spanned<DeValue<'a>>)| {
            let path = format!("{}[{index}]", self.path(key));
            let table = item.get_ref().as_table();
            if table.is_none() {
                self.mistakes.add(item.span(), &path, "must be a table");
            }
            Section {
                mistakes: self.mistakes,
                table,
                path,
                place: item.span(),
                asked: RefCell::default(),
            }
        };
        array.iter().enumerate().map(section).collect()
    }

    /// Any value, as JSON.
    pub fn json(&self, key: &str) -> Option<serde_json::Value> {
        let value = self.value(key)?;
        match to_json(value.get_ref()) {
            Ok(json) => Some(json),
            Err(what) => {
                self.mistake(key, what);
                None
            }
        }
    }

    /// Every key that nobody asked for is a mistake.
    pub fn report_unknown(&self) {
        let asked = self.asked.borrow();
        for key in self.table.iter().flat_map(|table| table.keys()) {
            let name = key.get_ref();
            if asked.iter().any(|asked| asked == name) {
                continue;
            }
            let hint = match nearest(name, asked.iter().map(String::as_str)) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("known here: `{}`", asked.join("`, `")),
            };
            self.mistakes.add(key.span(), &self.path(name), format!("is not a key here; {hint}"));
        }
    }

    /// Any value. Asked for, it is known.
    pub fn value(&self, key: &str) -> Option<&'a Spanned<DeValue<'a>>> {
        let mut asked = self.asked.borrow_mut();
        if !asked.iter().any(|asked| asked == key) {
            asked.push(key.to_owned());
        }
        self.table?.get(key)
    }

    /// The keys that are there, for tables in which any may be.
    pub fn keys(&self) -> Vec<&'a str> {
        self.table.iter().flat_map(|table| table.keys()).map(|key| key.get_ref().as_ref()).collect()
    }

    /// Where a key of this table is, or the table itself where it is missing: for what can only be judged later.
    pub fn place(&self, key: &str) -> Place {
        self.mistakes.place(self.range(key), &self.path(key))
    }

    fn range(&self, key: &str) -> Range<usize> {
        self.table.and_then(|table| table.get(key)).map_or(self.place.clone(), Spanned::span)
    }

    /// Note that a value is of another type than it should be.
    pub fn wrong_type(&self, key: &str, value: &Spanned<DeValue<'_>>, wanted: &str) {
        let found = value.get_ref().type_str();
        self.mistakes.add(
            value.span(),
            &self.path(key),
            format!("must be {wanted}, and is of type {found}"),
        );
    }
}

/// The one of these names that was probably meant.
pub fn nearest<'n>(name: &str, known: impl IntoIterator<Item = &'n str>) -> Option<&'n str> {
    known
        .into_iter()
        .map(|known| (strsim::jaro_winkler(known, name), known))
        .filter(|(similarity, _)| *similarity > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, near)| near)
}

/// A duration as the file would have it: `90s`, `30m`.
pub fn shown(duration: Duration) -> String {
    let ms = duration.as_millis();
    for (factor, unit) in [(3_600_000, "h"), (60_000, "m"), (1000, "s")] {
        if ms >= factor && ms.is_multiple_of(factor) {
            return format!("{}{unit}", ms / factor);
        }
    }
    format!("{ms}ms")
}

fn to_json(value: &DeValue<'_>) -> Result<serde_json::Value, String> {
    use serde_json::Value;
    Ok(match value {
        DeValue::String(text) => Value::String(text.to_string()),
        DeValue::Boolean(flag) => Value::Bool(*flag),
        DeValue::Integer(integer) => {
            i64::from_str_radix(&integer.as_str().replace('_', ""), integer.radix())
                .map(Value::from)
                .map_err(|_| format!("`{}` is out of range", integer.as_str()))?
        }
        DeValue::Float(float) => float
            .as_str()
            .replace('_', "")
            .parse()
            .ok()
            .and_then(serde_json::Number::from_f64)
            .map(Value::Number)
            .ok_or_else(|| format!("`{}` has no form in JSON", float.as_str()))?,
        DeValue::Datetime(datetime) => Value::String(datetime.to_string()),
        DeValue::Array(array) => Value::Array(
            array.iter().map(|item| to_json(item.get_ref())).collect::<Result<_, _>>()?,
        ),
        DeValue::Table(table) => {
            let pair =
                |(key, value): (&Spanned<std::borrow::Cow<'_, str>>, &Spanned<DeValue<'_>>)| {
                    to_json(value.get_ref()).map(|json| (key.get_ref().to_string(), json))
                };
            Value::Object(table.iter().map(pair).collect::<Result<_, _>>()?)
        }
    })
}
