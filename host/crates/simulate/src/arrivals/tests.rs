use std::io::Write as _;
use std::path::Path;

use pointsman_domain::Endpoint;
use proptest::prelude::*;

use super::*;
use crate::scenario::Scenario;

const LANE: &str = "[[fleet.lanes]]\nname = \"a\"\n";

fn scenario(lasts: &str, traffic: &str) -> Scenario {
    let text = format!("lasts = \"{lasts}\"\n{LANE}{traffic}");
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/arrivals/data/scenario.toml");
    Scenario::parse(&text, &file).unwrap_or_else(|error| panic!("{error}"))
}

/// A stream of single requests.
fn stream(class: &str, keys: &str) -> String {
    format!(
        "[[traffic]]\nclass = \"{class}\"\nmodel = \"a\"\nprompt = {{ median = 900, p99 = 8000 }}\noutput = 9\n{keys}\n"
    )
}

fn all(scenario: &Scenario, seed: u64) -> Vec<Ask> {
    let mut arrivals = scenario.traffic(seed).unwrap_or_else(|error| panic!("{error}"));
    let asks: Vec<Ask> = std::iter::from_fn(|| arrivals.next()).collect();
    assert_eq!(arrivals.problem(), None);
    assert!(asks.windows(2).all(|pair| pair[0].at <= pair[1].at), "times go back");
    asks
}

fn seconds(asks: &[Ask]) -> Vec<f64> {
    asks.iter().map(|ask| ask.at.as_secs_f64()).collect()
}

#[test]
fn rates_come_out_right() {
    // 36000 requests: within five standard deviations, which are 190.
    let asks = all(&scenario("10h", &stream("a", "rate = \"1/s\"")), 1);
    assert!((35_050..36_950).contains(&asks.len()), "{}", asks.len());
    let times = seconds(&asks);
    let gaps: Vec<f64> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
    let long = gaps.iter().filter(|gap| **gap > 2.0).count() as f64 / gaps.len() as f64;
    // One in e squared is longer than twice the mean.
    assert!((long - 0.1353).abs() < 0.01, "{long}");
    let regular = all(&scenario("1m", &stream("a", "every = \"10s\"\nfrom = \"5s\"")), 1);
    assert_eq!(seconds(&regular), [15.0, 25.0, 35.0, 45.0, 55.0]);
    let ended = all(&scenario("1m", &stream("a", "every = \"10s\"\nuntil = \"30s\"")), 1);
    assert_eq!(seconds(&ended), [10.0, 20.0]);
}

#[test]
fn days_have_their_most_when_they_should() {
    let daily = stream("a", "daily = { most = \"1/s\", least = \"0.1/s\", at = \"14:00\" }");
    for (begins, hour_of_most) in [("2026-01-05T00:00:00Z", 14), ("2026-01-05T06:00:00Z", 8)] {
        let text = format!("begins = \"{begins}\"\nlasts = \"24h\"\n{LANE}{daily}");
        let asks = all(&Scenario::parse(&text, Path::new("x")).unwrap(), 1);
        let mut hours = [0usize; 24];
        for ask in &asks {
            hours[(ask.at.as_secs() / 3600) as usize] += 1;
        }
        // Half past the hour before and half past this one are equally far from the most.
        let around = |hour: usize| hours[(hour + 23) % 24] + hours[hour % 24];
        let most = (0..24).max_by_key(|hour| around(*hour)).unwrap();
        assert!(most.abs_diff(hour_of_most) <= 1, "{hours:?}");
        let (high, low) = (around(hour_of_most), around(hour_of_most + 12));
        assert!((6900..7400).contains(&high) && (650..850).contains(&low), "{high} {low}");
        assert!((46_000..49_000).contains(&asks.len()), "0.55 a second: {}", asks.len());
    }
}

#[test]
fn bursts_come_together() {
    let bursts = stream("a", "bursts = { every = \"1h\", size = 5, gap = \"100ms\" }");
    let times = seconds(&all(&scenario("3h", &bursts), 1));
    let expected: Vec<f64> =
        (0..10).map(|i| f64::from(3600 * (1 + i / 5)) + 0.1 * f64::from(i % 5)).collect();
    assert_eq!(times.len(), 10);
    assert!(
        times.iter().zip(&expected).all(|(time, expected)| (time - expected).abs() < 1e-6),
        "{times:?}"
    );
    let longer_than_pauses = stream("a", "bursts = { every = \"1s\", size = 5, gap = \"1s\" }");
    assert_eq!(
        all(&scenario("1m", &longer_than_pauses), 1).len(),
        73,
        "one begins as soon as the other ends"
    );
}

#[test]
fn streams_have_nothing_to_do_with_each_other() {
    let (a, b) = (stream("a", "rate = \"1/s\"\ntenants = 5"), stream("b", "rate = \"1/s\""));
    let of = |asks: Vec<Ask>, class| {
        asks.into_iter().filter(|ask| ask.class == class).collect::<Vec<Ask>>()
    };
    let alone = all(&scenario("1h", &a), 7);
    let both = scenario("1h", &format!("{a}{b}"));
    assert_eq!(both.traffic(7).unwrap().classes(), ["a", "b"]);
    assert_eq!(of(all(&both, 7), ClassId(0)), alone);
    assert_eq!(all(&both, 7), all(&both, 7));
    assert_ne!(all(&both, 7), all(&both, 8));
    // Other tenants leave times and lengths as they are.
    let other = all(&scenario("1h", &stream("a", "rate = \"1/s\"\ntenants = [\"x\"]")), 7);
    let same =
        |a: &Ask, b: &Ask| (a.at, a.prompt_tokens, a.session) == (b.at, b.prompt_tokens, b.session);
    assert!(other.len() == alone.len() && other.iter().zip(&alone).all(|(a, b)| same(a, b)));
    let times = |class| seconds(&of(all(&both, 7), class));
    assert_ne!(times(ClassId(0)), times(ClassId(1)));
}

#[test]
fn requests_are_what_the_stream_says() {
    let keys = "rate = \"10/s\"\ntenants = 10\nskew = 1.0\nmax-tokens = 5\npatience = \"2m\"\nstream = false\n\
                text = \"Here\"\nheaders = { x-a = \"b\" }\nmodels = { m = 3, n = 1 }\nshared = 600\nprompt = [100, 700]\noutput = 9";
    let asks = all(&scenario("1h", &format!("[[traffic]]\n{keys}\n")), 1);
    let part = |of: &dyn Fn(&Ask) -> bool| {
        asks.iter().filter(|ask| of(ask)).count() as f64 / asks.len() as f64
    };
    assert!((part(&|ask| &*ask.model == "m") - 0.75).abs() < 0.02);
    // The harmonic number of 10 is 2.929.
    for (tenant, expected) in [("tenant-1", 0.3414), ("tenant-2", 0.1707), ("tenant-10", 0.0341)] {
        assert!(
            (part(&|ask| ask.tenant.as_deref() == Some(tenant)) - expected).abs() < 0.02,
            "{tenant}"
        );
    }
    let ask = &asks[1];
    assert_eq!(
        (ask.output_tokens, ask.max_tokens, ask.stream, &*ask.text),
        (5, Some(5), false, "Here")
    );
    assert_eq!(
        (ask.patience, &*ask.headers),
        (Some(Duration::from_secs(120)), &[("x-a".into(), "b".into())][..])
    );
    assert!(
        asks.iter().all(|ask| ask.turn == 0 && ask.shared_tokens == ask.prompt_tokens.min(600))
    );
    let mut sessions: Vec<u64> = asks.iter().map(|ask| ask.session).collect();
    sessions.dedup();
    assert_eq!(sessions.len(), asks.len(), "each is alone");
}

const AGENTS: &str = "[[traffic]]\nclass = \"agents\"\nturns = [\"o\", \"c\"]\nprompt = [200, 300]\nshared = 100\noutput = [40, 50]\n\
                      sessions = { rate = \"60/h\", turns = { least = 2, most = 9 }, think = { least = \"1s\", most = \"2s\" } }\n";

/// The sessions of an hour, each turn answered after so long.
fn sessions(scenario: &Scenario, answered_in: Duration) -> Vec<Vec<Ask>> {
    let mut arrivals = scenario.traffic(3).unwrap();
    let mut sessions = Vec::new();
    while let Some(first) = arrivals.next() {
        let mut turns = vec![first];
        while let Some(next) =
            turns.last().and_then(|last| arrivals.after(last, last.at + answered_in))
        {
            turns.push(next);
        }
        sessions.push(turns);
    }
    sessions
}

#[test]
fn sessions_take_turns_and_grow() {
    let scenario = scenario("10h", AGENTS);
    let all = sessions(&scenario, Duration::from_secs(30));
    assert!((500..700).contains(&all.len()), "{}", all.len());
    for turns in all.iter().filter(|turns| turns[0].at < Duration::from_secs(9 * 3600)) {
        assert!((2..=9).contains(&turns.len()), "{}", turns.len());
        assert_eq!(turns[0].shared_tokens, 100, "what all have in common");
        for (index, turn) in turns.iter().enumerate() {
            assert_eq!((&*turn.model, turn.turn as usize), (["o", "c"][index % 2], index));
        }
        for pair in turns.windows(2) {
            let history = pair[0].prompt_tokens + pair[0].output_tokens;
            assert_eq!(pair[1].shared_tokens, history);
            assert!(
                (100..=200).contains(&(pair[1].prompt_tokens - history)),
                "without what is shared"
            );
            let thought = (pair[1].at - pair[0].at).as_secs_f64() - 30.0;
            assert!((1.0..=2.0).contains(&thought), "{thought}");
            assert_eq!((pair[0].session, &pair[0].tenant), (pair[1].session, &pair[1].tenant));
        }
    }
    assert!(all.iter().flatten().all(|turn| turn.at < Duration::from_secs(36_000)));
}

#[test]
fn what_sessions_ask_does_not_depend_on_when_they_are_answered() {
    let scenario = scenario("10h", AGENTS);
    let shape = |answered_in| {
        let early = |turns: &Vec<Ask>| turns[0].at < Duration::from_secs(8 * 3600);
        let turn = |ask: &Ask| {
            (ask.session, ask.turn, ask.prompt_tokens, ask.output_tokens, ask.model.clone())
        };
        let all = sessions(&scenario, Duration::from_secs(answered_in));
        all.iter().filter(|turns| early(turns)).flatten().map(turn).collect::<Vec<_>>()
    };
    assert_eq!(shape(1), shape(600));
}

#[test]
fn histories_end_before_they_are_too_long() {
    let agents = AGENTS
        .replace("think =", "longest = 700, think =")
        .replace("least = 2, most = 9", "least = 40, most = 40");
    let all = sessions(&scenario("10h", &agents), Duration::from_secs(1));
    assert!(all.iter().flatten().all(|turn| turn.prompt_tokens <= 700));
    let begun_anew = |pair: &[Ask]| {
        pair[1].prompt_tokens < pair[0].prompt_tokens && pair[1].shared_tokens == 100
    };
    let (turns, anew) = (&all[0], all[0].windows(2).filter(|pair| begun_anew(pair)).count());
    assert!(turns.len() == 40 && anew > 5, "{anew}");
}

/// A stream of a file in `data`.
fn file(keys: &str) -> Scenario {
    scenario("10h", &format!("[[traffic]]\n{keys}\n"))
}

#[test]
fn azure_traces_are_read_in_the_order_of_their_times() {
    let asks = all(
        &file(
            "file = \"azure.csv\"\nformat = \"azure\"\nmodel = \"a\"\nfrom = \"1h\"\nspeed = 2.0",
        ),
        1,
    );
    let lengths: Vec<(u32, u32)> =
        asks.iter().map(|ask| (ask.prompt_tokens, ask.output_tokens)).collect();
    assert_eq!(lengths, [(374, 44), (879, 55), (396, 109), (91, 16)]);
    let micros: Vec<u128> = asks.iter().map(|ask| ask.at.as_micros() - 3_600_000_000).collect();
    // Half of 1.541967, 4.314579 and 4.32934 seconds.
    assert_eq!(micros, [0, 770_984, 2_157_290, 2_164_670]);
    let first = all(&file("file = \"azure.csv\"\nformat = \"azure\"\nmodel = \"a\"\nlimit = 2"), 1);
    assert_eq!(first.len(), 2);
}

#[test]
fn burst_gpt_names_models() {
    let asks = all(&file("file = \"burstgpt.csv\"\nformat = \"burstgpt\"\ntenants = [\"t\"]"), 1);
    let seen: Vec<(f64, &str, u32, u32)> = asks
        .iter()
        .map(|ask| (ask.at.as_secs_f64(), &*ask.model, ask.prompt_tokens, ask.output_tokens))
        .collect();
    // The one without an answer failed.
    assert_eq!(
        seen,
        [(0.0, "ChatGPT", 472, 18), (40.0, "ChatGPT", 1087, 230), (113.5, "GPT-4", 417, 276)]
    );
    assert_eq!(asks[0].tenant.as_deref(), Some("t"));
    let mapped = all(&file("file = \"burstgpt.csv\"\nformat = \"burstgpt\"\nmodel = \"coder\""), 1);
    assert!(mapped.iter().all(|ask| &*ask.model == "coder"));
}

#[test]
fn conversations_are_sessions() {
    let scenario = file(
        "file = \"sharegpt.json\"\nformat = \"sharegpt\"\nturns = [\"o\", \"c\"]\nevery = \"1m\"\nthink = \"5s\"",
    );
    let mut arrivals = scenario.traffic(1).unwrap();
    let first = arrivals.next().unwrap();
    assert_eq!((first.at.as_secs(), first.prompt_tokens, first.output_tokens), (60, 7, 3));
    let second = arrivals.after(&first, Duration::from_secs(70)).unwrap();
    assert_eq!((second.at.as_secs(), &*first.model, &*second.model), (75, "o", "c"));
    assert_eq!((second.shared_tokens, second.prompt_tokens, second.output_tokens), (10, 13, 9));
    assert_eq!(arrivals.after(&second, Duration::from_secs(80)), None);
    let other = arrivals.next().unwrap();
    assert_eq!((other.at.as_secs(), other.prompt_tokens, other.output_tokens), (120, 7, 1));
    assert_eq!((arrivals.after(&other, Duration::from_secs(130)), arrivals.next()), (None, None));
    assert_eq!(arrivals.problem(), None);
}

#[test]
fn records_come_as_they_came() {
    let asks = all(&file("file = \"records.jsonl\"\nformat = \"records\"\noutput = 77"), 1);
    let ids: Vec<&str> = asks.iter().filter_map(|ask| ask.id.as_deref()).collect();
    assert_eq!(
        ids,
        ["request-1", "request-2", "request-3"],
        "written when they ended, and asked in their order"
    );
    assert_eq!(seconds(&asks), [0.0, 3.0, 4.0]);
    let ask = &asks[0];
    assert_eq!((ask.tenant.as_deref(), &*ask.model, ask.stream), (Some("team-a"), "auto", true));
    assert_eq!(
        (ask.prompt_tokens, ask.output_tokens, ask.endpoint),
        (14, 96, Endpoint::ChatCompletions)
    );
    assert_eq!(&*ask.headers, [("x-class".to_owned(), "interactive".to_owned())]);
    assert_eq!(ask.body.as_deref(), Some(br#"{"model": "auto", "messages": []}"#.as_slice()));
    let micros = Duration::from_micros;
    assert_eq!(
        ask.took,
        Some((micros(28_860), micros(51_100))),
        "the try that failed, and queues, are no work"
    );
    // Nobody knows how long its answer would have been.
    let cut = &asks[2];
    assert_eq!(
        (cut.tenant.as_deref(), cut.prompt_tokens, cut.output_tokens, &cut.body),
        (None, 11, 77, &None)
    );
}

/// The first mistake of a file with this content.
fn problem(format: &str, content: &[u8]) -> Option<String> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(content).unwrap();
    let path = file.path().to_str().unwrap();
    let pace = if format == "sharegpt" { "rate = \"100/s\"" } else { "" };
    let traffic =
        format!("[[traffic]]\nmodel = \"a\"\nfile = \"{path}\"\nformat = \"{format}\"\n{pace}\n");
    let shown = |text: String| text.replace(path, "F");
    let mut arrivals = match scenario("1h", &traffic).traffic(1) {
        Ok(arrivals) => arrivals,
        Err(error) => return Some(shown(error.diagnostics()[0].to_string())),
    };
    while let Some(ask) = arrivals.next() {
        let mut last = ask;
        while let Some(next) = arrivals.after(&last, last.at) {
            last = next;
        }
    }
    arrivals.problem().map(|problem| shown(problem.to_owned()))
}

#[test]
fn what_is_wrong_with_a_file_is_told_with_its_line() {
    for (format, content, expected) in [
        (
            "azure",
            "a,b\n",
            "F:1: has no column `TIMESTAMP`; the first line should name `TIMESTAMP`, `ContextTokens`, `GeneratedTokens`",
        ),
        (
            "azure",
            "TIMESTAMP,ContextTokens,GeneratedTokens\n\n5,1,1\n",
            "F:3: \"5\" is no time; there should be one such as",
        ),
        (
            "azure",
            "GeneratedTokens,TIMESTAMP,ContextTokens\nx,2023-11-16 18:15:46,1\n",
            "F:2: \"x\" is no number of tokens",
        ),
        (
            "azure",
            "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46,1\n",
            "F:2: \"\" is no number of tokens",
        ),
        (
            "burstgpt",
            "Timestamp,Model,Request tokens,Response tokens\n-1,m,1,1\n",
            "F:2: \"-1\" is no time in seconds",
        ),
        ("sharegpt", "hello", "F:1: is no list of conversations"),
        (
            "sharegpt",
            "[\n{\"conversations\": 5}]",
            "F:2: before here is no conversation: invalid type",
        ),
        ("sharegpt", "[{\"conversations\": [", "F:1: the file ends within a conversation"),
        ("records", "{}\n", "F:1: is no decision record"),
        ("records", "{\"v\":9,\"kind\":\"decision\"}\n", "F:1: has version 9"),
    ] {
        let found = problem(format, content.as_bytes()).unwrap_or_default();
        assert!(found.contains(expected), "{expected}\n{found}");
    }
    let missing = file("file = \"none.csv\"\nformat = \"azure\"\nmodel = \"a\"")
        .traffic(1)
        .unwrap_err()
        .to_string();
    assert!(
        missing.contains(":5: traffic[0].file: ") && missing.contains("none.csv cannot be read"),
        "{missing}"
    );
    assert_eq!(
        problem("azure", "\u{feff}\"TIMESTAMP\",ContextTokens,GeneratedTokens\r\n".as_bytes()),
        None
    );
}

#[test]
fn a_mistake_in_the_middle_ends_the_run() {
    let mut lines = "TIMESTAMP,ContextTokens,GeneratedTokens\n".to_owned();
    for second in 0..3000 {
        lines += &format!("2023-11-16 18:{:02}:{:02},1,1\n", second / 60, second % 60);
    }
    assert_eq!(problem("azure", lines.as_bytes()), None);
    lines = lines.replace("18:40:01,1,1", "18:40:01,1,one");
    assert_eq!(
        problem("azure", lines.as_bytes()).as_deref(),
        Some("F:2403: \"one\" is no number of tokens")
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_file_makes_a_reader_panic(
        content: Vec<u8>,
        rows in prop::collection::vec("[0-9]{0,12}[-.,:\"e ]?[0-9]{0,6},[a-z0-9]{0,3},[0-9.-]{0,12},[0-9]{0,12}", 0..5),
        objects in "(\\[?\\{\"conversations\": ?\\[(\\{\"from\":\"(gpt|human)\",\"value\":\"[a-z{\\[\\\\\"]{0,9}\"\\},?){0,4}\\]\\},?){0,3}",
    ) {
        for format in ["azure", "burstgpt", "sharegpt", "records"] {
            let _problem = problem(format, &content);
        }
        let rows = rows.join("\n");
        let _azure = problem("azure", format!("TIMESTAMP,x,ContextTokens,GeneratedTokens\n{rows}").as_bytes());
        let _bursts = problem("burstgpt", format!("Timestamp,Model,Request tokens,Response tokens\n{rows}").as_bytes());
        let _talks = problem("sharegpt", objects.as_bytes());
    }
}
