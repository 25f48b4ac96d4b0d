//! Limits and health of the service.

use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::*;
use crate::stream::ExchangeStream;

const READY: [&str; 3] = ["", "readiness", "envoy.service.ext_proc.v3.ExternalProcessor"];

async fn health(picker: &Picker, service: &str) -> Result<ServingStatus, Status> {
    let channel = tonic::transport::Endpoint::new(picker.url()).unwrap().connect().await;
    let mut client = HealthClient::new(channel.unwrap());
    let request = HealthCheckRequest { service: service.to_owned() };
    client.check(request).await.map(|response| response.into_inner().status())
}

#[tokio::test]
async fn health_has_the_services_of_the_protocol() {
    let mut picker = Picker::start().await;
    for service in READY.into_iter().chain(["liveness"]) {
        assert_eq!(health(&picker, service).await.unwrap(), ServingStatus::Serving, "{service}");
    }
    assert_eq!(health(&picker, "other").await.unwrap_err().code(), Code::NotFound);
    picker.shutdown.stopping.cancel();
    for service in READY {
        // The change is made by a task of the service.
        while health(&picker, service).await.unwrap() != ServingStatus::NotServing {
            tokio::task::yield_now().await;
        }
    }
    assert_eq!(health(&picker, "liveness").await.unwrap(), ServingStatus::Serving);
    picker.shutdown.closing.cancel();
    picker.tasks.join_next().await.unwrap().unwrap();
}

#[tokio::test]
async fn service_that_another_process_replaces_ends_with_its_last_stream() {
    let mut picker = Picker::start().await;
    let mut client = picker.open().await;
    client.head("/x", false).await;
    client.body("a", false).await;
    assert_eq!(picker.note().await, "begun None");
    picker.shutdown.retiring.cancel();
    // The listener is closed by a task of the service.
    while ExternalProcessorClient::connect(picker.url()).await.is_ok() {
        tokio::task::yield_now().await;
    }
    let connection = client.connection.as_mut().unwrap();
    let second = connection.process(futures_util::stream::pending()).await;
    assert!(second.is_err(), "a connection that is open gets no new stream");
    client.body("bc", true).await;
    let head = client.answer().await;
    assert!(head.dynamic_metadata.is_some());
    assert_eq!(client.streamed().await.0, "abc!");
    client.response_head(None, false).await;
    client.answer().await;
    client.response_body("one", true).await;
    assert!(client.end().await.is_ok());
    drop(client);
    picker.tasks.join_next().await.unwrap().unwrap();
}

#[tokio::test]
async fn streams_are_limited_on_all_connections_together() {
    let mut picker = Picker::with_limits(Limits { max_streams: 1, max_body: 10 }).await;
    let mut first = picker.open().await;
    first.head("/hold", false).await;
    assert_eq!([picker.note().await, picker.note().await], ["begun None", "held"]);
    let mut client = ExternalProcessorClient::connect(picker.url()).await.unwrap();
    let refused = client.process(futures_util::stream::pending()).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    first.messages = None;
    assert!(first.end().await.is_ok());
    // Dropped with the connection, which ends the stream on the other side at some time.
    (first.connection, first.messages) = (None, None);
    drop(first);
    let mut third = loop {
        let mut client = ExternalProcessorClient::connect(picker.url()).await.unwrap();
        match client.process(futures_util::stream::iter([head("/refuse", FULL_DUPLEX, true)])).await
        {
            Ok(answers) => break answers.into_inner(),
            Err(status) => assert_eq!(status.code(), Code::ResourceExhausted),
        }
    };
    assert!(third.message().await.unwrap().is_some());
}

#[tokio::test]
async fn message_that_is_too_large_ends_the_stream() {
    let mut picker = Picker::with_limits(Limits { max_streams: 1, max_body: 10 }).await;
    let mut client = picker.open().await;
    client.send(head("/x", BUFFERED, false)).await;
    client.body(&"x".repeat(300 << 10), true).await;
    // A proxy takes this like a picker that is gone.
    client.end().await.ok();
    assert_eq!([picker.note().await, picker.note().await], ["begun None", "dropped"]);
}

#[tokio::test]
async fn subset_is_passed_on() {
    let mut picker = Picker::start().await;
    let text = |text: &str| Value { kind: Some(value::Kind::StringValue(text.to_owned())) };
    let list = |values: &[&str]| {
        let values = values.iter().map(|value| text(value)).collect();
        value::Kind::ListValue(envoy_types::pb::google::protobuf::ListValue { values })
    };
    for (kind, expected) in [
        (list(&["a:1", "b:2"]), "begun Some([\"a:1\", \"b:2\"])"),
        (list(&[]), "begun Some([])"),
        (value::Kind::StringValue("a:1, b:2".to_owned()), "begun Some([\"a:1\", \"b:2\"])"),
        (value::Kind::BoolValue(true), "begun Some([])"),
    ] {
        let mut client = picker.open().await;
        let mut message = head("/refuse", FULL_DUPLEX, true);
        let key = "x-gateway-destination-endpoint-subset";
        message.metadata_context = Some(metadata("envoy.lb.subset_hint", key, kind));
        client.send(message).await;
        assert!(client.end().await.is_ok());
        assert_eq!(picker.note().await, expected);
        assert_eq!(picker.note().await, "dropped");
    }
}

#[tokio::test(start_paused = true)]
async fn stream_without_a_request_ends() {
    let (notes, _) = mpsc::unbounded_channel();
    let (answers, _kept) = mpsc::channel(1);
    let metrics = PickMetrics::register(&mut Registry::default());
    let stream = ExchangeStream::new(futures_util::stream::pending(), answers, metrics);
    let ended = stream.run(Arc::new(TestBackend::new(notes))).await;
    assert_eq!(ended.unwrap_err().code(), Code::DeadlineExceeded);
}
