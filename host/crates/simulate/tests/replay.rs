//! Records of the tree's own policies, asked again.
#![expect(clippy::unwrap_used, reason = "tests")]

mod tree;

use std::io::BufReader;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use pointsman_domain::{
    Advice, AttemptResult, ChainInfo, Consulted, Decision, Endpoint, EngineKind, Facts,
    FailureReport, FleetView, LaneAdvice, LaneId, LaneInfo, LaneState, LinkInfo, Merge, Plan,
    PlanLimits, PolicyRef, Topology, Trace,
};
use pointsman_openai::{Head, Request};
use pointsman_policy::{ChainSpec, DryRunChain, Metering, PolicySpec, Runtime, RuntimeSettings};
use pointsman_record::{
    DecisionRecord, End, Ended, Record, RequestRecord, TopologyRecord, records,
};
use pointsman_simulate::SimulationEnv;
use pointsman_simulate::replay::{Replay, ReplayError, Report, Who};
use serde_json::json;

use self::tree::{NOON, chain, policy};

const REQUESTS: u32 = 12;

static STAGE: LazyLock<SimulationEnv> = LazyLock::new(|| SimulationEnv::new().unwrap());

fn quota(requests: u32) -> PolicySpec {
    policy(
        "quota",
        json!({ "window-s": 60, "default": { "requests": requests, "tokens": 20_000 } }),
    )
}

/// Policies that refuse, change the request, read it, and say what comes after a failed try.
fn four(requests: u32) -> ChainSpec {
    chain(vec![
        quota(requests),
        policy("redact", json!({})),
        policy("cortex", json!({})),
        policy("deadline", json!({})),
    ])
}

fn topology() -> TopologyRecord {
    let names = ["orchestrator", "coder", "fast_rag", "super_reader", "governance"];
    let info = |name: &&str| LaneInfo {
        id: LaneId(0),
        name: (*name).to_owned(),
        engine: EngineKind::Vllm,
        models: vec!["auto".into(), (*name).to_owned()],
        labels: Vec::new(),
        max_context: 32_768,
        slots: 8,
        group: 1,
        cost_milli: 500,
    };
    let lanes = Topology::new(1, names.iter().map(info).collect()).lanes().to_vec();
    let limits = PlanLimits { max_wait: Duration::from_secs(60), max_steps: 5 };
    TopologyRecord { host: "0.1.0".into(), generation: 1, lanes, limits }
}

fn fleet(load: u32) -> Arc<FleetView> {
    let topology = Topology::new(1, topology().lanes);
    let mut view = FleetView::idle(Arc::new(topology), LaneState::Ready);
    for (lane, stat) in view.stats.iter_mut().enumerate() {
        stat.est_wait_ms = (load * 37 + 11 * u32::try_from(lane).unwrap()) % 900;
    }
    Arc::new(view)
}

fn request(number: u32) -> Request {
    let prompt =
        ["Fix this Rust function: fn main() {}", "Write to jane@example.org, please.", "Hello."];
    let prompt = prompt[number as usize % 3];
    let body = json!({ "model": "auto", "messages": [{ "role": "user", "content": prompt }] });
    let headers = [("x-deadline-ms".parse().unwrap(), 5000.into())].into_iter().collect();
    let head = Head {
        id: format!("request-{number}"),
        tenant: Some(format!("team-{}", number % 2)),
        headers,
    };
    Request::parse(Endpoint::ChatCompletions, body.to_string().into(), head).unwrap()
}

/// What a host with this chain writes: a dozen requests of two tenants, and after each a failed try on busier lanes.
fn written(spec: &ChainSpec) -> Vec<Record> {
    let settings = RuntimeSettings { metering: Metering::Fuel, ..RuntimeSettings::default() };
    let rehearsal = DryRunChain::load(&Runtime::new(settings).unwrap(), spec).unwrap();
    let performance = rehearsal.begin();
    let advisor = performance.advisor();
    let info = advisor.chain().unwrap();
    let mut records = vec![Record::Topology(topology()), Record::Policies((**info).clone())];
    for number in 0..REQUESTS {
        let view = fleet(number);
        let request: Arc<dyn pointsman_domain::RequestView> = Arc::new(request(number));
        let facts =
            Facts { request, now_ms: NOON, seed: number.into(), age: Duration::ZERO, attempt: 0 };
        let mut trace = Trace::on();
        let merged = advisor.advise(&facts, &view, &mut trace);
        let decision = Plan::from_advice(&merged, &view, &topology().limits);
        if let Decision::Route(plan) = &decision {
            let failed = FailureReport {
                lane: plan.steps[0].lane,
                what: AttemptResult::ServerError,
                status: 500,
                sent_bytes: 0,
                elapsed: Duration::from_millis(40),
                attempts_left: 2,
            };
            let (edited, _) = facts.request.edited(&merged.edits);
            let later = Facts { request: edited, attempt: 1, ..facts.clone() };
            advisor.recover(&later, &fleet(number + 100), &failed, &mut trace);
        }
        records.push(Record::Decision(Box::new(DecisionRecord {
            request_id: facts.request.id().into(),
            tenant: facts.request.tenant().map(Into::into),
            model: "auto".into(),
            now_ms: NOON,
            seed: number.into(),
            age: Duration::ZERO,
            attempt: 0,
            figures: facts.request.figures(),
            topology: 1,
            chain: Some(info.chain.as_str().into()),
            fleet: view.stats.clone(),
            consulted: trace.into_consulted(),
            merged,
            decision,
            tries: Vec::new(),
            end: End { how: Ended::Answered, total: Duration::from_secs(1) },
            outcome: None,
            request: None,
        })));
    }
    records
}

static RECORDS: LazyLock<Vec<Record>> = LazyLock::new(|| written(&four(100)));

fn decisions(records: &mut [Record]) -> impl Iterator<Item = &mut DecisionRecord> {
    records.iter_mut().filter_map(|record| match record {
        Record::Decision(decision) => Some(&mut **decision),
        Record::Topology(_) | Record::Policies(_) => None,
    })
}

fn calls<'a>(records: &'a mut [Record], name: &'a str) -> impl Iterator<Item = &'a mut Consulted> {
    decisions(records)
        .flat_map(|decision| &mut decision.consulted)
        .filter(move |call| &*call.policy.name == name)
}

/// Whole requests, as in mode `full`.
fn with_requests(records: &mut [Record]) {
    for (number, decision) in (0..).zip(decisions(records)) {
        let request = request(number);
        let header = |(name, value): (&http::HeaderName, &http::HeaderValue)| {
            (name.to_string(), value.to_str().unwrap().to_owned())
        };
        let headers = request.headers().iter().map(header).collect();
        let body = Some(String::from_utf8(request.body().to_vec()).unwrap());
        decision.request = Some(RequestRecord { headers, body });
    }
}

/// By way of the lines of a file.
fn try_replay(written: &[Record], who: Who) -> Result<Report, ReplayError> {
    let lines: Vec<u8> = written.iter().flat_map(|record| record.to_line().unwrap()).collect();
    let mut replay = Replay::new(&STAGE, who, 3)?;
    replay.file("decisions.jsonl");
    for record in records(BufReader::new(lines.as_slice())) {
        replay.take(record.unwrap())?;
    }
    Ok(replay.finish())
}

fn replay(records: &[Record], who: Who) -> Report {
    try_replay(records, who).unwrap()
}

#[test]
fn whoever_wrote_a_record_agrees_with_it() {
    let mut records = RECORDS.clone();
    for whole in [false, true] {
        let report = replay(&records, Who::Chain(four(100)));
        let text = report.text();
        assert!(report.agrees(), "whole: {whole}\n{text}");
        assert_eq!(
            (report.decisions.same, report.decisions.all()),
            (u64::from(REQUESTS), u64::from(REQUESTS))
        );
        assert_eq!(report.policies["cortex"].calls.same, u64::from(REQUESTS));
        assert_eq!(
            report.policies["deadline"].calls.same,
            2 * u64::from(REQUESTS),
            "after failed tries, too"
        );
        assert!(text.ends_with("everything is as in the records\n"), "{text}");
        assert!(report.shown.is_empty() && report.kinds.is_empty() && report.effect.moved() == 0);
        with_requests(&mut records);
    }
}

#[test]
fn without_a_configuration_the_records_say_how_policies_were_configured() {
    let mut records = written(&four(2));
    let here = |name: &str| policy(name, json!({ "no-such-key": "the records go before" }));
    let report = replay(&records, Who::Instead(vec![here("quota")]));
    assert!(report.agrees(), "{}", report.text());
    assert_eq!(
        report.policies.keys().collect::<Vec<_>>(),
        ["quota"],
        "the others say what they said"
    );
    assert!(report.effect.moves["refused"]["refused"] > 0, "some were refused then");

    let Some(Record::Policies(chain)) = records.get_mut(1) else {
        panic!("the chain comes second")
    };
    chain.policies[0].config = json!({ "tenants": "redacted:9:0123456789abcdef" });
    let error = try_replay(&records, Who::Instead(vec![here("quota")])).unwrap_err().to_string();
    assert!(
        error.starts_with("the configuration of `quota` is redacted in the records; name that of"),
        "{error}"
    );

    // Records of earlier hosts name no chain.
    let mut old = RECORDS.clone();
    old.remove(1);
    decisions(&mut old).for_each(|decision| decision.chain = None);
    let report = replay(&old, Who::Instead(vec![policy("cortex", json!({}))]));
    assert!(report.agrees(), "{}", report.text());
}

#[test]
fn a_changed_threshold_shows_in_advice_decisions_and_effect() {
    let report = replay(&RECORDS, Who::Chain(four(4)));
    assert!(!report.agrees());
    // Each of the two tenants asked six times, and four are free.
    let of_quota = &report.policies["quota"];
    assert_eq!(
        (of_quota.calls.same, of_quota.calls.differ, of_quota.calls.unknown),
        (8, 4, 0),
        "{}",
        report.text()
    );
    assert_eq!(
        (report.decisions.differ, report.effect.refused_now, report.effect.moved()),
        (4, 4, 4)
    );
    assert_eq!(of_quota.differ_in_same_version, 0, "it is configured otherwise");
    assert_eq!(
        report.policies["cortex"].calls.same, 8,
        "it is not asked about what was refused before"
    );
    let kind = &report.kinds[&("quota".to_owned(), "reject")];
    let (text, _) = kind.commonest().unwrap();
    assert!(kind.count == 4 && text.starts_with("none -> 429 "), "{kind:?}");
    assert_eq!((report.shown.len(), report.shown[0].request.as_str()), (3, "request-8"));
    let text = report.text();
    for part in [
        "quota on-request  reject: none -> 429 ",
        "would be refused that were not",
        "THEN \\ NOW",
        "  decision  lane: ",
    ] {
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
    assert!(
        text.ends_with("4 of 12 decisions are made otherwise, 4 calls answered otherwise\n"),
        "{text}"
    );
    assert_eq!(report.json()["effect"]["refused_now"], 4);
    // The other way round.
    let alone = |requests: u32| {
        chain(vec![policy("quota", json!({ "window-s": 60, "default": { "requests": requests } }))])
    };
    let back = replay(&written(&alone(4)), Who::Chain(alone(100)));
    assert_eq!((back.effect.refused_then, back.decisions.unknown), (4, 0), "{}", back.text());
}

#[test]
fn weights_and_order_are_part_of_the_decision() {
    let one = |weight: u32| {
        let mut spec = chain(vec![policy("spread", json!({})), policy("cortex", json!({}))]);
        spec.policies[0].weight = weight;
        spec
    };
    let records = written(&one(1000));
    let report = replay(&records, Who::Chain(one(1000)));
    assert!(report.agrees(), "{}", report.text());
    let report = replay(&records, Who::Chain(one(1_000_000)));
    assert_eq!(report.policies["cortex"].calls.differ, 0, "{}", report.text());
    assert!(report.decisions.differ > 0 && report.effect.moved() > 0, "{}", report.text());
    let effect = &report.effect;
    assert!(effect.sooner + effect.later > 0 && effect.mean_change_ms().is_some(), "{effect:?}");
    assert!(report.text().contains("time to start, estimated from the lanes' figures then: "));
}

#[test]
fn who_was_stopped_then_does_not_disagree() {
    let mut records = RECORDS.clone();
    let call = calls(&mut records, "deadline").next().unwrap();
    (call.advice, call.note) = (None, Some("it did not finish within 5 ms".to_owned()));
    call.reads.truncate(2);
    // So the host decided without it.
    let first = decisions(&mut records).next().unwrap();
    let view = fleet(0);
    let mut merge = Merge::new(&view, "auto");
    for call in first.consulted.iter().filter(|call| call.hook == "on-request") {
        call.advice.clone().into_iter().for_each(|advice| merge.add(&call.policy, 1000, advice));
    }
    first.merged = merge.finish(pointsman_domain::OnConflict::Refuse);
    first.decision = Plan::from_advice(&first.merged, &view, &topology().limits);
    let report = replay(&records, Who::Chain(four(100)));
    assert!(report.agrees(), "{}", report.text());
    assert_eq!(report.policies["deadline"].silent, 1);
    assert!(
        report
            .text()
            .contains("deadline: 1 call had no advice then: it did not finish within 5 ms\n")
    );

    // What was wrong with the policy is.
    calls(&mut records, "deadline").next().unwrap().note =
        Some("it trapped: unreachable".to_owned());
    let report = replay(&records, Who::Chain(four(100)));
    assert_eq!(
        report.policies["deadline"].calls.unknown + report.policies["deadline"].calls.differ,
        1
    );
}

#[test]
fn what_is_not_in_a_record_is_named_with_what_to_do_about_it() {
    // Nobody who wrote this read a text.
    let records = written(&chain(vec![quota(100)]));
    let who = || Who::Chain(chain(vec![quota(100), policy("redact", json!({}))]));
    let report = replay(&records, who());
    assert_eq!((report.decisions.unknown, report.policies["quota"].calls.same), (12, 12));
    assert_eq!(report.policies["redact"].calls.unknown, 12);
    let text = report.text();
    assert!(text.contains("cannot be replayed: redact asks request."), "{text}");
    assert!(text.contains(
        "which the record does not have (12 calls); record whole requests (`mode = \"full\"`)\n"
    ));
    assert!(!report.agrees());

    let mut whole = records.clone();
    with_requests(&mut whole);
    let report = replay(&whole, who());
    assert_eq!(
        (report.policies["redact"].new, report.decisions.unknown),
        (12, 0),
        "{}",
        report.text()
    );
    assert_eq!(
        report.decisions.differ,
        4,
        "every third request has an address in it\n{}",
        report.text()
    );
    assert!(
        report.kinds.contains_key(&("decision".to_owned(), "edits")),
        "{:?}",
        report.kinds.keys()
    );

    decisions(&mut whole).for_each(|decision| {
        let body = &mut decision.request.as_mut().unwrap().body;
        *body = body.take().map(|body| body.replace("Hello.", "redacted:6:0123456789abcdef"));
    });
    let report = replay(&whole, who());
    assert_eq!(report.policies["redact"].calls.unknown, 4, "{}", report.text());
    assert!(
        report.text().contains("record with `text = \"keep\"` in `[records.redact]`"),
        "{}",
        report.text()
    );
}

#[test]
fn redacted_answers_are_missing_and_redacted_advice_is_the_same() {
    let mut records = RECORDS.clone();
    for call in calls(&mut records, "quota").filter(|call| call.hook == "on-request") {
        let tenant = call.reads.iter_mut().find(|read| read.call == "request.tenant").unwrap();
        tenant.gave = json!("redacted:6:0123456789abcdef");
    }
    decisions(&mut records)
        .for_each(|decision| decision.tenant = Some("redacted:6:0123456789abcdef".into()));
    let report = replay(&records, Who::Chain(four(100)));
    assert_eq!((report.policies["quota"].calls.unknown, report.decisions.unknown), (12, 12));
    let text = report.text();
    assert!(
        text.contains("cannot be replayed: quota asks request.tenant [], whose answer is redacted in the record (12 calls)"),
        "{text}"
    );

    let mut records = RECORDS.clone();
    for call in calls(&mut records, "cortex").filter(|call| call.hook == "on-request") {
        for note in &mut call.advice.as_mut().unwrap().notes {
            note.value = pointsman_domain::Scalar::Text("redacted:30:0123456789abcdef".to_owned());
        }
    }
    let report = replay(&records, Who::Chain(four(100)));
    assert!(report.agrees(), "{}", report.text());
}

#[test]
fn the_same_version_that_says_something_else_is_asked_why() {
    let mut records = RECORDS.clone();
    for call in calls(&mut records, "cortex").filter(|call| call.hook == "on-request").take(1) {
        call.advice.as_mut().unwrap().lanes = LaneAdvice::Only(vec![LaneId(4)]);
        call.reads.retain(|read| read.call != "request.model");
    }
    let report = replay(&records, Who::Chain(four(100)));
    assert_eq!(report.policies["cortex"].differ_in_same_version, 1, "{}", report.text());
    let text = report.text();
    for part in [
        "cortex on-request  lanes: only [governance] -> ",
        "the same version: where it asked request.header",
        "it goes by something that no record has",
        "1 of them by the very version that wrote the record",
    ] {
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
}

#[test]
fn decisions_about_unknown_lanes_are_skipped_and_named() {
    let mut records = RECORDS.clone();
    decisions(&mut records).next().unwrap().topology = 7;
    let report = replay(&records, Who::Chain(four(100)));
    assert_eq!((report.decisions.all(), report.skipped), (11, 1));
    let named = "decisions.jsonl: the decision about request request-0 names lanes (topology 7) that do not";
    assert!(report.skipped_first[0].starts_with(named), "{:?}", report.skipped_first);
    // Each file stands for itself.
    let mut replay = Replay::new(&STAGE, Who::Chain(chain(Vec::new())), 3).unwrap();
    for file in [&records[..], &records[1..]] {
        replay.file("a file");
        file.iter().for_each(|record| replay.take(record.clone()).unwrap());
    }
    let report = replay.finish();
    assert_eq!((report.files, report.decisions.all(), report.skipped), (2, 11, 13));
}

#[test]
fn trials_and_versions_are_told_apart() {
    let mut records = RECORDS.clone();
    let Some(Record::Policies(chain)) = records.get_mut(1) else {
        panic!("the chain comes second")
    };
    let ChainInfo { policies, .. } = chain;
    let trial = LinkInfo {
        policy: PolicyRef::new("cortex", "0.2.0+00000000"),
        fingerprint: "other".into(),
        component: "other".into(),
        trial: Some("canary".into()),
        ..policies[2].clone()
    };
    policies.push(trial.clone());
    for call in calls(&mut records, "cortex").filter(|call| call.hook == "on-request").take(3) {
        call.policy = trial.policy.clone();
        call.advice = Some(Advice::default());
    }
    let report = replay(&records, Who::Instead(vec![policy("cortex", json!({}))]));
    let cortex = &report.policies["cortex"];
    assert_eq!((cortex.then.len(), cortex.calls.differ, cortex.differ_in_same_version), (2, 3, 0));
    assert!(report.text().contains("2 versions"), "{}", report.text());
}
