//! `[admin]`.

use super::*;

fn admin(section: &str) -> Admin {
    parse(&format!("[state]\ndir = \"s\"\n[admin]\n{section}\n{LANE}")).unwrap().admin
}

#[test]
fn the_socket_is_in_the_folder_of_states() {
    assert_eq!(admin("").socket.as_deref(), Some(Path::new("/conf/s/admin.sock")));
    assert_eq!(admin("socket = \"a.sock\"").socket.as_deref(), Some(Path::new("/conf/a.sock")));
    assert_eq!(admin("socket = \"\""), Admin::default());
    let stateless = parse(&format!("[state]\ndir = \"\"\n{LANE}")).unwrap();
    assert_eq!(stateless.admin, Admin::default());
    let long = "x".repeat(100);
    assert_rejects(
        &format!("[admin]\nsocket = \"{long}\"\n{LANE}"),
        "2: admin.socket: the path of the socket, /conf/",
    );
    assert_rejects(
        &format!("[state]\ndir = \"{long}\"\n{LANE}"),
        "set `admin.socket` to a shorter one",
    );
}

#[test]
fn a_port_is_one_of_this_machine_and_wants_a_token() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("token");
    std::fs::write(&file, "t0ken\n").unwrap();
    let token = format!("token-file = {file:?}");
    for address in ["127.0.0.1:9101", "[::1]:0"] {
        let (listen, token) = admin(&format!("listen = \"{address}\"\n{token}")).port.unwrap();
        assert_eq!((listen, token.0.as_str()), (address.parse().unwrap(), "t0ken"));
        assert_eq!(format!("{token:?}"), "Token(…)");
    }
    for (section, part) in [
        ("listen = \"127.0.0.1:9101\"", "needs a token"),
        (&*format!("listen = \"0.0.0.0:9101\"\n{token}"), "can be reached from other machines"),
        (&*format!("listen = \"here\"\n{token}"), "is no address"),
        (&*token, "admin.token-file: is for `listen` alone"),
        (
            &*format!("{token}\ntoken-env = \"HOME\"\nlisten = \"127.0.0.1:1\""),
            "write one of the two",
        ),
        (
            "listen = \"127.0.0.1:1\"\ntoken-env = \"NO_SUCH_VARIABLE\"",
            "`NO_SUCH_VARIABLE` is not set",
        ),
    ] {
        assert_rejects(&format!("[admin]\n{section}\n{LANE}"), part);
    }
}

#[test]
fn it_is_found_without_the_rest_of_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("p.toml");
    let find = |text: &str| {
        std::fs::write(&file, text).unwrap();
        Admin::find(&file).map_err(|error| error.to_string())
    };
    // Neither the lanes nor the token of a port that is not needed have to be right.
    let text = "lanes = 1\n[state]\ndir = \"s\"\n[admin]\nlisten = \"127.0.0.1:1\"\ntoken-env = \"NO_SUCH_VARIABLE\"\n";
    assert_eq!(find(text).unwrap().socket, Some(dir.path().join("s/admin.sock")));
    let sentence = find(&format!("{text}socket = \"\"")).unwrap_err();
    assert!(sentence.contains("p.toml:6: admin.token-env: "), "{sentence}");
    assert!(find("[admin").unwrap_err().contains("p.toml:1: is not TOML"));
    assert!(
        Admin::find(Path::new("/no/such/file")).unwrap_err().to_string().contains("cannot be read")
    );
}
