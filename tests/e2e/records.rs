//! Decision records: their content, their files, and requests while records cannot be written.

use std::fs::{self, File};
use std::io::BufReader;
use std::path::PathBuf;

use pointsman_domain::{AttemptResult, Decision};
use pointsman_record::{DecisionRecord, Ended, Record, files, is_redacted, records};
use pointsman_tests::client::{chat, post, send, stream};
use pointsman_tests::guests::build;
use pointsman_tests::host::Host;
use pointsman_tests::wait_until;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::policies::{chain, cortex, policy_dir, start};
use crate::{host, lane};

const CHAT: &str = "/v1/chat/completions";
const WRITTEN: &str = "pointsman_records_written_total";
const DROPPED: &str = "pointsman_records_dropped_total";

fn records_dir(host: &Host) -> PathBuf {
    host.dir.path().join("records")
}

/// Reads all decision records, oldest first, and the text of their files.
fn read_records(host: &Host) -> (Vec<DecisionRecord>, String) {
    let mut found = Vec::new();
    let mut text = String::new();
    for file in files(&records_dir(host)).unwrap() {
        text += &fs::read_to_string(&file).unwrap();
        let (mut topologies, mut chains) = (Vec::new(), Vec::new());
        for record in records(BufReader::new(File::open(&file).unwrap())) {
            match record.unwrap() {
                Record::Topology(topology) => topologies.push(topology.generation),
                Record::Policies(chain) => chains.push(chain.chain),
                Record::Decision(decision) => {
                    assert!(
                        topologies.contains(&decision.topology),
                        "the topology must come before its decisions"
                    );
                    let chain = decision.chain.as_deref().expect("the chain of this host");
                    assert!(
                        chains.iter().any(|name| name == chain),
                        "the policies must come before their decisions"
                    );
                    found.push(*decision);
                }
            }
        }
    }
    (found, text)
}

fn record<'a>(decisions: &'a [DecisionRecord], id: &str) -> &'a DecisionRecord {
    let mut matching = decisions.iter().filter(|decision| &*decision.request_id == id);
    let (found, more) = (matching.next(), matching.next());
    assert!(more.is_none(), "one record per request");
    found.unwrap_or_else(|| panic!("no record of {id}: {decisions:#?}"))
}

fn send_chat(host: &Host, id: &str, body: &Value) -> u16 {
    let headers = [
        ("content-type", "application/json"),
        ("x-request-id", id),
        ("authorization", "Bearer SECRET-key"),
        ("x-forwarded-for", "SECRET-address"),
        ("x-class", "batch"),
    ];
    send(host.port, "POST", CHAT, &headers, body.to_string().as_bytes()).status
}

fn chat_with_secrets(model: &str) -> Value {
    chat(
        model,
        json!({ "user": "SECRET-user", "messages": [{ "role": "user", "content": "SECRET fn \
            main()" }] }),
    )
}

/// Five outcomes of a request, with one record for each.
#[test]
fn decisions_are_recorded_with_outcome() {
    let mut host = cortex("[records]\ndir = \"records\"\nmode = \"full\"");
    assert_eq!(send_chat(&host, "plain", &chat_with_secrets("auto")), 200);
    let mut streaming = chat_with_secrets("coder");
    streaming["stream"] = json!(true);
    streaming["stream_options"] = json!({ "include_usage": true });
    assert_eq!(send_chat(&host, "stream", &streaming), 200);
    host.set_script("orchestrator", json!({ "status": 500 }));
    assert_eq!(send_chat(&host, "fallback", &chat_with_secrets("orchestrator")), 200);
    host.set_script("governance", json!({ "status": 500 }));
    assert_eq!(send_chat(&host, "error", &chat_with_secrets("governance")), 502);
    host.set_script("fast_rag", json!({ "stall-after": 3 }));
    let mut disconnecting = chat_with_secrets("fast_rag");
    disconnecting["stream"] = json!(true);
    let mut event_stream = stream(host.port, CHAT, &disconnecting);
    assert!(event_stream.read_until("word2"));
    drop(event_stream);
    // A request for an unknown model is rejected without a decision.
    assert_eq!(send_chat(&host, "unknown", &chat_with_secrets("unheard-of")), 404);
    host.assert_no_request_lost();
    wait_until("all records are written", || host.metric(WRITTEN, "") == 5.0);
    host.signal(Signal::TERM);
    assert!(host.wait_for_exit().success());

    let (found, text) = read_records(&host);
    assert_eq!(found.len(), 5);
    assert!(!text.contains("SECRET"), "{text}");
    for decision in &found {
        let [consulted] = decision.consulted.as_slice() else { panic!("{decision:#?}") };
        assert_eq!((&*consulted.policy.name, consulted.hook.as_str()), ("cortex", "on-request"));
        assert!(
            consulted.advice.is_some() && consulted.note.is_none() && !consulted.took.is_zero()
        );
        assert_eq!(consulted.reads[0].call, "context");
        assert_eq!(consulted.reads[0].gave["seed"], json!(decision.seed));
        assert!(consulted.reads.iter().any(|read| read.call == "request.model"));
        assert_eq!((decision.fleet.len(), decision.merged.by.len()), (5, 1));
        assert!(matches!(&decision.decision, Decision::Route(plan) if !plan.steps.is_empty()));
        let outcome = decision.outcome.as_ref().unwrap();
        assert_eq!(outcome.tries as usize, decision.tries.len());
        let request = decision.request.as_ref().unwrap();
        let body: Value = serde_json::from_str(request.body.as_deref().unwrap()).unwrap();
        assert_eq!(body["messages"][0]["role"], "user");
        assert!(is_redacted(body["messages"][0]["content"].as_str().unwrap()));
        assert!(request.headers.iter().all(|(name, _)| name != "authorization"));
    }
    let plain = record(&found, "plain");
    assert_eq!((plain.end.how, plain.tries.len()), (Ended::Answered, 1));
    assert_eq!((plain.tries[0].result, plain.tries[0].status), (AttemptResult::Ok, 200));
    assert!(
        plain.outcome.as_ref().unwrap().output_tokens > 0 && plain.end.total >= plain.tries[0].took
    );
    let headers = &plain.request.as_ref().unwrap().headers;
    assert!(headers.contains(&("x-class".to_owned(), "batch".to_owned())), "{headers:?}");
    let streamed = record(&found, "stream");
    assert!(streamed.figures.streaming && streamed.outcome.as_ref().unwrap().output_tokens > 0);
    let fell_back = record(&found, "fallback");
    let results: Vec<_> =
        fell_back.tries.iter().map(|attempt| (attempt.result, attempt.status)).collect();
    assert_eq!(fell_back.end.how, Ended::FellBack);
    assert_eq!(results, [(AttemptResult::ServerError, 500), (AttemptResult::Ok, 200)]);
    let error = record(&found, "error");
    assert_eq!(
        (error.end.how, error.tries[0].result, error.tries[0].status),
        (Ended::Error, AttemptResult::ServerError, 500)
    );
    let disconnected = found.iter().find(|decision| decision.end.how == Ended::ClientGone).unwrap();
    assert_eq!(
        (&*disconnected.model, disconnected.tries[0].result),
        ("fast_rag", AttemptResult::ClientGone)
    );
}

#[test]
fn rejection_is_recorded() {
    let dir = policy_dir(&[("status-200", build("status-200"))]);
    let config =
        chain(&["status-200"], "") + "[records]\ndir = \"records\"\n" + &lane("a", &["a"], &[]);
    let host = start(dir, &config);
    assert_eq!(send_chat(&host, "rejected", &chat_with_secrets("a")), 403);
    wait_until("the record is written", || host.metric(WRITTEN, "") == 1.0);
    let (found, _) = read_records(&host);
    let rejected = record(&found, "rejected");
    assert!(matches!(&rejected.decision, Decision::Reject(by, _) if &*by.name == "status-200"));
    assert!(rejected.consulted[0].advice.as_ref().unwrap().reject.is_some());
    assert_eq!(
        (rejected.end.how, rejected.tries.len(), &rejected.outcome),
        (Ended::Error, 0, &None)
    );
    assert!(rejected.request.is_none(), "requests are recorded only in mode full");
}

#[test]
fn errors_are_recorded_with_sample_of_zero() {
    let host = host(
        &("[records]\ndir = \"records\"\nsample = \"0%\"\n".to_owned() + &lane("a", &["a"], &[])),
    );
    (0..5).for_each(|_| assert_eq!(post(host.port, CHAT, &chat("a", json!({}))).status, 200));
    host.set_script("a", json!({ "status": 500 }));
    assert_eq!(send_chat(&host, "bad", &chat_with_secrets("a")), 502);
    wait_until("the record is written", || host.metric(WRITTEN, "") == 1.0);
    let (found, _) = read_records(&host);
    assert_eq!((found.len(), record(&found, "bad").end.how), (1, Ended::Error));
}

#[test]
fn record_files_survive_killed_host() {
    let config = "[records]\ndir = \"records\"\nmax-size = \"8KiB\"\nkeep = 2\n".to_owned()
        + &lane("a", &["a"], &[]);
    let mut host = host(&config);
    let send_all = |host: &Host, ids: std::ops::Range<u32>| {
        for id in ids {
            assert_eq!(send_chat(host, &id.to_string(), &chat_with_secrets("a")), 200);
            // One by one, so that the files are rotated at the same records in every run.
            wait_until("the record is written", || host.metric(WRITTEN, "") >= 1.0);
        }
    };
    send_all(&host, 0..40);
    wait_until("all records are written", || host.metric(WRITTEN, "") == 40.0);
    host.signal(Signal::KILL);
    host.wait_for_exit();
    let (found, _) = read_records(&host);
    let last = |found: &[DecisionRecord]| found.last().unwrap().request_id.to_string();
    assert_eq!((files(&records_dir(&host)).unwrap().len(), last(&found).as_str()), (3, "39"));

    let dir = std::mem::replace(&mut host.dir, tempfile::tempdir().unwrap());
    fs::remove_file(dir.path().join("port")).unwrap();
    let host = start(dir, &config);
    assert_eq!(send_chat(&host, "after", &chat_with_secrets("a")), 200);
    wait_until("the record is written", || host.metric(WRITTEN, "") == 1.0);
    let (found, _) = read_records(&host);
    assert_eq!(last(&found), "after");
    assert!(
        found.len() > 5 && found.windows(2).all(|pair| pair[0].request_id != pair[1].request_id)
    );
}

/// Records that cannot be written: every request is served, every record is counted as dropped, and
/// the log has one event about it.
#[test]
fn unwritable_records_are_dropped_and_counted() {
    let dir = tempfile::tempdir().unwrap();
    let records = dir.path().join("records");
    fs::create_dir(&records).unwrap();
    mknodat(CWD, records.join("decisions.jsonl"), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)
        .unwrap();
    let config = "[records]\ndir = \"records\"\nqueue = { records = 1 }\n".to_owned()
        + &lane("a", &["a"], &["--slots", "64"]).replacen("models", "slots = 64\nmodels", 1);
    let host = start(dir, &config);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                (0..25).for_each(|_| {
                    assert_eq!(post(host.port, CHAT, &chat("a", json!({}))).status, 200)
                });
            });
        }
    });
    host.assert_no_request_lost();
    wait_until("every record is counted", || host.metric(DROPPED, "") == 200.0);
    assert_eq!(host.metric(WRITTEN, ""), 0.0);
    assert!(host.metric(DROPPED, "reason=\"disk\"") > 0.0);
    host.wait_for_event("records_dropped", &[]);
    assert_eq!(host.events("records_dropped", &[]).len(), 1);
    host.stop();
}
