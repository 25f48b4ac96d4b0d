//! Keys that replace those of a file, from a variant or the command line.

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::diagnostics::{Code, Diagnostics, Problem};
use crate::value::nearest;

/// Keys that can name an element of a list; an element can also be addressed by its index.
const NAME_KEYS: [&str; 3] = ["name", "class", "lane"];
/// A position past the end of every file, for keys that come from elsewhere.
const OUTSIDE: usize = usize::MAX;

/// A text that is not the dotted path of a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid key path \"{0}\": expected for example `fleet.switching.min-residency`")]
pub struct InvalidPath(String);

/// Keys that replace those of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Override(String);

impl Override {
    /// Replaces one key, given by its dotted TOML path such as `fleet.lanes.coder.slots`. A value
    /// that is not valid TOML is taken as a string.
    ///
    /// # Errors
    /// If `path` is not a dotted path of keys.
    pub fn key(path: &str, value: &str) -> Result<Self, InvalidPath> {
        let value = match DeValue::parse(value) {
            Ok(_) => value.to_owned(),
            Err(_) => toml::Value::from(value).to_string(),
        };
        let line = format!("{path} = {value}");
        let is_path = !path.contains(['=', '#', '\n', '\r', '[']) && DeTable::parse(&line).is_ok();
        if is_path { Ok(Self(line)) } else { Err(InvalidPath(path.to_owned())) }
    }

    /// Replaces all keys of a table.
    pub fn table(table: &toml::Table) -> Self {
        Self(table.to_string())
    }

    pub(crate) fn apply<'d>(&'d self, document: &mut DeTable<'d>, diagnostics: &Diagnostics<'_>) {
        // Both constructors produce valid TOML, so there is no error to report.
        if let Ok(table) = DeTable::parse(&self.0) {
            merge(document, without_position(table.into_inner()), "", diagnostics);
        }
    }
}

/// Returns the table with all positions moved past the end of the file.
fn without_position(table: DeTable<'_>) -> DeTable<'_> {
    let outside = |value| Spanned::new(OUTSIDE..OUTSIDE, value);
    table
        .into_iter()
        .map(|(key, value)| (outside(key.into_inner()), value_without_position(value)))
        .collect()
}

fn value_without_position(value: Spanned<DeValue<'_>>) -> Spanned<DeValue<'_>> {
    let value = match value.into_inner() {
        DeValue::Array(items) => {
            DeValue::Array(items.into_iter().map(value_without_position).collect())
        }
        DeValue::Table(table) => DeValue::Table(without_position(table)),
        plain => plain,
    };
    Spanned::new(OUTSIDE..OUTSIDE, value)
}

/// Merges tables key by key and replaces all other values. A table given in place of a list
/// addresses elements of the list by name or index.
pub(crate) fn merge<'d>(
    target: &mut DeTable<'d>,
    over: DeTable<'d>,
    path: &str,
    diagnostics: &Diagnostics<'_>,
) {
    for (key, value) in over {
        let path = if path.is_empty() {
            key.get_ref().to_string()
        } else {
            format!("{path}.{}", key.get_ref())
        };
        match target.get_mut(key.get_ref().as_ref()) {
            Some(target) => merge_value(target, value, &path, diagnostics),
            None => {
                target.insert(key, value);
            }
        }
    }
}

fn merge_value<'d>(
    target: &mut Spanned<DeValue<'d>>,
    over: Spanned<DeValue<'d>>,
    path: &str,
    diagnostics: &Diagnostics<'_>,
) {
    let place = over.span();
    match (target.get_mut(), over.into_inner()) {
        (DeValue::Table(target), DeValue::Table(over)) => merge(target, over, path, diagnostics),
        (DeValue::Array(items), DeValue::Table(over)) => {
            for (key, value) in over {
                let (place, name) = (key.span(), key.into_inner());
                let path = format!("{path}.{name}");
                match position(items, &name).and_then(|index| items.get_mut(index)) {
                    Some(item) => merge_value(item, value, &path, diagnostics),
                    None => diagnostics.add(place, &path, unknown_element(items, &name)),
                }
            }
        }
        (_, value) => *target = Spanned::new(place, value),
    }
}

fn names<'n>(item: &'n Spanned<DeValue<'_>>) -> impl Iterator<Item = &'n str> {
    let table = item.get_ref().as_table();
    NAME_KEYS.iter().filter_map(move |key| table?.get(*key)?.get_ref().as_str())
}

fn position(items: &[Spanned<DeValue<'_>>], name: &str) -> Option<usize> {
    let index = || name.parse().ok().filter(|index| *index < items.len());
    items.iter().position(|item| names(item).any(|of| of == name)).or_else(index)
}

fn unknown_element(items: &[Spanned<DeValue<'_>>], name: &str) -> Problem {
    let known: Vec<&str> = items.iter().flat_map(names).collect();
    let hint = match nearest(name, known.iter().copied()) {
        Some(near) => format!("did you mean `{near}`?"),
        None if known.is_empty() => format!("expected an index less than {}", items.len()),
        None => format!("expected one of `{}`", known.join("`, `")),
    };
    Code::UnknownName.with(format!("unknown list element \"{name}\"; {hint}"))
}

#[cfg(test)]
mod tests {
    use super::InvalidPath;
    use crate::{Code, Override, Section, read};

    const FILE: &str = "a = 1\n[b]\nc = 2\nd = [3, 4]\n\
        [[lanes]]\nname = \"coder\"\nslots = 8\n[[lanes]]\nname = \"7\"\n";

    fn read_file(overrides: &[Override]) -> Result<String, Vec<(usize, String, Code)>> {
        let all = |root: &Section<'_>| {
            let lanes: Vec<u32> =
                root.sections("lanes").iter().map(|lane| lane.integer("slots", 0..=9, 1)).collect();
            let b = root.section("b");
            let (c, d) = (b.integer("c", 0..=9, 0u32), b.json("d"));
            Some(format!("{} {c} {} {lanes:?}", root.string("a").unwrap_or("-"), d?))
        };
        read(FILE, overrides, all).map_err(|diagnostics| {
            diagnostics.into_iter().map(|error| (error.line, error.key, error.code)).collect()
        })
    }

    #[test]
    fn overrides_replace_keys_by_path() {
        let text = Override::key("a", "30/h").unwrap();
        for (path, value, expected) in [
            ("b.c", "5", "30/h 5 [3,4] [8, 1]"),
            ("b.d.1", "5", "30/h 2 [3,5] [8, 1]"),
            ("b.d", "[5]", "30/h 2 [5] [8, 1]"),
            ("b", "{ c = 0 }", "30/h 0 [3,4] [8, 1]"),
            ("lanes.coder.slots", "1", "30/h 2 [3,4] [1, 1]"),
            ("lanes.0.slots", "2", "30/h 2 [3,4] [2, 1]"),
            ("lanes.7.slots", "2", "30/h 2 [3,4] [8, 2]"),
            ("lanes.\"7\"", "{ slots = 4 }", "30/h 2 [3,4] [8, 4]"),
        ] {
            let overrides = [text.clone(), Override::key(path, value).unwrap()];
            assert_eq!(read_file(&overrides).as_deref(), Ok(expected), "{path} = {value}");
        }
    }

    #[test]
    fn errors_in_overrides_have_no_line() {
        let text = Override::key("a", "x").unwrap();
        for (path, value, code) in [
            ("b.c", "50", Code::OutOfRange),
            ("lanes.codr.slots", "1", Code::UnknownName),
            ("lanes.2.slots", "1", Code::UnknownName),
            ("b.d.2", "1", Code::UnknownName),
        ] {
            let overrides = [text.clone(), Override::key(path, value).unwrap()];
            let key = path.trim_end_matches(".slots").to_owned();
            assert_eq!(read_file(&overrides), Err(vec![(0, key, code)]), "{path} = {value}");
        }
        for path in ["", "a b", "a = 1 #", "[a]\nb", "a..b"] {
            assert_eq!(Override::key(path, "1"), Err(InvalidPath(path.to_owned())));
        }
        let table: toml::Table = "b.c = 7\na = \"y\"".parse().unwrap();
        assert_eq!(read_file(&[Override::table(&table)]).as_deref(), Ok("y 7 [3,4] [8, 1]"));
    }
}
