//! Decision records: what a host writes about its requests, and that it goes on when it cannot.

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

use crate::policy::{chain, cortex, folder, start};
use crate::{host, lane};

const CHAT: &str = "/v1/chat/completions";
const WRITTEN: &str = "pointsman_records_written_total";
const DROPPED: &str = "pointsman_records_dropped_total";

fn folder_of(host: &Host) -> PathBuf {
    host.dir.path().join("records")
}

/// All records, oldest first, and the whole text of the files.
fn recorded(host: &Host) -> (Vec<DecisionRecord>, String) {
    let mut found = Vec::new();
    let mut text = String::new();
    for file in files(&folder_of(host)).unwrap() {
        text += &fs::read_to_string(&file).unwrap();
        let (mut known, mut chains) = (Vec::new(), Vec::new());
        for record in records(BufReader::new(File::open(&file).unwrap())) {
            match record.unwrap() {
                Record::Topology(topology) => known.push(topology.generation),
                Record::Policies(chain) => chains.push(chain.chain),
                Record::Decision(decision) => {
                    assert!(known.contains(&decision.topology), "the lanes come first");
                    let chain = decision.chain.as_deref().expect("this host has policies");
                    assert!(chains.iter().any(|known| known == chain), "and the policies do");
                    found.push(*decision);
                }
            }
        }
    }
    (found, text)
}

fn of<'a>(decisions: &'a [DecisionRecord], id: &str) -> &'a DecisionRecord {
    let mut of_id = decisions.iter().filter(|decision| &*decision.request_id == id);
    let (found, more) = (of_id.next(), of_id.next());
    assert!(more.is_none(), "one record a request");
    found.unwrap_or_else(|| panic!("no record of {id}: {decisions:#?}"))
}

fn ask(host: &Host, id: &str, body: &Value) -> u16 {
    let headers = [
        ("content-type", "application/json"),
        ("x-request-id", id),
        ("authorization", "Bearer SECRET-key"),
        ("x-forwarded-for", "SECRET-address"),
        ("x-class", "batch"),
    ];
    send(host.port, "POST", CHAT, &headers, body.to_string().as_bytes()).status
}

fn with_text(model: &str) -> Value {
    chat(
        model,
        json!({ "user": "SECRET-user", "messages": [{ "role": "user", "content": "SECRET fn main()" }] }),
    )
}

/// Five ways in which a request can go, and one record of each.
#[test]
fn every_decision_is_recorded_with_its_end() {
    let mut host = cortex("[records]\ndir = \"records\"\nmode = \"full\"");
    assert_eq!(ask(&host, "plain", &with_text("auto")), 200);
    let mut streaming = with_text("coder");
    streaming["stream"] = json!(true);
    streaming["stream_options"] = json!({ "include_usage": true });
    assert_eq!(ask(&host, "stream", &streaming), 200);
    host.script("orchestrator", json!({ "status": 503 }));
    assert_eq!(ask(&host, "fallback", &with_text("orchestrator")), 200);
    host.script("governance", json!({ "status": 500 }));
    assert_eq!(ask(&host, "error", &with_text("governance")), 502);
    host.script("fast_rag", json!({ "stall-after": 3 }));
    let mut leaves = with_text("fast_rag");
    leaves["stream"] = json!(true);
    let mut answer = stream(host.port, CHAT, &leaves);
    assert!(answer.until("word2"));
    drop(answer);
    // Nobody decides about a model that is not there.
    assert_eq!(ask(&host, "unknown", &with_text("unheard-of")), 404);
    host.assert_nothing_lost();
    wait_until("all are written", || host.metric(WRITTEN, "") == 5.0);
    host.signal(Signal::TERM);
    assert!(host.ended().success());

    let (found, text) = recorded(&host);
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
    let plain = of(&found, "plain");
    assert_eq!((plain.end.how, plain.tries.len()), (Ended::Answered, 1));
    assert_eq!((plain.tries[0].result, plain.tries[0].status), (AttemptResult::Ok, 200));
    assert!(
        plain.outcome.as_ref().unwrap().output_tokens > 0 && plain.end.total >= plain.tries[0].took
    );
    let headers = &plain.request.as_ref().unwrap().headers;
    assert!(headers.contains(&("x-class".to_owned(), "batch".to_owned())), "{headers:?}");
    let streamed = of(&found, "stream");
    assert!(streamed.figures.streaming && streamed.outcome.as_ref().unwrap().output_tokens > 0);
    let fell_back = of(&found, "fallback");
    let results: Vec<_> =
        fell_back.tries.iter().map(|attempt| (attempt.result, attempt.status)).collect();
    assert_eq!(fell_back.end.how, Ended::FellBack);
    assert_eq!(results, [(AttemptResult::Overloaded, 503), (AttemptResult::Ok, 200)]);
    let error = of(&found, "error");
    assert_eq!(
        (error.end.how, error.tries[0].result, error.tries[0].status),
        (Ended::Error, AttemptResult::ServerError, 500)
    );
    let gone = found.iter().find(|decision| decision.end.how == Ended::ClientGone).unwrap();
    assert_eq!((&*gone.model, gone.tries[0].result), ("fast_rag", AttemptResult::ClientGone));
}

#[test]
fn a_refusal_is_a_decision() {
    let dir = folder(&[("status-200", build("status-200"))]);
    let config =
        chain(&["status-200"], "") + "[records]\ndir = \"records\"\n" + &lane("a", &["a"], &[]);
    let host = start(dir, &config);
    assert_eq!(ask(&host, "refused", &with_text("a")), 403);
    wait_until("it is written", || host.metric(WRITTEN, "") == 1.0);
    let (found, _) = recorded(&host);
    let refused = of(&found, "refused");
    assert!(matches!(&refused.decision, Decision::Reject(by, _) if &*by.name == "status-200"));
    assert!(refused.consulted[0].advice.as_ref().unwrap().reject.is_some());
    assert_eq!((refused.end.how, refused.tries.len(), &refused.outcome), (Ended::Error, 0, &None));
    assert!(refused.request.is_none(), "only in mode full");
}

#[test]
fn errors_are_recorded_though_nothing_else_is() {
    let host = host(
        &("[records]\ndir = \"records\"\nsample = \"0%\"\n".to_owned() + &lane("a", &["a"], &[])),
    );
    (0..5).for_each(|_| assert_eq!(post(host.port, CHAT, &chat("a", json!({}))).status, 200));
    host.script("a", json!({ "status": 500 }));
    assert_eq!(ask(&host, "bad", &with_text("a")), 502);
    wait_until("it is written", || host.metric(WRITTEN, "") == 1.0);
    let (found, _) = recorded(&host);
    assert_eq!((found.len(), of(&found, "bad").end.how), (1, Ended::Error));
}

#[test]
fn a_killed_host_leaves_files_that_can_be_read_and_added_to() {
    let config = "[records]\ndir = \"records\"\nmax-size = \"8KiB\"\nkeep = 2\n".to_owned()
        + &lane("a", &["a"], &[]);
    let mut host = host(&config);
    let ask_all = |host: &Host, ids: std::ops::Range<u32>| {
        for id in ids {
            assert_eq!(ask(host, &id.to_string(), &with_text("a")), 200);
            // One by one, so that the files are full at the same places in each run.
            wait_until("it is written", || host.metric(WRITTEN, "") >= 1.0);
        }
    };
    ask_all(&host, 0..40);
    wait_until("all are written", || host.metric(WRITTEN, "") == 40.0);
    host.signal(Signal::KILL);
    host.ended();
    let (found, _) = recorded(&host);
    let last = |found: &[DecisionRecord]| found.last().unwrap().request_id.to_string();
    assert_eq!((files(&folder_of(&host)).unwrap().len(), last(&found).as_str()), (3, "39"));

    let dir = std::mem::replace(&mut host.dir, tempfile::tempdir().unwrap());
    drop(fs::remove_file(dir.path().join("port")));
    let host = start(dir, &config);
    assert_eq!(ask(&host, "after", &with_text("a")), 200);
    wait_until("it is written", || host.metric(WRITTEN, "") == 1.0);
    let (found, _) = recorded(&host);
    assert_eq!(last(&found), "after");
    assert!(
        found.len() > 5 && found.windows(2).all(|pair| pair[0].request_id != pair[1].request_id)
    );
}

/// Records that nobody takes: every request is answered, every record is counted, and the log says so once.
#[test]
fn a_flood_without_an_outlet_is_dropped_and_counted() {
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
    host.assert_nothing_lost();
    wait_until("each is counted", || host.metric(DROPPED, "") == 200.0);
    assert_eq!(host.metric(WRITTEN, ""), 0.0);
    assert!(host.metric(DROPPED, "reason=\"disk\"") > 0.0);
    assert_eq!(host.log().matches("decision records are dropped").count(), 1);
    host.stop();
}
