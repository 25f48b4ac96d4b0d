//! Tests of `[admin]`.

use super::*;

fn admin(section: &str) -> Admin {
    parse(&format!("[state]\ndir = \"s\"\n[admin]\n{section}\n{LANE}")).unwrap().admin
}

#[test]
fn socket_defaults_to_the_state_directory() {
    // Or, in the session of a user, the link to it.
    let default = admin("");
    let in_state = default.link.as_ref().or(default.socket.as_ref());
    assert_eq!(in_state.map(|path| path.as_path()), Some(Path::new("/conf/s/admin.sock")));
    assert_eq!(admin("socket = \"a.sock\"").socket.as_deref(), Some(Path::new("/conf/a.sock")));
    assert_eq!(admin("socket = \"\""), Admin::default());
    let stateless = parse(&format!("[state]\ndir = \"\"\n{LANE}")).unwrap();
    assert_eq!(stateless.admin, Admin::default());
    let long = "x".repeat(100);
    let source = format!("[admin]\nsocket = \"{long}\"\n{LANE}");
    assert_eq!(errors(&source), ["2: admin.socket [out_of_range]"]);
    assert_rejects_with(&source, "admin.socket", Code::OutOfRange, &["/conf/"]);
    if default.link.is_none() {
        let source = format!("[state]\ndir = \"{long}\"\n{LANE}");
        assert_rejects(&source, "admin.socket", Code::OutOfRange);
    }
}

#[test]
fn number_of_decisions_is_limited() {
    assert_eq!((admin("").decisions, admin("decisions = 0").decisions), (500, 0));
    let source = format!("[state]\ndir = \"s\"\n[admin]\ndecisions = 100001\n{LANE}");
    assert_rejects(&source, "admin.decisions", Code::OutOfRange);
}

#[test]
fn tcp_listener_requires_loopback_and_a_token() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("token");
    std::fs::write(&file, "t0ken-0123456789\n").unwrap();
    let token = format!("token-file = {file:?}");
    for address in ["127.0.0.1:9101", "[::1]:0"] {
        let (listen, token) = admin(&format!("listen = \"{address}\"\n{token}")).port.unwrap();
        assert_eq!((listen, token.reveal()), (address.parse().unwrap(), "t0ken-0123456789"));
        assert_eq!(format!("{token:?}"), "Token(…)");
    }
    let short = dir.path().join("short");
    std::fs::write(&short, "fifteen-letters\n").unwrap();
    for (section, key, code) in [
        (
            &*format!("listen = \"127.0.0.1:9101\"\ntoken-file = {short:?}"),
            "admin.token-file",
            Code::OutOfRange,
        ),
        ("listen = \"127.0.0.1:9101\"", "admin.listen", Code::MissingKey),
        (&*format!("listen = \"0.0.0.0:9101\"\n{token}"), "admin.listen", Code::InvalidValue),
        (&*format!("listen = \"here\"\n{token}"), "admin.listen", Code::InvalidValue),
        (&*token, "admin.token-file", Code::Conflict),
        (
            &*format!("{token}\ntoken-env = \"HOME\"\nlisten = \"127.0.0.1:1\""),
            "admin.token-file",
            Code::Conflict,
        ),
        (
            "listen = \"127.0.0.1:1\"\ntoken-env = \"NO_SUCH_VARIABLE\"",
            "admin.token-env",
            Code::Unavailable,
        ),
    ] {
        assert_rejects(&format!("[admin]\n{section}\n{LANE}"), key, code);
    }
    // The other keys are known all the same.
    let source = format!("[admin]\nlisten = \"127.0.0.1:1\"\ntoken-file = {short:?}\n{LANE}");
    assert_eq!(errors(&source), ["3: admin.token-file [out_of_range]"]);
}

#[test]
fn clients_find_it_without_validating_the_rest_of_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("p.toml");
    let find = |text: &str| {
        std::fs::write(&file, text).unwrap();
        Admin::find(&file).map_err(|error| {
            let error = error.diagnostics().first().cloned().unwrap();
            (error.line, error.key, error.code)
        })
    };
    // Neither the lanes nor the token of an unused TCP listener are validated.
    let text = "lanes = 1\n[state]\ndir = \"s\"\n[admin]\nlisten = \"127.0.0.1:1\"\ntoken-env = \
        \"NO_SUCH_VARIABLE\"\n";
    assert_eq!(find(text).unwrap().socket, Some(dir.path().join("s/admin.sock")));
    let error = find(&format!("{text}socket = \"\"")).unwrap_err();
    assert_eq!(error, (6, "admin.token-env".to_owned(), Code::Unavailable));
    assert_eq!(find("[admin").unwrap_err(), (1, String::new(), Code::Syntax));
    let missing = Admin::find(Path::new("/no/such/file")).unwrap_err();
    assert_eq!(missing.diagnostics()[0].code, Code::Unreadable);
}
