use std::collections::BTreeSet;

use super::all_keys::all_keys;
use super::*;

#[test]
fn every_key_that_is_read_has_one_effect() {
    let tables: BTreeSet<String> = EFFECTS
        .iter()
        .flat_map(|group| {
            let parts: Vec<&str> = group.table.split('.').collect();
            (1..=parts.len()).map(move |count| parts[..count].join(".")).collect::<Vec<_>>()
        })
        .collect();
    let path = |(table, key): (String, String)| match table.as_str() {
        "" => key,
        table => format!("{table}.{key}"),
    };
    let read: BTreeSet<String> =
        all_keys().into_iter().map(path).filter(|path| !tables.contains(path)).collect();
    let of_group = |group: &'static KeyGroup| {
        group.keys.iter().map(move |key| format!("{}.{key}", group.table))
    };
    let listed: Vec<String> = EFFECTS.iter().flat_map(of_group).collect();
    let unique: BTreeSet<String> = listed.iter().cloned().collect();
    assert_eq!(unique.len(), listed.len(), "a key has two effects");
    let (missing, unknown): (Vec<_>, Vec<_>) =
        (read.difference(&unique).collect(), unique.difference(&read).collect());
    assert!(missing.is_empty(), "keys without an effect: {missing:?}");
    assert!(unknown.is_empty(), "keys that are not read: {unknown:?}");
}

#[test]
fn documentation_has_the_table() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/operations.md");
    let text = std::fs::read_to_string(file).unwrap();
    let (_, rest) = text.split_once("<!-- effects of keys: begin -->\n\n").unwrap();
    let (table, _) = rest.split_once("\n<!-- effects of keys: end -->").unwrap();
    let expected = effects_table();
    assert_eq!(table, expected, "\nwrite this into operations.md:\n{expected}");
}

fn changes(old: &str, new: &str) -> Vec<(String, ChangeKind, Effect)> {
    let [old, new] = [old, new].map(|text| text.parse::<toml::Table>().unwrap());
    let change = |change: KeyChange| (change.path, change.kind, change.effect);
    differences(&old, &new).into_iter().map(change).collect()
}

#[test]
fn differences_name_keys_and_entries() {
    use ChangeKind::{Added, Changed, Removed};
    let old = "log.level = \"info\"\n[[lanes]]\nname = \"a\"\nslots = 2\nlabels = { x = \"1\" }\n\
               [[lanes]]\nname = \"b\"\n[lanes.engine]\nurl = \"http://x\"\n\
               [[policies.chain]]\nname = \"p\"\n[[policies.chain]]\nname = \"q\"\n";
    let new = "log.level = \"debug\"\n[server]\ncors = { origins = [] }\n\
               [[lanes]]\nname = \"b\"\n[lanes.engine]\nurl = \"http://y\"\n\
               [[lanes]]\nname = \"a\"\nslots = 3\nlabels = { x = \"2\" }\n\
               [[lanes]]\nname = \"c.d\"\n[[listeners]]\naddress = \"127.0.0.1:1\"\n\
               [[policies.chain]]\nname = \"q\"\n[[policies.chain]]\nname = \"p\"\n";
    let expected = [
        ("lanes.\"c.d\"", Added, Effect::Now),
        ("lanes.a.labels", Changed, Effect::Now),
        ("lanes.a.slots", Changed, Effect::Now),
        ("lanes.b.engine.url", Changed, Effect::Lane),
        ("listeners.\"127.0.0.1:1\"", Added, Effect::Handover),
        ("log.level", Changed, Effect::Now),
        ("policies.chain", Changed, Effect::Now),
        ("server.cors.origins", Changed, Effect::Now),
    ];
    let expected = expected.map(|(path, kind, effect)| (path.to_owned(), kind, effect));
    assert_eq!(changes(old, new), expected);
    assert_eq!(changes(old, old), []);
    let removed = changes(new, old);
    assert!(removed.contains(&("lanes.\"c.d\"".to_owned(), Removed, Effect::Now)), "{removed:?}");
    // Entries without a name are told apart by their number.
    let key = "[[keys]]\ntenant = \"t\"\nenv = \"A\"\n";
    let two = format!("{key}{key}");
    assert_eq!(changes(key, &two), [("keys.\"t:A#2\"".to_owned(), Added, Effect::Now)]);
    assert_eq!(
        changes("", "[state]\ndir = \"x\"\n"),
        [("state.dir".to_owned(), Changed, Effect::Restart)]
    );
}
