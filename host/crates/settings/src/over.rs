//! Keys that are other than a file says: what a variant of it sets, or a command line.

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::mistakes::Mistakes;
use crate::section::nearest;

/// A list's elements are named by one of these keys of theirs, or by their index.
const NAMES: [&str; 3] = ["name", "class", "lane"];
/// Behind the end of every file.
const NOWHERE: usize = usize::MAX;

/// Keys that are other than the file says, said elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Over(String);

impl Over {
    /// One key, by its dotted path as TOML has it: `fleet.lanes.coder.slots`. What is not a value of TOML is a text.
    ///
    /// # Errors
    /// When that is no path.
    pub fn key(path: &str, value: &str) -> Result<Self, String> {
        let value = match DeValue::parse(value) {
            Ok(_) => value.to_owned(),
            Err(_) => toml::Value::from(value).to_string(),
        };
        let line = format!("{path} = {value}");
        let is_path = !path.contains(['=', '#', '\n', '\r', '[']) && DeTable::parse(&line).is_ok();
        is_path.then_some(Self(line)).ok_or_else(|| {
            format!("\"{path}\" is no path of a key; write for example `fleet.switching.residence`")
        })
    }

    /// All keys of a table.
    pub fn table(table: &toml::Table) -> Self {
        Self(table.to_string())
    }

    pub(crate) fn apply<'d>(&'d self, document: &mut DeTable<'d>, mistakes: &Mistakes<'_>) {
        // Both ways to make one have seen that it is TOML.
        if let Ok(table) = DeTable::parse(&self.0) {
            merge(document, elsewhere(table.into_inner()), "", mistakes);
        }
    }
}

/// The same keys, and they have no place in the file.
fn elsewhere(table: DeTable<'_>) -> DeTable<'_> {
    let place = |value| Spanned::new(NOWHERE..NOWHERE, value);
    table
        .into_iter()
        .map(|(key, value)| (place(key.into_inner()), value_elsewhere(value)))
        .collect()
}

fn value_elsewhere(value: Spanned<DeValue<'_>>) -> Spanned<DeValue<'_>> {
    let value = match value.into_inner() {
        DeValue::Array(items) => DeValue::Array(items.into_iter().map(value_elsewhere).collect()),
        DeValue::Table(table) => DeValue::Table(elsewhere(table)),
        plain => plain,
    };
    Spanned::new(NOWHERE..NOWHERE, value)
}

/// Tables are merged, key by key, and everything else is replaced. In place of a list a table names those of its elements
/// that are other.
pub(crate) fn merge<'d>(
    target: &mut DeTable<'d>,
    over: DeTable<'d>,
    path: &str,
    mistakes: &Mistakes<'_>,
) {
    for (key, value) in over {
        let path = if path.is_empty() {
            key.get_ref().to_string()
        } else {
            format!("{path}.{}", key.get_ref())
        };
        match target.get_mut(key.get_ref().as_ref()) {
            Some(target) => merge_value(target, value, &path, mistakes),
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
    mistakes: &Mistakes<'_>,
) {
    let place = over.span();
    match (target.get_mut(), over.into_inner()) {
        (DeValue::Table(target), DeValue::Table(over)) => merge(target, over, path, mistakes),
        (DeValue::Array(items), DeValue::Table(over)) => {
            for (key, value) in over {
                let (place, name) = (key.span(), key.into_inner());
                let path = format!("{path}.{name}");
                match position(items, &name).and_then(|index| items.get_mut(index)) {
                    Some(item) => merge_value(item, value, &path, mistakes),
                    None => mistakes.add(place, &path, nobody(items, &name)),
                }
            }
        }
        (_, value) => *target = Spanned::new(place, value),
    }
}

fn names<'n>(item: &'n Spanned<DeValue<'_>>) -> impl Iterator<Item = &'n str> {
    let table = item.get_ref().as_table();
    NAMES.iter().filter_map(move |key| table?.get(*key)?.get_ref().as_str())
}

fn position(items: &[Spanned<DeValue<'_>>], name: &str) -> Option<usize> {
    let index = || name.parse().ok().filter(|index| *index < items.len());
    items.iter().position(|item| names(item).any(|of| of == name)).or_else(index)
}

fn nobody(items: &[Spanned<DeValue<'_>>], name: &str) -> String {
    let known: Vec<&str> = items.iter().flat_map(names).collect();
    let hint = match nearest(name, known.iter().copied()) {
        Some(near) => format!("did you mean `{near}`?"),
        None if known.is_empty() => format!("write its index, of {} from 0", items.len()),
        None => format!("there is `{}`", known.join("`, `")),
    };
    format!("is in no list here; {hint}")
}

#[cfg(test)]
mod tests {
    use crate::{Over, Section, read};

    const FILE: &str = "a = 1\n[b]\nc = 2\nd = [3, 4]\n[[lanes]]\nname = \"coder\"\nslots = 8\n[[lanes]]\nname = \"7\"\n";

    fn shown(over: &[Over]) -> Result<String, Vec<String>> {
        let all = |root: &Section<'_>| {
            let lanes: Vec<u32> =
                root.sections("lanes").iter().map(|lane| lane.number("slots", 0..=9, 1)).collect();
            let b = root.section("b");
            let (c, d) = (b.number("c", 0..=9, 0u32), b.json("d"));
            Some(format!("{} {c} {} {lanes:?}", root.text("a").unwrap_or("-"), d?))
        };
        read(FILE, over, all).map_err(|mistakes| {
            mistakes.iter().map(|mistake| format!("{}: {mistake}", mistake.line)).collect()
        })
    }

    #[test]
    fn keys_are_set_by_their_paths() {
        let text = Over::key("a", "30/h").unwrap();
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
            let over = [text.clone(), Over::key(path, value).unwrap()];
            assert_eq!(shown(&over).as_deref(), Ok(expected), "{path} = {value}");
        }
    }

    #[test]
    fn what_cannot_be_set_is_said_without_a_line() {
        let text = Over::key("a", "x").unwrap();
        for (path, value, expected) in [
            ("b.c", "50", "0: b.c: `50` is not from 0 to 9"),
            ("lanes.codr.slots", "1", "0: lanes.codr: is in no list here; did you mean `coder`?"),
            ("lanes.2.slots", "1", "0: lanes.2: is in no list here; there is `coder`, `7`"),
            ("b.d.2", "1", "0: b.d.2: is in no list here; write its index, of 2 from 0"),
        ] {
            let over = [text.clone(), Over::key(path, value).unwrap()];
            assert_eq!(shown(&over).unwrap_err(), [expected], "{path} = {value}");
        }
        for path in ["", "a b", "a = 1 #", "[a]\nb", "a..b"] {
            assert!(Over::key(path, "1").unwrap_err().contains("is no path of a key"), "{path}");
        }
        let table: toml::Table = "b.c = 7\na = \"y\"".parse().unwrap();
        assert_eq!(shown(&[Over::table(&table)]).as_deref(), Ok("y 7 [3,4] [8, 1]"));
    }

    proptest::proptest! {
        #[test]
        fn nothing_makes_it_panic(path: String, value: String, file: String) {
            if let Ok(over) = Over::key(&path, &value) {
                let _result = read(&file, &[over], |root| Some(root.keys().len()));
            }
        }
    }
}
