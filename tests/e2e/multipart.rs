//! Uploads as multipart forms, and what is made of them: audio and images.

use std::io::Write as _;
use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use pointsman_tests::attack::MemorySampler;
use pointsman_tests::client::{Response, open, post, send, stream};
use pointsman_tests::host::{Host, fake_lane, program, root};
use pointsman_tests::wait_until;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::clients::{assert_succeeds, prepared_dir};
use crate::{FAKE_ENGINE, host};

const TRANSCRIPTIONS: &str = "/v1/audio/transcriptions";
const FORM: (&str, &str) = ("content-type", "multipart/form-data; boundary=XX");
const MIB: usize = 1 << 20;

/// Returns a lane that has the endpoints for audio and images.
fn media_lane(name: &str, models: &[&str], more: &str, script: &Value) -> String {
    let script = script.to_string();
    let arguments = ["--audio", "--images", "--script", script.as_str()];
    let endpoints = "endpoints = [\"transcriptions\", \"translations\", \"speech\", \
                     \"image-generations\", \"image-edits\", \"image-variations\"]";
    fake_lane(FAKE_ENGINE, name, models, &format!("{endpoints}\n{more}"), &arguments)
}

fn one_media_lane(server: &str, script: &Value) -> Host {
    let lane = media_lane("a", &["a", "whisper"], "engine-model = \"a\"", script);
    host(&format!("{server}\n{lane}"))
}

fn part(headers: &str, content: &[u8]) -> Vec<u8> {
    let head = format!("--XX\r\nContent-Disposition: form-data; {headers}\r\n\r\n");
    [head.as_bytes(), content, b"\r\n"].concat()
}

/// Returns a form with the model behind the file, as libraries may send it.
fn form(file: &[u8], model: &str) -> Vec<u8> {
    let head = "name=\"file\"; filename=\"a.wav\"\r\nContent-Type: audio/wav";
    let language = part("name=\"language\"", b"en");
    let model = part("name=\"model\"", model.as_bytes());
    [part(head, file), language, model, b"--XX--\r\n".to_vec()].concat()
}

fn noise(size: usize) -> Vec<u8> {
    (0..size).map(|at| ((at * at) >> 7) as u8).collect()
}

fn upload(host: &Host, body: &[u8]) -> Response {
    send(host.port, "POST", TRANSCRIPTIONS, &[FORM], body)
}

/// Begins an upload that is announced to have this length.
fn begin(host: &Host, body: &[u8], length: usize) -> TcpStream {
    let mut client = TcpStream::connect(("127.0.0.1", host.port)).unwrap();
    let (name, value) = FORM;
    let head = format!(
        "POST {TRANSCRIPTIONS} HTTP/1.1\r\nhost: localhost\r\n{name}: {value}\r\n\
         content-length: {length}\r\n\r\n"
    );
    client.write_all(head.as_bytes()).unwrap();
    client.write_all(body).unwrap();
    client
}

/// Asserts that the engine got the parts of [`form`].
fn assert_arrived(response: &Response, file: &[u8], model: &str) {
    assert_eq!(response.status, 200, "{}", response.text());
    let echoed = response.json();
    let digest: String = Sha256::digest(file).iter().map(|byte| format!("{byte:02x}")).collect();
    let parts = echoed["parts"].as_array().unwrap();
    let names: Vec<&str> = parts.iter().map(|part| part["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["file", "language", "model"]);
    assert_eq!(parts[0]["sha256"], digest);
    assert_eq!(parts[0]["file_name"], "a.wav");
    assert_eq!(parts[0]["content_type"], "audio/wav");
    assert_eq!(parts[1]["text"], "en");
    assert_eq!(parts[2]["text"], model);
    assert_eq!(echoed["content_length"], echoed["size"].to_string(), "{echoed}");
    assert_eq!(echoed["transfer_encoding"], Value::Null);
}

/// Asserts that no upload is left in memory or in a file.
fn assert_nothing_left(host: &Host) {
    wait_until("no upload is held", || {
        host.metric("pointsman_body_bytes", "") == 0.0
            && host.metric("pointsman_spool_bytes", "") == 0.0
    });
    host.assert_no_request_lost();
}

#[test]
fn form_reaches_the_engine_whole_wherever_its_model_stands() {
    let host = one_media_lane("", &json!({ "echo": true }));
    for size in [1, 5_000, MIB, MIB + 1, 5 * MIB] {
        let file = noise(size);
        // The name that the client uses is one that the engine does not know.
        assert_arrived(&upload(&host, &form(&file, "whisper")), &file, "a");
    }
    // A host with one lane needs no model.
    let file = part("name=\"file\"; filename=\"a.wav\"", b"RIFF");
    let response = upload(&host, &[file, b"--XX--\r\n".to_vec()].concat());
    let names = response.json()["parts"].clone();
    assert_eq!((&names[0]["name"], &names[0]["text"]), (&json!("model"), &json!("a")));
    assert_eq!(names[1]["name"], "file");
    assert_nothing_left(&host);
}

#[test]
fn form_is_sent_again_to_the_next_lane() {
    let broken = media_lane("broken", &["m"], "slots = 8", &json!({ "status": 500 }));
    let whole = media_lane("whole", &["m"], "slots = 4", &json!({ "echo": true }));
    let host = host(&[broken, whole].concat());
    for size in [100, 3 * MIB] {
        let file = noise(size);
        let response = upload(&host, &form(&file, "m"));
        assert_eq!(response.header("x-pointsman-attempts"), Some("2"), "{}", response.text());
        assert_eq!(response.header("x-pointsman-lane"), Some("whole"));
        assert_arrived(&response, &file, "m");
    }
    assert_nothing_left(&host);
}

#[test]
fn large_upload_takes_no_memory() {
    let host = one_media_lane("", &json!({ "echo": true }));
    let file = noise(100 * MIB);
    let body = form(&file, "a");
    // What a first request needs.
    assert_eq!(upload(&host, &form(&file[..2 * MIB], "a")).status, 200);
    let before = host.resource_usage().resident;
    let sampler = MemorySampler::start(host.pid(), Duration::from_millis(5));
    let response = upload(&host, &body);
    let peak = sampler.stop().into_iter().max().unwrap_or(0);
    assert_arrived(&response, &file, "a");
    let growth = peak.saturating_sub(before);
    assert!(growth < 16 << 20, "the host's memory rose by {} MiB", growth >> 20);
    assert_nothing_left(&host);
}

#[test]
fn client_that_leaves_during_its_upload_leaves_nothing() {
    let host = one_media_lane("", &json!({ "echo": true }));
    for size in [1_000, 3 * MIB] {
        let body = form(&noise(size), "a");
        let client = begin(&host, &body[..body.len() - 100], body.len());
        let gauge = if size < MIB { "pointsman_body_bytes" } else { "pointsman_spool_bytes" };
        wait_until("the upload is held", || host.metric(gauge, "") >= size as f64 / 2.0);
        drop(client);
        assert_nothing_left(&host);
    }
}

#[test]
fn upload_that_cannot_be_stored_is_refused() {
    let folder = "[server]\nspool-dir = \"/dev/null/spool\"\n";
    let host = one_media_lane(folder, &json!({ "echo": true }));
    let response = upload(&host, &form(&noise(2 * MIB), "a"));
    assert_eq!((response.status, response.error_code()), (507, json!("insufficient_storage")));
    assert!(response.header("retry-after").is_some());
    // What fits into memory needs no folder.
    let file = noise(1_000);
    assert_arrived(&upload(&host, &form(&file, "a")), &file, "a");
    assert_nothing_left(&host);

    let limits =
        "[server]\nmax-upload = \"4MiB\"\nspool-size = \"4MiB\"\nupload-memory = \"1KiB\"\n";
    let host = one_media_lane(limits, &json!({ "hang": true }));
    let response = upload(&host, &form(&noise(5 * MIB), "a"));
    assert_eq!((response.status, response.error_code()), (413, json!("request_too_large")));
    let body = form(&noise(3 * MIB), "a");
    let held = begin(&host, &body, body.len());
    wait_until("the upload is held", || host.metric("pointsman_spool_bytes", "") > 3e6);
    let response = upload(&host, &body);
    assert_eq!((response.status, response.error_code()), (503, json!("host_overloaded")));
    drop(held);
    assert_nothing_left(&host);
}

#[test]
fn hostile_forms_are_refused() {
    let host = one_media_lane("", &json!({ "echo": true }));
    let file = part("name=\"file\"; filename=\"a.wav\"", b"RIFF");
    let model = part("name=\"model\"", b"a");
    let end = b"--XX--\r\n".to_vec();
    let whole = |parts: &[&[u8]]| [parts.concat(), end.clone()].concat();
    let huge = part(&format!("name=\"a\"\r\nx: {}", "y".repeat(MIB)), b"");
    let many = part("name=\"a\"", b"x").repeat(10_000);
    let line = part("name=\"a\r\nx: y\"", b"x");
    for (name, body, code) in [
        ("no end", [file.clone(), model.clone()].concat(), "invalid_form"),
        ("not a form", b"{}".to_vec(), "invalid_form"),
        ("huge header", whole(&[&huge, &model]), "invalid_form"),
        ("line break in a name", whole(&[&line, &model]), "invalid_form"),
        ("10,000 parts", whole(&[&many, &model]), "too_many_items"),
        (
            "boundary in a file",
            whole(&[&part("name=\"file\"", b"a\r\n--XX\nb"), &model]),
            "invalid_form",
        ),
        ("two models", whole(&[&file, &model, &model]), "invalid_request"),
    ] {
        let response = upload(&host, &body);
        assert_eq!((response.status, response.error_code()), (400, json!(code)), "{name}");
    }
    let json = [("content-type", "application/json")];
    let response = send(host.port, "POST", TRANSCRIPTIONS, &json, b"{\"model\":\"a\"}");
    assert_eq!((response.status, response.error_code()), (415, json!("unsupported_media_type")));
    // What looks like a boundary or a field is the file's.
    let hostile = b"RIFF--XX\nmodel\r\n--X\r\n--pointsman-\r\nname=\"model\"\r\n\r\n";
    assert_arrived(&upload(&host, &form(hostile, "a")), hostile, "a");
    assert_nothing_left(&host);
}

#[test]
fn broken_streams_of_audio_and_images_are_not_complete() {
    let host = one_media_lane("", &json!({}));
    let speech = json!({ "model": "a", "input": "hello", "voice": "alloy" });
    let sse = json!({ "model": "a", "input": "hello", "voice": "alloy", "stream_format": "sse" });
    let image = json!({ "model": "a", "prompt": "a pixel", "stream": true });
    for (path, body, end) in [
        ("/v1/audio/speech", &sse, "speech.audio.done"),
        ("/v1/images/generations", &image, "image_generation.completed"),
    ] {
        host.set_script("a", json!({}));
        let (response, complete) = stream(host.port, path, body).finish();
        assert!(complete && response.text().contains(end), "{}", response.text());
        assert!(!response.text().contains("error"), "{}", response.text());
        host.set_script("a", json!({ "end-after": 2 }));
        let (response, _) = stream(host.port, path, body).finish();
        assert!(response.text().contains("\"code\":\"engine_error\""), "{}", response.text());
    }
    let streamed = [part("name=\"stream\"", b"true"), form(b"RIFF", "whisper")].concat();
    let transcribe = || open(host.port, "POST", TRANSCRIPTIONS, &[FORM], &streamed).finish();
    host.set_script("a", json!({}));
    let (response, complete) = transcribe();
    let text = response.text();
    assert!(complete && text.ends_with("data: [DONE]\n\n"), "{text}");
    // The name that the client asked for.
    assert!(text.contains("\"model\":\"whisper\"") && !text.contains("\"model\":\"a\""), "{text}");
    host.set_script("a", json!({ "end-after": 2 }));
    let (response, _) = transcribe();
    assert!(response.text().contains("\"code\":\"engine_error\""), "{}", response.text());
    // Nothing can be appended to sound, so that the connection is closed in the middle.
    host.set_script("a", json!({}));
    let (response, complete) = stream(host.port, "/v1/audio/speech", &speech).finish();
    assert_eq!(response.header("content-type"), Some("audio/mpeg"));
    assert!(complete && response.body.len() == 5 * 4096);
    host.set_script("a", json!({ "token-ms": 50, "die-after": 2 }));
    let (response, complete) = stream(host.port, "/v1/audio/speech", &speech).finish();
    assert!(!complete && response.body.len() < 5 * 4096, "{}", response.body.len());
    host.assert_no_request_lost();
}

#[test]
fn endpoint_that_the_engine_lacks_is_its_own_error() {
    let lane = fake_lane(FAKE_ENGINE, "a", &["a"], "", &[]);
    let host = host(&lane);
    assert_eq!(upload(&host, &form(b"RIFF", "a")).status, 404);
    let body = json!({ "model": "a", "prompt": "a pixel" });
    assert_eq!(post(host.port, "/v1/images/generations", &body).status, 404);
    assert_nothing_left(&host);
}

/// Starts a host with the lane that the scripts of clients expect.
fn host_for_clients() -> Host {
    let lane = media_lane("whisper", &["whisper"], "", &json!({}));
    let config = format!("[[keys]]\ntenant = \"t\"\nenv = \"TEST_KEY\"\n{lane}");
    let dir = tempfile::tempdir().unwrap();
    let keys = [("TEST_KEY", "sesame")];
    Host::start_in(&program(FAKE_ENGINE), dir, &config, &keys).wait_until_ready()
}

#[test]
fn official_python_package_uploads_audio_and_images() {
    let host = host_for_clients();
    let mut command = Command::new(prepared_dir("POINTSMAN_VENV", "venv").join("bin/python"));
    command.arg(root().join("tests/python/openai_media.py"));
    command.arg(host.port.to_string()).arg("sesame");
    assert_succeeds(command);
    assert_nothing_left(&host);
}

#[test]
fn official_node_package_uploads_audio_and_images() {
    let host = host_for_clients();
    let mut command = Command::new("node");
    command.arg(root().join("tests/node/openai_media.mjs"));
    command.arg(host.port.to_string()).arg("sesame");
    command.arg(prepared_dir("POINTSMAN_NODE", "node"));
    assert_succeeds(command);
    assert_nothing_left(&host);
}
