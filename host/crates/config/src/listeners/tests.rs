use pointsman_settings::{Code, Diagnostic};

use super::*;
use crate::Config;

const LANE: &str = "[[lanes]]\nname = \"a\"\nmodels = [\"m\"]\n[lanes.engine]\ndriver = \
    \"llama-cpp\"\nmodel = \"/m.gguf\"\nport = 9000\n";

fn parse(source: &str) -> Result<Vec<Listener>, Vec<Diagnostic>> {
    let config = Config::parse(&format!("{source}\n{LANE}"), Path::new("/conf/p.toml"));
    config.map(|config| config.server.listeners)
}

#[test]
fn options_are_read() {
    let source = r#"
        [server]
        listen = "unix:run/api.sock"
        mode = "600"
        http2 = false
        [[listeners]]
        address = "127.0.0.1:8443"
        path-prefix = "/llm/"
        default-model = "reader"
        models = { reader = "m" }
        health = "all-lanes"
        proxy-protocol = true
        [listeners.tls]
        certificate = "c.pem"
        key = "/k.pem"
        client-ca = "ca.pem"
        client-certificates = "optional"
        "#;
    let listeners = parse(source).unwrap();
    let path = PathBuf::from("/conf/run/api.sock");
    assert_eq!(listeners[0].address, Address::Unix { path, mode: 0o600 });
    assert!(!listeners[0].http2 && listeners[0].tls.is_none() && !listeners[0].proxy_protocol);
    let second = &listeners[1];
    assert_eq!(second.address.tcp(), Some("127.0.0.1:8443".parse().unwrap()));
    assert!(second.http2 && second.proxy_protocol);
    assert_eq!((&*second.path_prefix, second.health), ("/llm", HealthRule::AllLanes));
    let tls = second.tls.as_ref().unwrap();
    assert_eq!((&*tls.certificate, &*tls.key), (Path::new("/conf/c.pem"), Path::new("/k.pem")));
    assert_eq!(tls.client_ca.as_deref(), Some(Path::new("/conf/ca.pem")));
    assert_eq!(tls.client_certificates, ClientCertificates::Optional);
    assert_eq!((tls.location.line(), tls.location.key()), (13, "listeners[0].tls"));
}

#[test]
fn unusable_listeners_are_reported_with_key_and_code() {
    let listener = |options: &str| format!("[[listeners]]\naddress = \"127.0.0.1:9\"\n{options}");
    let long = "x".repeat(120);
    for (source, key, code) in [
        ("[[listeners]]\n".to_owned(), "listeners[0].address", Code::MissingKey),
        (
            "[[listeners]]\naddress = \"8000\"".to_owned(),
            "listeners[0].address",
            Code::InvalidValue,
        ),
        ("[server]\nlisten = \"unix:\"".to_owned(), "server.listen", Code::InvalidValue),
        (format!("[server]\nlisten = \"unix:/{long}\""), "server.listen", Code::OutOfRange),
        (
            "[[listeners]]\naddress = \"127.0.0.1:8000\"".to_owned(),
            "listeners[0].address",
            Code::Duplicate,
        ),
        (
            "[[listeners]]\naddress = \"[::]:8000\"".to_owned(),
            "listeners[0].address",
            Code::Duplicate,
        ),
        (
            "[[listeners]]\naddress = \"127.0.0.1:9000\"".to_owned(),
            "lanes[0].engine.port",
            Code::Conflict,
        ),
        (
            "[admin]\nsocket = \"/a\"\n[[listeners]]\naddress = \"unix:/a\"".to_owned(),
            "listeners[0].address",
            Code::Conflict,
        ),
        (listener("mode = \"660\""), "listeners[0].mode", Code::Conflict),
        (
            "[[listeners]]\naddress = \"unix:/b\"\nmode = \"68\"".to_owned(),
            "listeners[0].mode",
            Code::InvalidValue,
        ),
        (listener("path-prefix = \"llm\""), "listeners[0].path-prefix", Code::InvalidValue),
        (listener("default-model = \"x\""), "listeners[0].default-model", Code::UnknownName),
        (listener("models = { y = \"x\" }"), "listeners[0].models", Code::UnknownName),
        (listener("tls = { key = \"k\" }"), "listeners[0].tls.certificate", Code::MissingKey),
        (listener("tls = { certificate = \"k\" }"), "listeners[0].tls.key", Code::MissingKey),
        (
            listener(
                "tls = { certificate = \"c\", key = \"k\", client-certificates = \"required\" }",
            ),
            "listeners[0].tls.client-certificates",
            Code::Conflict,
        ),
        (listener("tls = { colour = 1 }"), "listeners[0].tls.colour", Code::UnknownKey),
        ("[server]\ndefault-model = \"x\"".to_owned(), "server.default-model", Code::UnknownName),
    ] {
        let errors = parse(&source).expect_err(&source);
        let found = errors.iter().any(|error| error.key == key && error.code == code);
        assert!(found, "{source}: {errors:#?}");
    }
}

#[test]
fn listeners_on_free_ports_and_other_addresses_are_accepted() {
    let source = r#"
        [server]
        listen = "127.0.0.1:0"
        [[listeners]]
        address = "127.0.0.1:0"
        [[listeners]]
        address = "127.0.0.1:8000"
        [[listeners]]
        address = "127.0.0.2:8000"
        default-model = "m"
        "#;
    assert_eq!(parse(source).unwrap().len(), 4);
}
