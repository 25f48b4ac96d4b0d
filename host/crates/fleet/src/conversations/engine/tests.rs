use std::io::Write as _;

use super::*;

fn facts(identity: &str) -> EngineFacts {
    EngineFacts { identity: identity.to_owned(), slots: Some(2), adapters: None }
}

#[test]
fn fingerprint_depends_on_all_that_determines_a_state() {
    let first = fingerprint("llama-server -m a", &facts("b1"));
    assert_eq!(first, fingerprint("llama-server -m a", &facts("b1")));
    assert_ne!(first, fingerprint("llama-server -m b", &facts("b1")));
    assert_ne!(first, fingerprint("llama-server -m a", &facts("b2")));
    let with_adapter = EngineFacts { adapters: Some("[{}]".to_owned()), ..facts("b1") };
    assert_ne!(first, fingerprint("llama-server -m a", &with_adapter));
}

#[test]
fn launch_is_identified_by_its_files_too() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("model.gguf");
    std::fs::write(&model, "1").unwrap();
    let words = |model: &str| ["sh", "--model", model, "--port", "0"].map(str::to_owned).to_vec();
    let launch = |model: &str, variable: &str| Launch {
        command: words(model),
        env: vec![(variable.to_owned(), "1".to_owned())],
        remove_env: Vec::new(),
        directory: Some(dir.path().to_owned()),
    };
    let first = launch_identity(&launch("model.gguf", "LLAMA_ARG_X"));
    assert!(first.contains("/sh ") && first.contains("model.gguf 1 "), "{first}");
    assert_eq!(first, launch_identity(&launch("model.gguf", "LLAMA_ARG_X")));
    let other = launch_identity(&launch("model.gguf", "TOKEN"));
    assert!(first != other && !other.contains("TOKEN"));
    std::fs::OpenOptions::new().append(true).open(&model).unwrap().write_all(b"2").unwrap();
    assert_ne!(first, launch_identity(&launch("model.gguf", "LLAMA_ARG_X")));
}
