//! The orders of messages that the protocol allows, and those that it does not.

use super::*;

const ENDPOINTS: &str = "10.0.0.1:80,10.0.0.2:80";

/// Returns the endpoints that an answer has in its metadata.
fn endpoints(answer: &ProcessingResponse) -> String {
    let metadata = answer.dynamic_metadata.clone().unwrap();
    let value = metadata.fields["envoy.lb"].kind.clone().unwrap();
    let value::Kind::StructValue(inner) = value else { panic!("{value:?}") };
    match inner.fields["x-gateway-destination-endpoint"].kind.clone().unwrap() {
        value::Kind::StringValue(endpoints) => endpoints,
        other => panic!("{other:?}"),
    }
}

/// Reads the answers to a request of which the body is `body!`.
async fn expect_endpoints(client: &mut Client, body: &str) {
    let answer = client.answer().await;
    assert_eq!(endpoints(&answer), ENDPOINTS);
    let common = of_head(answer);
    let set = set(&common);
    let has = |name: &str, value: &str| set.contains(&(name.to_owned(), value.to_owned()));
    assert!(has("x-gateway-destination-endpoint", ENDPOINTS), "{set:?}");
    assert!(has(":path", "/v1/x") && has("x-new", "1"), "{set:?}");
    assert!(has("x-envoy-max-retries", "1"), "{set:?}");
    let removed = common.header_mutation.unwrap().remove_headers;
    assert_eq!(removed, ["authorization", "content-length"]);
    assert_eq!(client.streamed().await.0, body);
}

#[tokio::test]
async fn request_and_response_pass_chunk_by_chunk() {
    let mut picker = Picker::start().await;
    let mut client = picker.open().await;
    client.head("/x", false).await;
    client.body("a", false).await;
    client.body("bc", true).await;
    expect_endpoints(&mut client, "abc!").await;
    client.response_head(Some("10.0.0.2:80"), false).await;
    let common = of_head(client.answer().await);
    assert!(set(&common).contains(&("x-served".to_owned(), "10.0.0.2:80".to_owned())));
    assert_eq!(common.header_mutation.unwrap().remove_headers, ["x-secret", "content-length"]);
    for text in ["one", "two"] {
        client.response_body(text, false).await;
        assert_eq!(client.chunk().await, (text.to_owned(), false), "before the next one is sent");
    }
    client.response_body("", true).await;
    assert_eq!(client.chunk().await, (String::new(), true));
    assert!(client.end().await.is_ok());
    assert_eq!([picker.note().await, picker.note().await], ["begun None", "dropped"]);
}

#[tokio::test]
async fn last_chunk_ends_the_response() {
    let mut picker = Picker::start().await;
    let mut client = picker.open().await;
    client.head("/x", false).await;
    client.body("abc", true).await;
    expect_endpoints(&mut client, "abc!").await;
    client.response_head(None, false).await;
    of_head(client.answer().await);
    client.response_body("one", true).await;
    assert_eq!(client.chunk().await, ("one".to_owned(), true), "no message for the end alone");
    assert!(client.end().await.is_ok());
    assert_eq!([picker.note().await, picker.note().await], ["begun None", "dropped"]);
}

#[tokio::test]
async fn body_that_is_sent_as_a_whole_is_answered_as_a_whole() {
    let picker = Picker::start().await;
    let mut client = picker.open().await;
    client.send(head("/x", BUFFERED, false)).await;
    assert!(of_head(client.answer().await).header_mutation.is_none());
    client.body("abc", true).await;
    let answer = client.answer().await;
    assert_eq!(endpoints(&answer), ENDPOINTS);
    let Some(Answer::RequestBody(body)) = answer.response else { panic!("{answer:?}") };
    let mutation = body.response.unwrap().body_mutation.unwrap().mutation.unwrap();
    assert_eq!(mutation, body_mutation::Mutation::Body(b"abc!".to_vec()));
}

#[tokio::test]
async fn trailers_end_bodies() {
    let picker = Picker::start().await;
    let mut client = picker.open().await;
    client.head("/x", false).await;
    client.body("a", false).await;
    client.send(trailers(Message::RequestTrailers)).await;
    let _head = client.answer().await;
    assert_eq!(client.chunk().await, ("a!".to_owned(), false));
    assert!(matches!(client.answer().await.response, Some(Answer::RequestTrailers(_))));
    client.response_head(None, false).await;
    let _head = client.answer().await;
    client.response_body("b", false).await;
    assert_eq!(client.chunk().await, ("b".to_owned(), false));
    client.send(trailers(Message::ResponseTrailers)).await;
    assert!(matches!(client.answer().await.response, Some(Answer::ResponseTrailers(_))));
    assert!(client.end().await.is_ok());
}

#[tokio::test]
async fn response_without_a_body_ends_with_its_head() {
    let picker = Picker::start().await;
    let mut client = picker.open().await;
    client.head("/x", true).await;
    expect_endpoints(&mut client, "!").await;
    client.response_head(None, true).await;
    of_head(client.answer().await);
    assert!(client.end().await.is_ok());
}

#[tokio::test]
async fn host_responds_itself_before_and_after_the_endpoints_are_known() {
    for (path, status, text) in
        [("/refuse", 429, "refused"), ("/expire", 504, "too late"), ("/replace", 502, "replaced")]
    {
        let picker = Picker::start().await;
        let mut client = picker.open().await;
        client.head(path, true).await;
        if path == "/replace" {
            expect_endpoints(&mut client, "!").await;
        }
        if path == "/replace" {
            client.response_head(None, false).await;
        }
        let response = immediate(client.answer().await);
        assert_eq!(response.status.unwrap().code, status, "{path}");
        assert_eq!(response.body, text.as_bytes());
        let headers = CommonResponse { header_mutation: response.headers, ..Default::default() };
        assert_eq!(set(&headers), [("retry-after".to_owned(), "7".to_owned())]);
        assert!(client.end().await.is_ok());
    }
}

#[tokio::test]
async fn request_ends_when_its_stream_does() {
    let mut picker = Picker::start().await;
    // The proxy closes its half, or resets the stream.
    for is_reset in [false, true] {
        let mut client = picker.open().await;
        client.head("/hold", false).await;
        assert_eq!([picker.note().await, picker.note().await], ["begun None", "held"]);
        client.messages = None;
        if is_reset {
            drop(client);
        }
        assert_eq!(picker.note().await, "dropped");
    }
}

#[tokio::test]
async fn other_orders_are_refused() {
    let head = || head("/x", FULL_DUPLEX, false);
    let over = || body(Message::RequestBody, "a", true);
    let response = || message(Message::ResponseHeaders(headers(&[(":status", "200")], false)));
    let orders: [(&str, Vec<ProcessingRequest>); 6] = [
        ("body before the head", vec![over()]),
        ("two heads", vec![head(), head()]),
        ("response before the end of the body", vec![head(), response()]),
        ("body after its end", vec![head(), over(), over()]),
        ("two response heads", vec![head(), over(), response(), response()]),
        ("request body in the response", vec![head(), over(), response(), over()]),
    ];
    for (name, messages) in orders {
        let picker = Picker::start().await;
        let mut client = picker.open().await;
        for message in messages {
            client.send(message).await;
        }
        assert_eq!(client.code().await, Code::InvalidArgument, "{name}");
    }
}

#[tokio::test]
async fn modes_that_cannot_be_served_are_named() {
    let picker = Picker::start().await;
    // Not sent, streamed with a response for each chunk, and partial.
    for mode in [0, 1, 3] {
        let mut client = picker.open().await;
        client.send(super::head("/x", mode, false)).await;
        let status = client.end().await.unwrap_err();
        assert_eq!(status.code(), Code::FailedPrecondition);
        assert!(status.message().contains("request_body_mode"), "{status}");
    }
    let mut client = picker.open().await;
    let mut message = super::head("/x", FULL_DUPLEX, false);
    message.protocol_config.as_mut().unwrap().response_body_mode = BUFFERED;
    client.send(message).await;
    assert!(client.end().await.unwrap_err().message().contains("response_body_mode"));
}

#[tokio::test]
async fn proxy_that_is_gone_in_the_middle_of_a_response_gets_no_status() {
    let picker = Picker::start().await;
    let mut client = picker.open().await;
    client.head("/x", true).await;
    expect_endpoints(&mut client, "!").await;
    client.response_head(None, false).await;
    of_head(client.answer().await);
    client.response_body("a", false).await;
    assert_eq!(client.chunk().await.0, "a");
    client.messages = None;
    assert!(client.end().await.is_ok(), "the proxy is gone, and needs no status");
}

#[tokio::test]
async fn large_bodies_pass_in_chunks_that_proxies_take() {
    let picker = Picker::start().await;
    let mut client = picker.open().await;
    client.head("/x", false).await;
    let part = "0123456789".repeat(5_000);
    for _ in 0..20 {
        client.body(&part, false).await;
    }
    client.body("", true).await;
    let _head = client.answer().await;
    let (text, chunks) = client.streamed().await;
    assert_eq!((text.len(), chunks), (1_000_001, 17));
}
