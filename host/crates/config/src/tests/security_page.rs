//! The limits in `host/docs/security.md` are those of the code.

use std::fs;
use std::path::PathBuf;

use super::*;

const PAGE: &str = include_str!("../../../../docs/security.md");

/// A row of the table of limits.
struct Limit<'a> {
    /// The key, or the name of a constant.
    name: &'a str,
    default: &'a str,
}

fn limits() -> Vec<Limit<'static>> {
    let (_, table) = PAGE.split_once("| limit | key or constant | default |").unwrap();
    let rows = table.lines().skip(2).take_while(|line| line.starts_with('|'));
    rows.map(|row| {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        Limit { name: cells[2].trim_matches('`'), default: cells[3] }
    })
    .collect()
}

/// Returns a configuration with one lane, in which this key has this value, as text.
fn parsed(key: &str, value: &str) -> Result<String, String> {
    let quoted = match value.parse::<u64>() {
        Ok(_) => value.to_owned(),
        Err(_) => format!("{value:?}"),
    };
    let lane = "[[lanes]]\nname = \"a\"\n";
    let engine = "[lanes.engine]\ndriver = \"llama-cpp\"\nmodel = \"/m.gguf\"\n";
    let text = match key.strip_prefix("lanes.") {
        Some(key) => format!("{lane}{key} = {quoted}\n{engine}"),
        None if key.is_empty() => format!("{lane}{engine}"),
        None => format!("{key} = {quoted}\n{lane}{engine}"),
    };
    match Config::parse(&text, Path::new("/conf/pointsman.toml")) {
        Ok(config) => Ok(format!("{config:?}")),
        Err(errors) => Err(format!("{errors:?}")),
    }
}

/// Returns a similar value: the number is one larger.
fn other(value: &str) -> String {
    let end = value.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(value.len());
    let number: u64 = value[..end].parse().unwrap();
    format!("{}{}", number + 1, &value[end..])
}

#[test]
fn keys_have_the_defaults_of_the_page() {
    let without = parsed("", "").unwrap();
    let limits = limits();
    let keys = limits.iter().filter(|limit| limit.name.contains('.'));
    for Limit { name, default } in keys.clone() {
        assert_eq!(parsed(name, default).as_ref(), Ok(&without), "{name}");
        assert_ne!(parsed(name, &other(default)).as_ref(), Ok(&without), "{name} has no effect");
    }
    assert!(keys.count() > 5);
}

/// Constants are found in the source: `const NAME: … = VALUE;`.
#[test]
fn constants_have_the_values_of_the_page() {
    let sources = sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../.."));
    for Limit { name, default } in limits().iter().filter(|limit| !limit.name.contains('.')) {
        let start = format!("const {name}:");
        let values: Vec<&str> = sources
            .iter()
            .filter_map(|text| text.split_once(&start)?.1.split_once('=')?.1.split_once(';'))
            .map(|(value, _)| value.trim())
            .collect();
        let expected = in_rust(default);
        assert!(
            values.iter().any(|value| expected.contains(&(*value).to_owned())),
            "{name}: expected one of {expected:?}, found {values:?}"
        );
    }
}

/// Returns the expressions that mean the value of a table.
fn in_rust(value: &str) -> Vec<String> {
    let digits: String = value.chars().filter(char::is_ascii_digit).collect();
    let unit = value.trim_start_matches(|letter: char| letter.is_ascii_digit() || letter == ',');
    let shifted = |bits: u32| vec![format!("{digits} << {bits}")];
    match unit {
        "KiB" => shifted(10),
        "MiB" => shifted(20),
        "s" => vec![format!("Duration::from_secs({digits})")],
        "ms" => vec![format!("Duration::from_millis({digits})")],
        _ => vec![value.replace(',', "_"), digits],
    }
}

/// Returns the texts of all sources below a folder.
fn sources(folder: &Path) -> Vec<String> {
    let mut texts = Vec::new();
    let mut folders: Vec<PathBuf> = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                texts.push(fs::read_to_string(path).unwrap());
            }
        }
    }
    texts
}
