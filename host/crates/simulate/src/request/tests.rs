use std::sync::Arc;
use std::time::Duration;

use pointsman_domain::RequestView as _;
use proptest::prelude::*;

use super::*;

fn sim_request(session: u64, turn: u32, prompt_tokens: u32, shared_tokens: u32) -> SimRequest {
    SimRequest {
        tenant: Some("acme".into()),
        session,
        turn,
        headers: [("x-task".to_owned(), "code".to_owned())].into(),
        prompt_tokens,
        shared_tokens,
        ..SimRequest::plain(Duration::ZERO, "auto")
    }
}

fn prefix_hashes(writer: &mut RequestWriter, request: &SimRequest) -> Vec<u64> {
    writer.write(request, "sim-1".to_owned()).unwrap().prefix_hashes(64, 10_000)
}

fn common_prefix(a: &[u64], b: &[u64]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

#[test]
fn generated_request_has_the_given_properties() {
    let mut writer = RequestWriter::new();
    let sim = SimRequest {
        max_tokens: Some(77),
        text: "Say \"hé\" \\".into(),
        ..sim_request(1, 0, 900, 0)
    };
    let request = writer.write(&sim, "sim-9".to_owned()).unwrap();
    let figures = request.info();
    assert_eq!((figures.prompt_tokens, figures.max_output_tokens, figures.messages), (900, 77, 1));
    assert_eq!((request.id(), request.model(), request.tenant()), ("sim-9", "auto", Some("acme")));
    assert_eq!((request.header("x-task"), figures.streaming), (Some("code"), true));
    assert!(request.text(0, 0, 4000).starts_with("Say \"hé\" \\"));
    for endpoint in
        [Endpoint::Completions, Endpoint::Responses, Endpoint::Embeddings, Endpoint::Other]
    {
        let sim =
            SimRequest { endpoint, stream: false, max_tokens: Some(5), ..sim_request(1, 0, 40, 0) };
        let request = writer.write(&sim, String::new()).unwrap();
        let tokens = if endpoint == Endpoint::Other { 0 } else { 40 };
        assert_eq!(
            (request.info().prompt_tokens, request.streaming()),
            (tokens, false),
            "{endpoint:?}"
        );
    }
}

#[test]
fn images_follow_the_text_of_a_chat() {
    let mut writer = RequestWriter::new();
    let sim = |media, endpoint| SimRequest { media, endpoint, ..sim_request(1, 0, 900, 0) };
    let write = |writer: &mut RequestWriter, sim: &SimRequest| {
        let request = writer.write(sim, "sim-1".to_owned()).unwrap();
        (request.info().has_media, request.messages()[0], request.info().prompt_tokens)
    };
    let (has_media, message, tokens) = write(&mut writer, &sim(2, Endpoint::ChatCompletions));
    assert_eq!((has_media, message.media_parts, message.parts, tokens), (true, 2, 3, 900));
    let (has_media, plain, _) = write(&mut writer, &sim(0, Endpoint::ChatCompletions));
    assert_eq!((has_media, plain.media_parts, plain.text_bytes), (false, 0, message.text_bytes));
    // Other endpoints have no images.
    let completion = writer.write(&sim(2, Endpoint::Completions), "sim-2".to_owned()).unwrap();
    assert!(!completion.info().has_media);
    // Images do not change the prefix that prompts share.
    let next = SimRequest { turn: 1, ..sim_request(1, 1, 1800, 900) };
    let [plain, images] = [0, 3].map(|media| SimRequest { media, ..next.clone() });
    let shared = |writer: &mut RequestWriter, media, next: &SimRequest| {
        let first = prefix_hashes(writer, &sim(media, Endpoint::ChatCompletions));
        common_prefix(&first, &prefix_hashes(writer, next))
    };
    assert_eq!(shared(&mut writer, 3, &images), shared(&mut writer, 0, &plain));
}

#[test]
fn recorded_body_is_sent_unchanged() {
    let mut writer = RequestWriter::new();
    let body = Bytes::from_static(br#"{"model":"m","messages":[]}"#);
    let sim = SimRequest { body: Some(body.clone()), ..sim_request(1, 0, 900, 0) };
    assert_eq!(writer.write(&sim, String::new()).unwrap().body(), &body);
    let sim = SimRequest { body: Some(Bytes::from_static(b"{}")), ..sim };
    assert!(writer.write(&sim, String::new()).unwrap_err().to_string().contains("model"));
}

#[test]
fn prompts_share_the_prefixes_of_their_session_and_class() {
    let mut writer = RequestWriter::new();
    let first = prefix_hashes(&mut writer, &sim_request(1, 0, 1000, 320));
    let second = prefix_hashes(&mut writer, &sim_request(1, 1, 3000, 1200));
    let other = prefix_hashes(&mut writer, &sim_request(2, 0, 2000, 320));
    assert_eq!(common_prefix(&first, &second), first.len());
    // A block has 16 tokens; 4 of the 320 are those that the estimate adds to the message.
    assert_eq!(common_prefix(&second, &other), 316 / 16);
    let other_class = SimRequest { class: ClassId(1), ..sim_request(3, 0, 2000, 0) };
    let other_class = prefix_hashes(&mut writer, &other_class);
    assert_eq!(common_prefix(&other_class, &other), 0);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn generated_prompt_has_the_given_length(
        text: String,
        prompt in 0u32..100_000,
        shared in 0u32..2000,
    ) {
        let sim =
            SimRequest { text: Arc::from(text.as_str()), ..sim_request(5, 0, prompt, shared) };
        let request = RequestWriter::new().write(&sim, String::new()).unwrap();
        let tokens = request.info().prompt_tokens;
        let min = estimate_tokens(json_string(&text).trim_matches('"')) as u32;
        prop_assert!(
            tokens == prompt || tokens > prompt && tokens <= min + 8,
            "{tokens} for {prompt}"
        );
        let start = request.text(0, 0, text.len());
        prop_assert_eq!(&start[..], &text[..]);
    }
}
