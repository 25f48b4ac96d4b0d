use std::sync::Arc;
use std::time::Duration;

use pointsman_domain::RequestView as _;
use proptest::prelude::*;

use super::*;

fn ask(session: u64, turn: u32, prompt_tokens: u32, shared_tokens: u32) -> Ask {
    Ask {
        tenant: Some("acme".into()),
        session,
        turn,
        headers: [("x-task".to_owned(), "code".to_owned())].into(),
        prompt_tokens,
        shared_tokens,
        ..Ask::plain(Duration::ZERO, "auto")
    }
}

fn hashes(writer: &mut Writer, ask: &Ask) -> Vec<u64> {
    writer.write(ask, "sim-1".to_owned()).unwrap().prefix_hashes(64, 10_000)
}

fn in_common(a: &[u64], b: &[u64]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

#[test]
fn requests_are_what_was_asked_for() {
    let mut writer = Writer::new();
    let asked = Ask { max_tokens: Some(77), text: "Say \"hé\" \\".into(), ..ask(1, 0, 900, 0) };
    let request = writer.write(&asked, "sim-9".to_owned()).unwrap();
    let figures = request.figures();
    assert_eq!((figures.prompt_tokens, figures.max_output_tokens, figures.messages), (900, 77, 1));
    assert_eq!((request.id(), request.model(), request.tenant()), ("sim-9", "auto", Some("acme")));
    assert_eq!((request.header("x-task"), figures.streaming), (Some("code"), true));
    assert!(request.text(0, 0, 4000).starts_with("Say \"hé\" \\"));
    for endpoint in
        [Endpoint::Completions, Endpoint::Responses, Endpoint::Embeddings, Endpoint::Other]
    {
        let asked = Ask { endpoint, stream: false, max_tokens: Some(5), ..ask(1, 0, 40, 0) };
        let request = writer.write(&asked, String::new()).unwrap();
        let tokens = if endpoint == Endpoint::Completions { 40 } else { 0 };
        assert_eq!(
            (request.figures().prompt_tokens, request.streaming()),
            (tokens, false),
            "{endpoint:?}"
        );
    }
}

#[test]
fn a_recorded_body_is_sent_as_it_was() {
    let mut writer = Writer::new();
    let body = Bytes::from_static(br#"{"model":"m","messages":[]}"#);
    let asked = Ask { body: Some(body.clone()), ..ask(1, 0, 900, 0) };
    assert_eq!(writer.write(&asked, String::new()).unwrap().body(), &body);
    let asked = Ask { body: Some(Bytes::from_static(b"{}")), ..asked };
    assert!(writer.write(&asked, String::new()).unwrap_err().to_string().contains("model"));
}

#[test]
fn a_session_goes_on_where_it_was_and_another_one_has_the_beginning_in_common() {
    let mut writer = Writer::new();
    let first = hashes(&mut writer, &ask(1, 0, 1000, 320));
    let second = hashes(&mut writer, &ask(1, 1, 3000, 1200));
    let other = hashes(&mut writer, &ask(2, 0, 2000, 320));
    assert_eq!(in_common(&first, &second), first.len());
    // 16 tokens make a block; 4 of the 320 are those around the message.
    assert_eq!(in_common(&second, &other), 316 / 16);
    let none = hashes(&mut writer, &Ask { class: ClassId(1), ..ask(3, 0, 2000, 0) });
    assert_eq!(in_common(&none, &other), 0);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_request_has_the_length_that_it_is_to_have(text: String, prompt in 0u32..100_000, shared in 0u32..2000) {
        let asked = Ask { text: Arc::from(text.as_str()), ..ask(5, 0, prompt, shared) };
        let request = Writer::new().write(&asked, String::new()).unwrap();
        let tokens = request.figures().prompt_tokens;
        let least = tokens_of(literal(&text).trim_matches('"')) as u32;
        prop_assert!(tokens == prompt || tokens > prompt && tokens <= least + 8, "{tokens} for {prompt}");
        let shown = request.text(0, 0, text.len());
        prop_assert_eq!(&shown[..], &text[..]);
    }
}
