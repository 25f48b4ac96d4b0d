//! All keys that the reader accepts.

use super::*;

/// Returns all keys that are read, each with the path of its table, without positions in lists.
pub(super) fn all_keys() -> Vec<(String, String)> {
    let engine =
        |keys: &str| format!("[[lanes]]\nname = \"n\"\nzzz = 1\n[lanes.engine]\nzzz = 1\n{keys}\n");
    let listener = "zzz = 1\ntls = { zzz = 1 }\ncors = { zzz = 1 }\n";
    let tables = [
        "zzz = 1\n[log]\nzzz = 1\n[queue]\nzzz = 1\n[switching]\nzzz = 1\n[fleet]\nzzz = \
         1\n[[peers]]\nzzz = 1\n[access]\nzzz = 1\n[access.tokens]\nzzz = 1\n[state]\nzzz = \
         1\n[responses]\nzzz = 1\n[usage]\nzzz = 1\n[records]\nzzz = \
         1\nqueue = { zzz = 1 }\nredact = { zzz = 1 }\n\
         [admin]\nzzz = 1\n[console]\nzzz = 1\n[pick]\nzzz = 1\nhosts = [{ zzz = 1 }]\n\
         [shared-state]\nzzz = 1\n\
         sentinel = { zzz = 1 }\n[conversations]\nzzz = 1\n[telemetry]\nzzz = 1\n",
        &format!("[server]\n{listener}[[listeners]]\n{listener}"),
        "[policies]\nzzz = 1\nsigners = [{ zzz = 1 }]\n[[policies.chain]]\nzzz = 1\ncanary = { \
         zzz = 1 }\n\
         probation = { zzz = 1 }\n[[keys]]\nzzz = 1\n[[groups]]\nzzz = 1\n[[models]]\nzzz = 1\n\
         [[guards]]\nzzz = 1\nwhen = { zzz = 1 }\n[[registries]]\nzzz = 1\n",
        &engine("driver = \"vllm\"\n[lanes.engine.backoff]\nzzz = 1\n[lanes.liveness]\nzzz = 1"),
        &engine("driver = \"llama-cpp\"\n[lanes.timeouts]\nzzz = 1"),
        &engine("driver = \"llama-cpp\"\ncommand = []"),
        &engine("driver = \"command\""),
        &engine("driver = \"external\""),
        &engine("driver = \"pointsman\""),
    ];
    let errors = parse(&tables.concat()).unwrap_err();
    let known: Vec<(String, &str)> = errors
        .iter()
        .filter(|error| error.code == Code::UnknownKey && error.key.ends_with("zzz"))
        .filter_map(|error| {
            let table = error.key.trim_end_matches("zzz").trim_end_matches('.');
            let names = table.split('.').map(|name| name.split('[').next().unwrap());
            let names = names.collect::<Vec<_>>().join(".");
            Some((names, error.message.split_once("expected one of ")?.1))
        })
        .collect();
    assert_eq!(known.len(), 54, "{errors:#?}");
    let keys = |(table, keys): &(String, &str)| {
        let of = |key: &str| (table.clone(), key.trim_matches('`').to_owned());
        keys.split(", ").map(of).collect::<Vec<_>>()
    };
    known.iter().flat_map(keys).collect()
}

#[test]
fn reference_configuration_lists_all_keys() {
    let text = std::fs::read_to_string(example("pointsman.toml")).unwrap();
    for (_, key) in all_keys() {
        let is_there = [format!("{key} = "), format!("[{key}]"), format!(".{key}]")];
        let is_there = is_there.iter().any(|pattern| text.contains(pattern))
            || text.contains(&format!("[[{key}]]"));
        assert!(is_there || key == "key-file", "{key}");
    }
}
