//! Replay of records that were written with the policies of this repository.
#![expect(clippy::unwrap_used, reason = "tests")]

mod tree;

use std::io::BufReader;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use pointsman_domain::{
    Advice, AttemptResult, ChainInfo, ChainLink, Decision, Endpoint, EngineKind, Facts,
    FailureReport, FleetView, LaneAdvice, LaneId, LaneInfo, LaneState, Merge, Plan, PlanLimits,
    PolicyCall, PolicyRef, Topology, Trace,
};
use pointsman_openai::{Head, Request};
use pointsman_policy::{ChainSpec, DryRunChain, Metering, PolicySpec, Runtime, RuntimeSettings};
use pointsman_record::{
    DecisionRecord, End, Ended, Record, RequestRecord, TopologyRecord, records,
};
use pointsman_replay::{ChainSource, MissingInputCount, Replay, ReplayError, ReplayReport};
use serde_json::json;

use self::tree::{NOON, chain, policy};

const REQUESTS: u32 = 12;

static RUNTIME: LazyLock<Arc<Runtime>> = LazyLock::new(|| {
    let settings = RuntimeSettings { metering: Metering::Fuel, ..RuntimeSettings::default() };
    Runtime::new(settings).unwrap()
});

fn quota(requests: u32) -> PolicySpec {
    policy(
        "quota",
        json!({ "window-s": 60, "default": { "requests": requests, "tokens": 20_000 } }),
    )
}

/// Returns a chain of policies that reject, edit and read requests, and handle failed attempts.
fn four_policies(requests: u32) -> ChainSpec {
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
        names: Default::default(),
        labels: Vec::new(),
        max_context: 32_768,
        endpoints: pointsman_domain::EndpointSet::all(),
        slots: 8,
        group: 1,
        cost_milli: 500,
        is_peer: false,
    };
    let lanes = Topology::new(1, names.iter().map(info).collect()).lanes().to_vec();
    let limits = PlanLimits { max_wait: Duration::from_secs(60), max_steps: 5 };
    TopologyRecord { host: "0.1.0".into(), generation: 1, lanes, limits }
}

fn fleet(load: u32) -> Arc<FleetView> {
    let topology = Topology::new(1, topology().lanes);
    let mut view = FleetView::idle(Arc::new(topology), LaneState::Ready);
    for (lane, stat) in view.stats_mut().iter_mut().enumerate() {
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
        ..Head::default()
    };
    Request::parse(Endpoint::ChatCompletions, body.to_string().into(), head).unwrap()
}

/// Returns the records of a host with this chain: a dozen requests of two tenants, each followed by
/// a failed attempt on busier lanes.
fn written(spec: &ChainSpec) -> Vec<Record> {
    let settings = RuntimeSettings { metering: Metering::Fuel, ..RuntimeSettings::default() };
    let dry_run = DryRunChain::load(&Runtime::new(settings).unwrap(), spec).unwrap();
    let session = dry_run.begin();
    let advisor = session.advisor();
    let info = advisor.chain().unwrap();
    let mut records = vec![Record::Topology(topology()), Record::Policies((**info).clone())];
    for number in 0..REQUESTS {
        let view = fleet(number);
        let request: Arc<dyn pointsman_domain::RequestView> = Arc::new(request(number));
        let facts = Facts {
            request,
            now_ms: NOON,
            seed: number.into(),
            age: Duration::ZERO,
            attempt: 0,
            time_left: None,
            lanes_left: None,
        };
        let mut trace = Trace::on();
        let merged = advisor.advise(&facts, &view, &mut trace).merged;
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
            figures: facts.request.info(),
            topology: 1,
            guards: None,
            chain: Some(info.chain.as_str().into()),
            fleet: view.stats().collect(),
            consulted: trace.into_calls(),
            merged: merged.into(),
            decision,
            tries: Vec::new(),
            end: End { how: Ended::Answered, total: Duration::from_secs(1) },
            outcome: None,
            request: None,
        })));
    }
    records
}

static RECORDS: LazyLock<Vec<Record>> = LazyLock::new(|| written(&four_policies(100)));

fn decisions(records: &mut [Record]) -> impl Iterator<Item = &mut DecisionRecord> {
    records.iter_mut().filter_map(|record| match record {
        Record::Decision(decision) => Some(&mut **decision),
        Record::Topology(_) | Record::Policies(_) => None,
    })
}

fn calls<'a>(records: &'a mut [Record], name: &'a str) -> impl Iterator<Item = &'a mut PolicyCall> {
    decisions(records)
        .flat_map(|decision| &mut decision.consulted)
        .filter(move |call| &*call.policy.name == name)
}

/// Adds the whole requests, as in mode `full`.
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

/// Replays records after writing and reading them as the lines of a file.
fn try_replay(written: &[Record], source: ChainSource) -> Result<ReplayReport, ReplayError> {
    let lines: Vec<u8> = written.iter().flat_map(|record| record.to_line().unwrap()).collect();
    let mut replay = Replay::new(&RUNTIME, source, 3)?;
    replay.start_file("decisions.jsonl");
    for record in records(BufReader::new(lines.as_slice())) {
        replay.push(record.unwrap())?;
    }
    Ok(replay.finish())
}

/// Returns the recorded chain with these policies replayed.
fn overriding(overrides: Vec<PolicySpec>) -> ChainSource {
    ChainSource::Recorded { overrides }
}

/// Returns the missing inputs of a policy.
fn missing_inputs<'a>(report: &'a ReplayReport, policy: &str) -> Vec<&'a MissingInputCount> {
    let of_policy = report.missing_inputs.iter().filter(|((name, _), _)| name == policy);
    of_policy.map(|(_, input)| input).collect()
}

fn replay(records: &[Record], source: ChainSource) -> ReplayReport {
    try_replay(records, source).unwrap()
}

#[test]
fn same_chain_agrees_with_its_records() {
    let mut records = RECORDS.clone();
    for whole in [false, true] {
        let report = replay(&records, ChainSource::Configured(four_policies(100)));
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
            "including the calls after failed attempts"
        );
        assert!(
            report.differences.is_empty() && report.kinds.is_empty() && report.effect.moved() == 0
        );
        with_requests(&mut records);
    }
}

#[test]
fn recorded_configuration_is_used_without_a_host_configuration() {
    let mut records = written(&four_policies(2));
    let here = |name: &str| policy(name, json!({ "no-such-key": "is overridden by the record" }));
    let report = replay(&records, overriding(vec![here("quota")]));
    assert!(report.agrees(), "{}", report.text());
    assert_eq!(
        report.policies.keys().collect::<Vec<_>>(),
        ["quota"],
        "other policies are not replayed"
    );
    assert!(report.effect.moves["rejected"]["rejected"] > 0, "some were rejected in the record");

    let Some(Record::Policies(chain)) = records.get_mut(1) else {
        panic!("expected the chain as the second record")
    };
    chain.policies[0].config = json!({ "tenants": "redacted:9:0123456789abcdef" });
    let error = try_replay(&records, overriding(vec![here("quota")])).unwrap_err();
    assert!(matches!(&error, ReplayError::Redacted(name) if name == "quota"), "{error}");

    // Records of early hosts name no chain.
    let mut old = RECORDS.clone();
    old.remove(1);
    decisions(&mut old).for_each(|decision| decision.chain = None);
    let report = replay(&old, overriding(vec![policy("cortex", json!({}))]));
    assert!(report.agrees(), "{}", report.text());
}

#[test]
fn changed_threshold_shows_in_advice_decisions_and_effect() {
    let report = replay(&RECORDS, ChainSource::Configured(four_policies(4)));
    assert!(!report.agrees());
    // Each of the two tenants sent six requests, of which four are allowed.
    let of_quota = &report.policies["quota"];
    assert_eq!(
        (of_quota.calls.same, of_quota.calls.differ, of_quota.calls.unknown),
        (8, 4, 0),
        "{}",
        report.text()
    );
    assert_eq!(
        (report.decisions.differ, report.effect.rejected_only_now, report.effect.moved()),
        (4, 4, 4)
    );
    assert_eq!(of_quota.differ_in_same_version, 0, "the configuration differs");
    assert_eq!(
        report.policies["cortex"].calls.same, 8,
        "it is not called for requests that are rejected before"
    );
    let kind = &report.kinds[&("quota".to_owned(), "reject")];
    let (text, _) = kind.most_common().unwrap();
    assert!(kind.count == 4 && text.starts_with("none -> 429 "), "{kind:?}");
    assert_eq!(
        (report.differences.len(), report.differences[0].request.as_str()),
        (3, "request-8")
    );
    let text = report.text();
    for part in ["quota on-request  reject: none -> 429 ", "  decision  lane: "] {
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
    let json = report.json();
    assert_eq!(json["effect"]["rejected_only_now"], 4);
    assert_eq!(json["differences"][0]["calls"][0]["divergences"][0]["part"], "reject");
    // The opposite direction.
    let quota_only = |requests: u32| {
        chain(vec![policy("quota", json!({ "window-s": 60, "default": { "requests": requests } }))])
    };
    let back = replay(&written(&quota_only(4)), ChainSource::Configured(quota_only(100)));
    assert_eq!((back.effect.rejected_only_then, back.decisions.unknown), (4, 0), "{}", back.text());
}

#[test]
fn weights_and_order_are_part_of_the_decision() {
    let one = |weight: u32| {
        let mut spec = chain(vec![policy("spread", json!({})), policy("cortex", json!({}))]);
        spec.policies[0].weight = weight;
        spec
    };
    let records = written(&one(1000));
    let report = replay(&records, ChainSource::Configured(one(1000)));
    assert!(report.agrees(), "{}", report.text());
    let report = replay(&records, ChainSource::Configured(one(1_000_000)));
    assert_eq!(report.policies["cortex"].calls.differ, 0, "{}", report.text());
    assert!(report.decisions.differ > 0 && report.effect.moved() > 0, "{}", report.text());
    let effect = &report.effect;
    assert!(effect.sooner + effect.later > 0 && effect.mean_change_ms().is_some(), "{effect:?}");
}

#[test]
fn transient_failures_in_the_record_do_not_count_as_differences() {
    let mut records = RECORDS.clone();
    let call = calls(&mut records, "deadline").next().unwrap();
    (call.advice, call.note) = (None, Some("it did not finish within 5 ms".to_owned()));
    call.reads.truncate(2);
    // The host decided without its advice.
    let first = decisions(&mut records).next().unwrap();
    let view = fleet(0);
    let mut merge = Merge::new(&view, "auto", Endpoint::ChatCompletions);
    for call in first.consulted.iter().filter(|call| call.hook == "on-request") {
        call.advice.clone().into_iter().for_each(|advice| merge.add(&call.policy, 1000, advice));
    }
    first.merged = merge.finish(pointsman_domain::OnConflict::Refuse).into();
    first.decision = Plan::from_advice(&first.merged, &view, &topology().limits);
    let report = replay(&records, ChainSource::Configured(four_policies(100)));
    assert!(report.agrees(), "{}", report.text());
    assert_eq!(report.policies["deadline"].without_advice, 1);
    let key = ("deadline".to_owned(), "it did not finish within 5 ms".to_owned());
    assert_eq!(report.without_advice[&key], 1);

    // A trap is not transient.
    calls(&mut records, "deadline").next().unwrap().note =
        Some("it trapped: unreachable".to_owned());
    let report = replay(&records, ChainSource::Configured(four_policies(100)));
    assert_eq!(
        report.policies["deadline"].calls.unknown + report.policies["deadline"].calls.differ,
        1
    );
}

#[test]
fn missing_inputs_are_reported_with_a_hint() {
    // The chain of these records does not read the text of requests.
    let records = written(&chain(vec![quota(100)]));
    let source = || ChainSource::Configured(chain(vec![quota(100), policy("redact", json!({}))]));
    let report = replay(&records, source());
    assert_eq!((report.decisions.unknown, report.policies["quota"].calls.same), (12, 12));
    assert_eq!(report.policies["redact"].calls.unknown, 12);
    let missing = missing_inputs(&report, "redact");
    assert!(!missing.is_empty() && missing.iter().all(|input| input.calls == 12), "{missing:?}");
    for input in missing {
        assert!(input.hint.is_some_and(|hint| hint.contains("mode = \"full\"")), "{input:?}");
    }
    assert!(!report.agrees());

    let mut whole = records.clone();
    with_requests(&mut whole);
    let report = replay(&whole, source());
    assert_eq!(
        (report.policies["redact"].not_recorded, report.decisions.unknown),
        (12, 0),
        "{}",
        report.text()
    );
    assert_eq!(
        report.decisions.differ,
        4,
        "every third request contains an address\n{}",
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
    let report = replay(&whole, source());
    assert_eq!(report.policies["redact"].calls.unknown, 4, "{}", report.text());
    for input in missing_inputs(&report, "redact") {
        assert!(input.hint.is_some_and(|hint| hint.contains("text = \"keep\"")), "{input:?}");
    }
}

#[test]
fn redacted_results_are_missing_and_redacted_advice_matches() {
    let mut records = RECORDS.clone();
    for call in calls(&mut records, "quota").filter(|call| call.hook == "on-request") {
        let tenant = call.reads.iter_mut().find(|read| read.call == "request.tenant").unwrap();
        tenant.gave = json!("redacted:6:0123456789abcdef");
    }
    decisions(&mut records)
        .for_each(|decision| decision.tenant = Some("redacted:6:0123456789abcdef".into()));
    let report = replay(&records, ChainSource::Configured(four_policies(100)));
    assert_eq!((report.policies["quota"].calls.unknown, report.decisions.unknown), (12, 12));
    let missing = missing_inputs(&report, "quota");
    let of_tenant = missing.iter().find(|input| input.example.contains("request.tenant")).unwrap();
    assert_eq!(of_tenant.calls, 12, "{missing:#?}");
    assert!(of_tenant.hint.is_some_and(|hint| hint.contains("tenant = \"keep\"")), "{of_tenant:?}");

    let mut records = RECORDS.clone();
    for call in calls(&mut records, "cortex").filter(|call| call.hook == "on-request") {
        for note in &mut call.advice.as_mut().unwrap().notes {
            note.value = pointsman_domain::Scalar::Text("redacted:30:0123456789abcdef".to_owned());
        }
    }
    let report = replay(&records, ChainSource::Configured(four_policies(100)));
    assert!(report.agrees(), "{}", report.text());
}

#[test]
fn differences_in_the_same_version_have_possible_causes() {
    let mut records = RECORDS.clone();
    for call in calls(&mut records, "cortex").filter(|call| call.hook == "on-request").take(1) {
        call.advice.as_mut().unwrap().lanes = LaneAdvice::Only(vec![LaneId(4)]);
        call.reads.retain(|read| read.call != "request.model");
    }
    let report = replay(&records, ChainSource::Configured(four_policies(100)));
    assert_eq!(report.policies["cortex"].differ_in_same_version, 1, "{}", report.text());
    let call = &report.differences[0].calls[0];
    assert_eq!((call.policy.as_str(), call.hook), ("cortex", "on-request"));
    let divergence = &call.divergences[0];
    assert_eq!((divergence.part, divergence.recorded.as_str()), ("lanes", "only [governance]"));
    // The host call that was removed from the record, and a hint at inputs that are not recorded.
    assert_eq!(call.causes.len(), 2, "{:?}", call.causes);
    assert!(call.causes[0].contains("request.header"), "{:?}", call.causes);
}

#[test]
fn decisions_with_unknown_topology_are_skipped() {
    let mut records = RECORDS.clone();
    decisions(&mut records).next().unwrap().topology = 7;
    let report = replay(&records, ChainSource::Configured(four_policies(100)));
    assert_eq!((report.decisions.all(), report.skipped), (11, 1));
    for part in ["decisions.jsonl: ", "request-0", "topology 7"] {
        assert!(report.skipped_first[0].contains(part), "{:?}", report.skipped_first);
    }
    // The topologies of one file do not apply to another.
    let mut replay = Replay::new(&RUNTIME, ChainSource::Configured(chain(Vec::new())), 3).unwrap();
    for file in [&records[..], &records[1..]] {
        replay.start_file("a file");
        file.iter().for_each(|record| replay.push(record.clone()).unwrap());
    }
    let report = replay.finish();
    assert_eq!((report.files, report.decisions.all(), report.skipped), (2, 11, 13));
}

#[test]
fn candidate_and_active_versions_are_counted_separately() {
    let mut records = RECORDS.clone();
    let Some(Record::Policies(chain)) = records.get_mut(1) else {
        panic!("expected the chain as the second record")
    };
    let ChainInfo { policies, .. } = chain;
    let trial = ChainLink {
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
    let report = replay(&records, overriding(vec![policy("cortex", json!({}))]));
    let cortex = &report.policies["cortex"];
    assert_eq!(
        (cortex.recorded_versions.len(), cortex.calls.differ, cortex.differ_in_same_version),
        (2, 3, 0)
    );
    assert!(report.text().contains("2 versions"), "{}", report.text());
}
