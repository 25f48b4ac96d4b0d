//! Tests of `cors` and `compression` of listeners.

use super::*;

fn listener(keys: &str) -> Listener {
    parse(&format!("[server]\n{keys}\n{LANE}")).unwrap().server.listeners.remove(0)
}

#[test]
fn cors_is_off_by_default_and_compression_on() {
    let default = listener("");
    assert_eq!((default.cors, default.compression), (None, true));
    let cors = listener("cors = { origins = [\"https://a.example:8443\", \"app://b\", \"null\"] }");
    let cors = cors.cors.unwrap();
    assert_eq!(cors.origins, ["https://a.example:8443", "app://b", "null"]);
    assert_eq!((cors.credentials, cors.headers), (false, None));
    assert_eq!(cors.max_age, Duration::from_secs(600));
    let all = listener(
        "compression = false\ncors = { origins = [\"*\"], headers = [\"x-a\"], max-age = \"0s\" }",
    );
    let cors = all.cors.unwrap();
    assert_eq!((all.compression, cors.max_age), (false, Duration::ZERO));
    assert_eq!(cors.headers, Some(vec!["x-a".to_owned()]));
}

#[test]
fn listeners_have_cors_of_their_own() {
    let more = "[[listeners]]\naddress = \"127.0.0.1:1\"\ncors = { origins = [\"*\"] }\n";
    let listeners = parse(&format!("{more}{LANE}")).unwrap().server.listeners;
    assert!(listeners[0].cors.is_none() && listeners[1].cors.is_some());
}

#[test]
fn invalid_cors_is_rejected() {
    for (cors, key, code) in [
        ("{}", "origins", Code::MissingKey),
        ("{ origins = [] }", "origins", Code::MissingKey),
        ("{ origins = [\"chat.example.org\"] }", "origins", Code::InvalidValue),
        ("{ origins = [\"https://chat.example.org/\"] }", "origins", Code::InvalidValue),
        ("{ origins = [\"https://\"] }", "origins", Code::InvalidValue),
        ("{ origins = [\"*\"], credentials = true }", "credentials", Code::Conflict),
        ("{ origins = [\"*\"], headers = [\"a b\"] }", "headers", Code::InvalidValue),
        ("{ origins = [\"*\"], methods = [] }", "methods", Code::UnknownKey),
    ] {
        let source = format!("[server]\ncors = {cors}\n{LANE}");
        assert_rejects(&source, &format!("server.cors.{key}"), code);
    }
    assert_rejects(&format!("[server]\ncors = true\n{LANE}"), "server.cors", Code::WrongType);
}
