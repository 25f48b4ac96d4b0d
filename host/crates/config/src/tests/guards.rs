use pointsman_domain::Endpoint;

use super::*;

const LANE: &str =
    "[[lanes]]\nname = \"a\"\n[lanes.engine]\ndriver = \"llama-cpp\"\nmodel = \"a\"\n";

#[test]
fn guards_are_read() {
    let text = r#"
[[guards]]
name = "eu"
only-labels = { region = "eu" }
never-labels = { tier = "trial" }
never-external = true
keep-model = true
max-output-tokens = 100
min-priority = -3
[guards.when]
tenants = ["t"]
groups = ["g"]
headers = { X-Class = "secret" }
endpoints = ["embeddings"]
min-body = "1KiB"
min-prompt-tokens = 9
[[guards]]
name = "local"
never-external = true
"#;
    let guards = parse(&format!("{text}{LANE}")).unwrap().guards.0;
    let [eu, local] = guards.as_slice() else { panic!("{guards:?}") };
    let pair = |key: &str, value: &str| vec![(key.to_owned(), value.to_owned())];
    assert_eq!(&*eu.applied.name, "eu");
    let rules = &eu.applied.rules;
    assert_eq!(
        (&rules.only_labels, &rules.never_labels),
        (&pair("region", "eu"), &pair("tier", "trial"))
    );
    assert!(rules.never_external && rules.keep_model);
    assert_eq!(rules.max_output_tokens, Some(100));
    assert_eq!(rules.priority, Some((-3, i32::MAX)));
    assert_eq!(eu.when.headers, pair("x-class", "secret"));
    assert_eq!(eu.when.endpoints, [Endpoint::Embeddings]);
    assert_eq!(
        (eu.when.tenants.as_slice(), eu.when.groups.as_slice()),
        (&["t".to_owned()][..], &["g".to_owned()][..])
    );
    assert_eq!((eu.when.min_body, eu.when.min_prompt_tokens), (1024, 9));
    assert_eq!(local.when, Default::default());
    assert_eq!((local.applied.rules.keep_model, local.applied.rules.priority), (false, None));
}

#[test]
fn errors_in_guards_name_their_keys() {
    let guard = |keys: &str| format!("[[guards]]\nname = \"g\"\n{keys}\n");
    for (text, key, code) in [
        (guard(""), "guards[0]", Code::MissingKey),
        ("[[guards]]\nnever-external = true\n".to_owned(), "guards[0].name", Code::MissingKey),
        (guard("never-external = true\n").repeat(2), "guards[1].name", Code::Duplicate),
        (
            guard("only-labels = { a = \"b\" }\nnever-labels = { a = \"b\" }"),
            "guards[0].never-labels",
            Code::Conflict,
        ),
        (guard("min-priority = 2\nmax-priority = 1"), "guards[0].max-priority", Code::Conflict),
        (guard("max-output-tokens = 0"), "guards[0].max-output-tokens", Code::OutOfRange),
        (
            guard("keep-model = true\nwhen.endpoints = [\"chat\"]"),
            "guards[0].when.endpoints",
            Code::UnknownName,
        ),
        (
            guard("keep-model = true\nwhen.tenants = []"),
            "guards[0].when.tenants",
            Code::InvalidValue,
        ),
        (
            guard("keep-model = true\nwhen.headers = { Authorization = \"x\" }"),
            "guards[0].when.headers",
            Code::InvalidValue,
        ),
        (
            "[[guards]]\nname = \"a, b\"\nkeep-model = true\n".to_owned(),
            "guards[0].name",
            Code::InvalidValue,
        ),
    ] {
        let errors = parse(&format!("{text}{LANE}")).unwrap_err();
        let found: Vec<_> = errors.iter().map(|error| (error.key.as_str(), error.code)).collect();
        assert_eq!(found, [(key, code)], "{text}");
    }
}
