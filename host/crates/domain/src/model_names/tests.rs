use super::NameKind::{Adapter, Derived, Listed, Own};
use super::*;

/// Three lanes: `a` and `b` share a listed model, and the folders of `b` and `c` end the same.
fn names() -> ModelNames<char> {
    let mut names = ModelNames::default();
    for (lane, own, listed, model) in [
        ('a', "reader", &["auto", "Qwen/Qwen3-8B"][..], "/models/reader.gguf"),
        ('b', "coder", &["auto", "coder-32b", "one/Same"], "/models/coder/awq"),
        ('c', "boss", &["deepseek-ai/R1", "two/Same"], "/models/boss/awq"),
        ('d', "awq-lane", &["coder"], "org/coder-32b"),
    ] {
        names.add(Own, own, lane);
        listed.iter().for_each(|name| names.add(Listed, name, lane));
        derived_names(model, None).iter().for_each(|name| names.add(Derived, name, lane));
    }
    names
}

#[test]
fn names_are_resolved_by_kind_and_spelling() {
    let names = names();
    for (name, key, lanes) in [
        // Listed names, of one lane and of two.
        ("Qwen/Qwen3-8B", "Qwen/Qwen3-8B", "a"),
        ("auto", "auto", "ab"),
        // A listed name wins over the name of a lane, and over a derived one.
        ("coder", "coder", "d"),
        ("coder-32b", "coder-32b", "b"),
        // Names of lanes.
        ("reader", "reader", "a"),
        ("boss", "boss", "c"),
        // The engine's model: as it is written, its folder's or file's name.
        ("/models/coder/awq", "/models/coder/awq", "b"),
        ("/models/coder/awq/", "/models/coder/awq", "b"),
        ("/models/coder/awq/model.safetensors", "/models/coder/awq", "b"),
        ("/models/coder/awq/model-00001-of-00002.safetensors", "/models/coder/awq", "b"),
        ("/models/reader.gguf", "/models/reader.gguf", "a"),
        ("reader.gguf", "reader.gguf", "a"),
        ("org/coder-32b", "org/coder-32b", "d"),
        // A derived name that two lanes share is that of both.
        ("awq", "awq", "bc"),
        // Without an organisation, of listed names and others.
        ("other/coder-32b", "coder-32b", "b"),
        ("openai/deepseek-ai/R1", "deepseek-ai/R1", "c"),
        ("any/reader.gguf", "reader.gguf", "a"),
        ("models/reader.gguf", "reader.gguf", "a"),
        // With the only organisation.
        ("Qwen3-8B", "Qwen/Qwen3-8B", "a"),
        ("R1", "deepseek-ai/R1", "c"),
    ] {
        let found = names.resolve(name).map(|(key, lanes)| (key, String::from_iter(lanes)));
        assert_eq!(found, Some((key, lanes.to_owned())), "{name}");
    }
}

/// Engines choose the names of their adapters.
#[test]
fn adapter_never_takes_the_name_of_another_lane() {
    let mut names = names();
    let taken = ["auto", "coder", "reader", "awq", "Qwen3-8B", "other/coder-32b", "R1"];
    let before = taken.map(|name| names.resolve(name).map(|(_, lanes)| lanes.to_vec()));
    for name in taken.into_iter().chain(["sql"]) {
        names.add(Adapter, name, 'e');
    }
    let after = taken.map(|name| names.resolve(name).map(|(_, lanes)| lanes.to_vec()));
    assert_eq!(after, before);
    assert_eq!(names.resolve("sql"), Some(("sql", &['e'][..])));
}

#[test]
fn other_names_are_unknown() {
    let long = format!("{}/auto", "x".repeat(MAX_SPELLED));
    let unknown = [
        "",
        "/",
        "qwen3-8b",
        "AUTO",
        "Same",
        "x/Same",
        "Qwen/",
        "/auto",
        "/models/coder",
        "other/Qwen3-8B",
        ".safetensors",
        "/model.safetensors",
        &long,
    ];
    for name in unknown {
        assert_eq!(names().resolve(name), None, "{name}");
    }
    let mut names = ModelNames::default();
    names.add(Listed, &long, 'a');
    assert!(names.resolve(&long).is_some(), "a long name is found as it is");
    assert_eq!(ModelNames::<char>::default().resolve("a"), None);
}

#[test]
fn names_follow_from_a_model() {
    let cases: [(&str, Option<&str>, &[&str]); 9] = [
        ("deepseek-ai/R1", None, &["deepseek-ai/R1", "R1"]),
        ("gpt2", None, &["gpt2"]),
        ("/m/coder/bf16/", None, &["/m/coder/bf16", "bf16"]),
        ("m/coder", Some("/conf/m/coder"), &["m/coder", "/conf/m/coder", "coder"]),
        ("/m/a.Q4_K_M.gguf", None, &["/m/a.Q4_K_M.gguf", "a.Q4_K_M.gguf", "a.Q4_K_M"]),
        (
            "a-00001-of-00003.gguf",
            Some("/m/a-00001-of-00003.gguf"),
            &["a-00001-of-00003.gguf", "/m/a-00001-of-00003.gguf", "a"],
        ),
        (
            "/c/models--org--name/snapshots/1f",
            None,
            &["/c/models--org--name/snapshots/1f", "org/name", "name", "1f"],
        ),
        ("org/name:Q4_K_M", None, &["org/name:Q4_K_M", "name:Q4_K_M", "org/name", "name"]),
        ("", Some(""), &[]),
    ];
    for (written, absolute, expected) in cases {
        assert_eq!(derived_names(written, absolute), expected, "{written}");
    }
}

#[test]
fn paths_are_told_from_names_on_a_hub() {
    for (model, expected) in [
        ("org/name", false),
        ("name", false),
        ("/m/name", true),
        ("./name", true),
        ("~/name", true),
        ("m/vllm/name", true),
        ("name.GGUF", true),
    ] {
        assert_eq!(is_local_path(model), expected, "{model}");
    }
}

proptest::proptest! {
    #[test]
    fn no_text_panics(name: String, written: String) {
        names().resolve(&name);
        let derived = derived_names(&written, Some(&name));
        proptest::prop_assert!(derived.iter().all(|name| !name.is_empty()));
    }

    #[test]
    fn an_exact_name_is_always_found(name in "[a-z/.:-]{1,12}") {
        let mut names = ModelNames::default();
        names.add(Derived, &name, 'a');
        proptest::prop_assert_eq!(names.resolve(&name), Some((&*name, &['a'][..])));
    }
}
