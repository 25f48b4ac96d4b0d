use std::io::Write as _;
use std::path::Path;

use pointsman_domain::Endpoint;
use pointsman_settings::{Code, Diagnostic};
use proptest::prelude::*;

use super::*;
use crate::scenario::Scenario;

const LANE: &str = "[[fleet.lanes]]\nname = \"a\"\n";

fn scenario(duration: &str, traffic: &str) -> Scenario {
    let text = format!("duration = \"{duration}\"\n{LANE}{traffic}");
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/arrivals/data/scenario.toml");
    Scenario::parse(&text, &file).unwrap_or_else(|error| panic!("{error}"))
}

/// Returns a stream of single requests.
fn stream(class: &str, keys: &str) -> String {
    format!(
        "[[traffic]]\nclass = \"{class}\"\nmodel = \"a\"\n\
         prompt = {{ median = 900, p99 = 8000 }}\noutput = 9\n{keys}\n"
    )
}

/// Returns all requests that do not follow others.
fn all_requests(scenario: &Scenario, seed: u64) -> Vec<SimRequest> {
    let mut arrivals = scenario.traffic(seed).unwrap_or_else(|error| panic!("{error}"));
    let requests: Vec<SimRequest> = std::iter::from_fn(|| arrivals.next()).collect();
    assert!(arrivals.error().is_none(), "{:?}", arrivals.error());
    assert!(requests.windows(2).all(|pair| pair[0].at <= pair[1].at), "times go back");
    requests
}

fn seconds(requests: &[SimRequest]) -> Vec<f64> {
    requests.iter().map(|request| request.at.as_secs_f64()).collect()
}

#[test]
fn arrivals_have_the_given_rate() {
    // 36000 requests: within five standard deviations of 190.
    let requests = all_requests(&scenario("10h", &stream("a", "rate = \"1/s\"")), 1);
    assert!((35_050..36_950).contains(&requests.len()), "{}", requests.len());
    let times = seconds(&requests);
    let gaps: Vec<f64> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
    let long = gaps.iter().filter(|gap| **gap > 2.0).count() as f64 / gaps.len() as f64;
    // An exponential interval exceeds twice its mean with a probability of e^-2.
    assert!((long - 0.1353).abs() < 0.01, "{long}");
    let regular = all_requests(&scenario("1m", &stream("a", "every = \"10s\"\nfrom = \"5s\"")), 1);
    assert_eq!(seconds(&regular), [15.0, 25.0, 35.0, 45.0, 55.0]);
    let ended = all_requests(&scenario("1m", &stream("a", "every = \"10s\"\nuntil = \"30s\"")), 1);
    assert_eq!(seconds(&ended), [10.0, 20.0]);
}

#[test]
fn daily_rate_peaks_at_the_given_time() {
    let daily = stream("a", "daily = { peak = \"1/s\", trough = \"0.1/s\", peak-at = \"14:00\" }");
    for (start_time, peak_hour) in [("2026-01-05T00:00:00Z", 14), ("2026-01-05T06:00:00Z", 8)] {
        let text = format!("start-time = \"{start_time}\"\nduration = \"24h\"\n{LANE}{daily}");
        let requests = all_requests(&Scenario::parse(&text, Path::new("x")).unwrap(), 1);
        let mut hours = [0usize; 24];
        for request in &requests {
            hours[(request.at.as_secs() / 3600) as usize] += 1;
        }
        // An hour and the one before it are equally far from the peak between them.
        let around = |hour: usize| hours[(hour + 23) % 24] + hours[hour % 24];
        let busiest = (0..24).max_by_key(|hour| around(*hour)).unwrap();
        assert!(busiest.abs_diff(peak_hour) <= 1, "{hours:?}");
        let (high, low) = (around(peak_hour), around(peak_hour + 12));
        assert!((6900..7400).contains(&high) && (650..850).contains(&low), "{high} {low}");
        assert!((46_000..49_000).contains(&requests.len()), "0.55 per second: {}", requests.len());
    }
}

#[test]
fn bursts_arrive_together_and_do_not_overlap() {
    let bursts = stream("a", "bursts = { every = \"1h\", size = 5, gap = \"100ms\" }");
    let times = seconds(&all_requests(&scenario("3h", &bursts), 1));
    let expected: Vec<f64> =
        (0..10).map(|i| f64::from(3600 * (1 + i / 5)) + 0.1 * f64::from(i % 5)).collect();
    assert_eq!(times.len(), 10);
    assert!(
        times.iter().zip(&expected).all(|(time, expected)| (time - expected).abs() < 1e-6),
        "{times:?}"
    );
    let longer_than_interval = stream("a", "bursts = { every = \"1s\", size = 5, gap = \"1s\" }");
    assert_eq!(
        all_requests(&scenario("1m", &longer_than_interval), 1).len(),
        73,
        "a burst starts as soon as the previous one ends"
    );
}

#[test]
fn streams_are_independent() {
    let (a, b) = (stream("a", "rate = \"1/s\"\ntenants = 5"), stream("b", "rate = \"1/s\""));
    let of = |requests: Vec<SimRequest>, class| {
        requests.into_iter().filter(|request| request.class == class).collect::<Vec<SimRequest>>()
    };
    let alone = all_requests(&scenario("1h", &a), 7);
    let both = scenario("1h", &format!("{a}{b}"));
    assert_eq!(both.traffic(7).unwrap().classes(), ["a", "b"]);
    assert_eq!(of(all_requests(&both, 7), ClassId(0)), alone);
    assert_eq!(all_requests(&both, 7), all_requests(&both, 7));
    assert_ne!(all_requests(&both, 7), all_requests(&both, 8));
    // A change of the tenants leaves times and lengths as they are.
    let other = all_requests(&scenario("1h", &stream("a", "rate = \"1/s\"\ntenants = [\"x\"]")), 7);
    let same = |a: &SimRequest, b: &SimRequest| {
        (a.at, a.prompt_tokens, a.session) == (b.at, b.prompt_tokens, b.session)
    };
    assert!(other.len() == alone.len() && other.iter().zip(&alone).all(|(a, b)| same(a, b)));
    let times = |class| seconds(&of(all_requests(&both, 7), class));
    assert_ne!(times(ClassId(0)), times(ClassId(1)));
}

#[test]
fn headers_and_media_belong_to_sessions() {
    let keys = "headers = { x-fixed = \"f\", x-session = \"s-{session}\", \
                x-tier = { gold = 1, free = 3 } }\nmedia = \"20%\"\n\
                sessions = { rate = \"1/s\", turns = 2, think-time = 1 }";
    let scenario = scenario("1h", &stream("a", keys));
    let requests = all_requests(&scenario, 1);
    let header = |request: &SimRequest, name: &str| {
        let found = request.headers.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.clone()).unwrap_or_default()
    };
    let share = |matches: &dyn Fn(&SimRequest) -> bool| {
        requests.iter().filter(|request| matches(request)).count() as f64 / requests.len() as f64
    };
    assert!((share(&|request| header(request, "x-tier") == "gold") - 0.25).abs() < 0.03);
    assert!((share(&|request| request.media == 1) - 0.2).abs() < 0.03);
    assert!(share(&|request| header(request, "x-fixed") == "f") == 1.0);
    let mut sessions: Vec<String> =
        requests.iter().map(|request| header(request, "x-session")).collect();
    sessions.sort_unstable();
    sessions.dedup();
    assert_eq!(sessions.len(), requests.len(), "each session has a value of its own");
    let mut arrivals = scenario.traffic(1).unwrap();
    for _ in 0..20 {
        let first = arrivals.next().unwrap();
        let second = arrivals.follow_up(&first, first.at).unwrap();
        assert_eq!((&second.headers, second.media), (&first.headers, first.media));
    }
}

#[test]
fn media_leave_other_properties_as_they_are() {
    let requests = |keys: &str| all_requests(&scenario("10m", &stream("a", keys)), 5);
    let plain = requests("rate = \"1/s\"\ntenants = 9");
    let other = requests("rate = \"1/s\"\ntenants = 9\nmedia = 3\nheaders = { a = { b = 1 } }");
    assert!(plain.iter().all(|request| request.media == 0) && other[0].media == 3);
    let without = |request: SimRequest| SimRequest { media: 0, headers: [].into(), ..request };
    assert_eq!(plain, other.into_iter().map(without).collect::<Vec<_>>());
}

#[test]
fn requests_have_the_properties_of_their_stream() {
    let keys = "rate = \"10/s\"\ntenants = 10\nskew = 1.0\nmax-tokens = 5\n\
                client-timeout = \"2m\"\nstream = false\ntext = \"Here\"\n\
                headers = { x-a = \"b\" }\nmodels = { m = 3, n = 1 }\nshared-prefix = 600\n\
                prompt = [100, 700]\noutput = 9";
    let requests = all_requests(&scenario("1h", &format!("[[traffic]]\n{keys}\n")), 1);
    let fraction = |matches: &dyn Fn(&SimRequest) -> bool| {
        requests.iter().filter(|request| matches(request)).count() as f64 / requests.len() as f64
    };
    assert!((fraction(&|request| &*request.model == "m") - 0.75).abs() < 0.02);
    // The harmonic number of 10 is 2.929.
    for (tenant, expected) in [("tenant-1", 0.3414), ("tenant-2", 0.1707), ("tenant-10", 0.0341)] {
        assert!(
            (fraction(&|request| request.tenant.as_deref() == Some(tenant)) - expected).abs()
                < 0.02,
            "{tenant}"
        );
    }
    let request = &requests[1];
    assert_eq!(
        (request.output_tokens, request.max_tokens, request.stream, &*request.text),
        (5, Some(5), false, "Here")
    );
    assert_eq!(
        (request.client_timeout, &*request.headers),
        (Some(Duration::from_secs(120)), &[("x-a".into(), "b".into())][..])
    );
    assert!(requests.iter().all(
        |request| request.turn == 0 && request.shared_tokens == request.prompt_tokens.min(600)
    ));
    let mut sessions: Vec<u64> = requests.iter().map(|request| request.session).collect();
    sessions.dedup();
    assert_eq!(sessions.len(), requests.len(), "each has a session of its own");
}

const AGENTS: &str = r#"
[[traffic]]
class = "agents"
turn-models = ["o", "c"]
prompt = [200, 300]
shared-prefix = 100
output = [40, 50]
[traffic.sessions]
rate = "60/h"
turns = { min = 2, max = 9 }
think-time = { min = "1s", max = "2s" }
"#;

/// Returns all sessions, with this time from each request to the end of its response.
fn sessions(scenario: &Scenario, response_time: Duration) -> Vec<Vec<SimRequest>> {
    let mut arrivals = scenario.traffic(3).unwrap();
    let mut sessions = Vec::new();
    while let Some(first) = arrivals.next() {
        let mut turns = vec![first];
        while let Some(next) =
            turns.last().and_then(|last| arrivals.follow_up(last, last.at + response_time))
        {
            turns.push(next);
        }
        sessions.push(turns);
    }
    sessions
}

#[test]
fn session_prompts_grow_by_their_history() {
    let scenario = scenario("10h", AGENTS);
    let all = sessions(&scenario, Duration::from_secs(30));
    assert!((500..700).contains(&all.len()), "{}", all.len());
    for turns in all.iter().filter(|turns| turns[0].at < Duration::from_secs(9 * 3600)) {
        assert!((2..=9).contains(&turns.len()), "{}", turns.len());
        assert_eq!(turns[0].shared_tokens, 100, "the prefix of the class");
        for (index, turn) in turns.iter().enumerate() {
            assert_eq!((&*turn.model, turn.turn as usize), (["o", "c"][index % 2], index));
        }
        for pair in turns.windows(2) {
            let history = pair[0].prompt_tokens + pair[0].output_tokens;
            assert_eq!(pair[1].shared_tokens, history);
            assert!(
                (100..=200).contains(&(pair[1].prompt_tokens - history)),
                "without the shared prefix"
            );
            let think_time = (pair[1].at - pair[0].at).as_secs_f64() - 30.0;
            assert!((1.0..=2.0).contains(&think_time), "{think_time}");
            assert_eq!((pair[0].session, &pair[0].tenant), (pair[1].session, &pair[1].tenant));
        }
    }
    assert!(all.iter().flatten().all(|turn| turn.at < Duration::from_secs(36_000)));
}

#[test]
fn session_content_does_not_depend_on_response_times() {
    let scenario = scenario("10h", AGENTS);
    let content = |response_time| {
        let early = |turns: &Vec<SimRequest>| turns[0].at < Duration::from_secs(8 * 3600);
        let turn = |request: &SimRequest| {
            (
                request.session,
                request.turn,
                request.prompt_tokens,
                request.output_tokens,
                request.model.clone(),
            )
        };
        let all = sessions(&scenario, Duration::from_secs(response_time));
        all.iter().filter(|turns| early(turns)).flatten().map(turn).collect::<Vec<_>>()
    };
    assert_eq!(content(1), content(600));
}

#[test]
fn session_restarts_without_history_at_max_prompt() {
    let agents = AGENTS
        .replace("think-time =", "max-prompt = 700\nthink-time =")
        .replace("min = 2, max = 9", "min = 40, max = 40");
    let all = sessions(&scenario("10h", &agents), Duration::from_secs(1));
    assert!(all.iter().flatten().all(|turn| turn.prompt_tokens <= 700));
    let is_restart = |pair: &[SimRequest]| {
        pair[1].prompt_tokens < pair[0].prompt_tokens && pair[1].shared_tokens == 100
    };
    let (turns, restarts) = (&all[0], all[0].windows(2).filter(|pair| is_restart(pair)).count());
    assert!(turns.len() == 40 && restarts > 5, "{restarts}");
}

/// Returns a scenario with a stream of a trace file in `data`.
fn trace(keys: &str) -> Scenario {
    scenario("10h", &format!("[[traffic]]\n{keys}\n"))
}

#[test]
fn azure_trace_is_sorted_by_time() {
    let requests = all_requests(
        &trace(
            "file = \"azure.csv\"\nformat = \"azure\"\nmodel = \"a\"\nfrom = \"1h\"\nspeed = 2.0",
        ),
        1,
    );
    let lengths: Vec<(u32, u32)> =
        requests.iter().map(|request| (request.prompt_tokens, request.output_tokens)).collect();
    assert_eq!(lengths, [(374, 44), (879, 55), (396, 109), (91, 16)]);
    let micros: Vec<u128> =
        requests.iter().map(|request| request.at.as_micros() - 3_600_000_000).collect();
    // Half of 1.541967, 4.314579 and 4.32934 seconds.
    assert_eq!(micros, [0, 770_984, 2_157_290, 2_164_670]);
    let first = all_requests(
        &trace("file = \"azure.csv\"\nformat = \"azure\"\nmodel = \"a\"\nlimit = 2"),
        1,
    );
    assert_eq!(first.len(), 2);
}

#[test]
fn burst_gpt_trace_has_models() {
    let requests = all_requests(
        &trace("file = \"burstgpt.csv\"\nformat = \"burstgpt\"\ntenants = [\"t\"]"),
        1,
    );
    let seen: Vec<(f64, &str, u32, u32)> = requests
        .iter()
        .map(|request| {
            (
                request.at.as_secs_f64(),
                &*request.model,
                request.prompt_tokens,
                request.output_tokens,
            )
        })
        .collect();
    // The row without response tokens is a failed request.
    assert_eq!(
        seen,
        [(0.0, "ChatGPT", 472, 18), (40.0, "ChatGPT", 1087, 230), (113.5, "GPT-4", 417, 276)]
    );
    assert_eq!(requests[0].tenant.as_deref(), Some("t"));
    let mapped = all_requests(
        &trace("file = \"burstgpt.csv\"\nformat = \"burstgpt\"\nmodel = \"coder\""),
        1,
    );
    assert!(mapped.iter().all(|request| &*request.model == "coder"));
}

#[test]
fn conversations_become_sessions() {
    let scenario = trace(
        "file = \"sharegpt.json\"\nformat = \"sharegpt\"\nturn-models = [\"o\", \"c\"]\n\
         every = \"1m\"\nthink-time = \"5s\"",
    );
    let mut arrivals = scenario.traffic(1).unwrap();
    let first = arrivals.next().unwrap();
    assert_eq!((first.at.as_secs(), first.prompt_tokens, first.output_tokens), (60, 7, 3));
    let second = arrivals.follow_up(&first, Duration::from_secs(70)).unwrap();
    assert_eq!((second.at.as_secs(), &*first.model, &*second.model), (75, "o", "c"));
    assert_eq!((second.shared_tokens, second.prompt_tokens, second.output_tokens), (10, 13, 9));
    assert_eq!(arrivals.follow_up(&second, Duration::from_secs(80)), None);
    let other = arrivals.next().unwrap();
    assert_eq!((other.at.as_secs(), other.prompt_tokens, other.output_tokens), (120, 7, 1));
    assert_eq!(
        (arrivals.follow_up(&other, Duration::from_secs(130)), arrivals.next()),
        (None, None)
    );
    assert!(arrivals.error().is_none());
}

#[test]
fn decision_records_keep_their_recorded_properties() {
    let requests =
        all_requests(&trace("file = \"records.jsonl\"\nformat = \"records\"\noutput = 77"), 1);
    let ids: Vec<&str> = requests.iter().filter_map(|request| request.id.as_deref()).collect();
    assert_eq!(
        ids,
        ["request-1", "request-2", "request-3"],
        "records are written when requests end, and sorted by arrival"
    );
    assert_eq!(seconds(&requests), [0.0, 3.0, 4.0]);
    let request = &requests[0];
    assert_eq!(
        (request.tenant.as_deref(), &*request.model, request.stream),
        (Some("team-a"), "auto", true)
    );
    assert_eq!(
        (request.prompt_tokens, request.output_tokens, request.endpoint),
        (14, 96, Endpoint::ChatCompletions)
    );
    assert_eq!(&*request.headers, [("x-class".to_owned(), "interactive".to_owned())]);
    assert_eq!(request.body.as_deref(), Some(br#"{"model": "auto", "messages": []}"#.as_slice()));
    let micros = Duration::from_micros;
    assert_eq!(
        request.recorded_times,
        Some((micros(28_860), micros(51_100))),
        "without the failed attempt and the queues"
    );
    // The response was aborted, so its complete length is unknown.
    let aborted = &requests[2];
    assert_eq!(
        (aborted.tenant.as_deref(), aborted.prompt_tokens, aborted.output_tokens, &aborted.body),
        (None, 11, 77, &None)
    );
}

#[test]
fn what_a_trace_does_not_say_is_a_warning() {
    let warnings = |keys: &str| {
        let mut arrivals = trace(keys).traffic(1).unwrap();
        while arrivals.next().is_some() {}
        arrivals.warnings()
    };
    // One request has neither a text nor a complete response.
    let found = warnings("file = \"records.jsonl\"\nformat = \"records\"\noutput = 77");
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found.iter().all(|warning| warning.contains("1 of 3")), "{found:?}");
    // Such traces have lengths only.
    let found = warnings("file = \"azure.csv\"\nformat = \"azure\"\nmodel = \"a\"");
    assert!(found.len() == 1 && found[0].starts_with("traffic[0]"), "{found:?}");
    let mut empty = tempfile::NamedTempFile::new().unwrap();
    empty.write_all(b"TIMESTAMP,ContextTokens,GeneratedTokens\n").unwrap();
    let path = empty.path().to_str().unwrap();
    let found = warnings(&format!("file = \"{path}\"\nformat = \"azure\"\nmodel = \"a\""));
    assert_eq!(found.len(), 1, "{found:?}");
}

/// Returns the first error in a file with this content.
fn trace_error(format: &str, content: &[u8]) -> Option<Diagnostic> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(content).unwrap();
    let path = file.path().to_str().unwrap();
    let rate = if format == "sharegpt" { "rate = \"100/s\"" } else { "" };
    let traffic =
        format!("[[traffic]]\nmodel = \"a\"\nfile = \"{path}\"\nformat = \"{format}\"\n{rate}\n");
    let scenario = scenario("1h", &traffic);
    let error = match scenario.traffic(1) {
        Err(error) => Some(error),
        Ok(mut arrivals) => {
            while let Some(request) = arrivals.next() {
                let mut last = request;
                while let Some(next) = arrivals.follow_up(&last, last.at) {
                    last = next;
                }
            }
            arrivals.error().map(|error| scenario.traffic_error(error))
        }
    };
    error.map(|error| {
        let mut first = error.diagnostics()[0].clone();
        first.message = first.message.replace(path, "FILE");
        first
    })
}

#[test]
fn invalid_trace_files_are_reported_with_their_line() {
    for (format, content, line, value) in [
        ("azure", "a,b\n", 1, "`TIMESTAMP`, `ContextTokens`, `GeneratedTokens`"),
        ("azure", "TIMESTAMP,ContextTokens,GeneratedTokens\n\n5,1,1\n", 3, "time \"5\""),
        (
            "azure",
            "GeneratedTokens,TIMESTAMP,ContextTokens\nx,2023-11-16 18:15:46,1\n",
            2,
            "tokens \"x\"",
        ),
        (
            "azure",
            "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46,1\n",
            2,
            "tokens \"\"",
        ),
        (
            "burstgpt",
            "Timestamp,Model,Request tokens,Response tokens\n-1,m,1,1\n",
            2,
            "time \"-1\"",
        ),
        ("sharegpt", "hello", 1, "list of conversations"),
        ("sharegpt", "[\n{\"conversations\": 5}]", 2, "invalid type"),
        ("sharegpt", "[{\"conversations\": [", 1, "end of file"),
        ("records", "{}\n", 1, "decision record"),
        ("records", "{\"v\":9,\"kind\":\"decision\"}\n", 1, "version 9"),
    ] {
        let found = trace_error(format, content.as_bytes()).unwrap();
        assert_eq!(found.code, Code::InvalidValue, "{found}");
        assert!(
            found.message.starts_with(&format!("FILE:{line}: ")) && found.message.contains(value),
            "{value}\n{found}"
        );
    }
    let missing = trace("file = \"none.csv\"\nformat = \"azure\"\nmodel = \"a\"");
    let error = missing.traffic(1).unwrap_err();
    let [error] = error.diagnostics() else { panic!("{error}") };
    assert_eq!(
        (error.line, error.key.as_str(), error.code),
        (5, "traffic[0].file", Code::Unreadable)
    );
    assert!(error.message.contains("none.csv"), "{error}");
    let empty = "\u{feff}\"TIMESTAMP\",ContextTokens,GeneratedTokens\r\n";
    assert_eq!(trace_error("azure", empty.as_bytes()), None);
}

#[test]
fn folder_without_records_is_rejected() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    let scenario = trace(&format!("file = \"{path}\"\nformat = \"records\""));
    let error = scenario.traffic(1).unwrap_err();
    assert_eq!(error.diagnostics()[0].code, Code::Unavailable, "{error}");
}

#[test]
fn error_in_the_middle_of_a_trace_ends_the_run() {
    let mut lines = "TIMESTAMP,ContextTokens,GeneratedTokens\n".to_owned();
    for second in 0..3000 {
        lines += &format!("2023-11-16 18:{:02}:{:02},1,1\n", second / 60, second % 60);
    }
    assert_eq!(trace_error("azure", lines.as_bytes()), None);
    lines = lines.replace("18:40:01,1,1", "18:40:01,1,one");
    let error = trace_error("azure", lines.as_bytes()).unwrap();
    assert!(
        error.message.starts_with("FILE:2403: ") && error.message.contains("\"one\""),
        "{error}"
    );
}

/// Returns the lengths of all requests of a trace, in order.
fn lengths(format: &str, content: &str) -> Vec<(u32, u32)> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(content.as_bytes()).unwrap();
    let path = file.path().to_str().unwrap();
    let keys = format!("file = \"{path}\"\nformat = \"{format}\"\nmodel = \"a\"");
    let requests = all_requests(&trace(&keys), 1);
    requests.iter().map(|request| (request.prompt_tokens, request.output_tokens)).collect()
}

#[test]
fn model_names_with_commas_are_one_field() {
    let content = "Timestamp,Model,Request tokens,Response tokens\n5,\"GPT-4, turbo\",30,40\n";
    assert_eq!(lengths("burstgpt", content), [(30, 40)]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn csv_traces_are_read_as_written(
        mut rows in prop::collection::vec((0u32..3000, 1u32..100_000, 1u32..100_000), 0..20),
        quote: bool,
    ) {
        let quoted = |field: String| if quote { format!("\"{field}\"") } else { field };
        let mut azure = "TIMESTAMP,ContextTokens,GeneratedTokens\n".to_owned();
        let mut burst_gpt = "Model,Response tokens,Request tokens,Timestamp\n".to_owned();
        for (second, prompt, output) in &rows {
            let time = quoted(format!("2023-11-16 18:{:02}:{:02}", second / 60, second % 60));
            azure += &format!("{time},{},{output}\n", quoted(prompt.to_string()));
            burst_gpt += &format!("m,{output},{prompt},{}\n", quoted(second.to_string()));
        }
        rows.sort_by_key(|(second, ..)| *second);
        let expected: Vec<_> = rows.iter().map(|(_, prompt, output)| (*prompt, *output)).collect();
        prop_assert_eq!(lengths("azure", &azure), expected.clone());
        prop_assert_eq!(lengths("burstgpt", &burst_gpt), expected);
    }

    #[test]
    fn errors_in_traces_name_a_line_of_the_file(
        content: Vec<u8>,
        rows in prop::collection::vec(
            "[0-9]{0,12}[-.,:\"e ]?[0-9]{0,6},[a-z0-9]{0,3},[0-9.-]{0,12},[0-9]{0,12}",
            0..5,
        ),
        objects in "(\\[?\\{\"conversations\": ?\\[(\\{\"from\":\"(gpt|human)\",\"value\":\
                    \"[a-z{\\[\\\\\"]{0,9}\"\\},?){0,4}\\]\\},?){0,3}",
    ) {
        let rows = rows.join("\n");
        let azure = format!("TIMESTAMP,x,ContextTokens,GeneratedTokens\n{rows}");
        let burst_gpt = format!("Timestamp,Model,Request tokens,Response tokens\n{rows}");
        let cases = [
            ("azure", azure.as_bytes()),
            ("burstgpt", burst_gpt.as_bytes()),
            ("sharegpt", objects.as_bytes()),
            ("azure", &content[..]),
            ("burstgpt", &content[..]),
            ("sharegpt", &content[..]),
            ("records", &content[..]),
        ];
        for (format, content) in cases {
            let Some(error) = trace_error(format, content) else { continue };
            prop_assert_eq!(error.code, Code::InvalidValue, "{}", error);
            let line = error.message.strip_prefix("FILE:").and_then(|rest| rest.split_once(':'));
            let line = line.and_then(|(line, _)| line.parse::<usize>().ok());
            let lines = content.iter().filter(|byte| **byte == b'\n').count() + 1;
            prop_assert!(line.is_some_and(|line| (1..=lines).contains(&line)), "{}", error);
        }
    }
}
