//! Completions of shells.

use std::process::Command;

use pointsman_tests::host::program;

use crate::FAKE_ENGINE;

fn completions(shell: &str) -> String {
    let own = program(FAKE_ENGINE);
    let output = Command::new(own).args(["completions", shell]).output().unwrap();
    assert!(output.status.success(), "{shell}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn bash_completes_commands_and_options() {
    let dir = tempfile::tempdir().unwrap();
    let script = dir.path().join("pointsman.bash");
    std::fs::write(&script, completions("bash")).unwrap();
    for (words, word, expected) in [
        ("pointsman pol", 1, "policy"),
        ("pointsman policy rollb", 2, "rollback"),
        ("pointsman serve --port", 2, "--port-file"),
    ] {
        let last = words.rsplit(' ').next().unwrap();
        let line = format!(
            "source '{}'; COMP_WORDS=({words}); COMP_CWORD={word}; \
             _pointsman pointsman '{last}' ''; echo \"${{COMPREPLY[@]}}\"",
            script.display()
        );
        let output = Command::new("bash").args(["-c", &line]).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(text.trim(), expected, "{}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn other_shells_get_the_visible_commands() {
    for shell in ["zsh", "fish"] {
        let script = completions(shell);
        assert!(script.contains("rollback"), "{shell}");
        assert!(!script.contains("limited-address-space"), "{shell}");
    }
}
