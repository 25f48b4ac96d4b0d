//! `pointsman health`, the health check of containers.

use std::net::TcpListener;
use std::process::Command;

use pointsman_tests::host::{Host, program};
use rustix::process::Signal;

use crate::{FAKE_ENGINE, host, lane};

/// Runs the command; returns its exit code and what it prints.
fn health(arguments: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(program(FAKE_ENGINE)).arg("health").args(arguments).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(text).unwrap())
}

#[test]
fn exit_code_is_that_of_the_health_of_a_host() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("api.sock");
    let listener = format!("[[listeners]]\naddress = \"unix:{}\"\n", socket.display());
    let config = listener + &lane("a", &["a"], &["--load-ms", "3600000"]);
    let loading = Host::start(&program(FAKE_ENGINE), &config);
    loading.wait_for_lane("a", "starting");
    let url = |host: &Host, path: &str| format!("http://127.0.0.1:{}{path}", host.port);
    let unix = format!("unix:{}", socket.display());
    for (asked, code, status) in [
        (url(&loading, ""), 1, "503"),
        (url(&loading, "/health"), 1, "503"),
        (url(&loading, "/livez"), 0, "200"),
        (url(&loading, "/nothing"), 1, "404"),
        (unix, 1, "503"),
    ] {
        let (exited, text) = health(&[&asked]);
        assert_eq!(exited, Some(code), "{asked}: {text}");
        assert!(text.contains(status), "{asked}: {text}");
    }

    let mut ready = host(&lane("a", &["a"], &[]));
    let asked = url(&ready, "/health");
    let (code, text) = health(&[&asked]);
    assert_eq!((code, text.as_str()), (Some(0), "200 {\"status\":\"ok\"}\n"));
    ready.signal(Signal::TERM);
    ready.wait_for_exit();
    assert_eq!(health(&[&asked]).0, Some(1));
}

#[test]
fn server_that_does_not_respond_is_unhealthy() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    let (code, text) = health(&["--timeout", "1", &url]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("within 1 s"), "{text}");
}
