use std::time::Duration;

use pointsman_spec::{OciReference, RegistryCredentials, RegistrySettings};

use super::artifact;
use super::fake::{Answer, Arrived, FakeRegistry, honest};
use crate::client::Client;
use crate::credentials::DockerConfig;
use crate::error::RegistryError;

fn reference(host: &str) -> OciReference {
    format!("oci://{host}/r/p:stable").parse().unwrap()
}

fn registry(host: &str) -> RegistrySettings {
    RegistrySettings { host: host.to_owned(), ..RegistrySettings::default() }
}

fn with_credentials(host: &str) -> RegistrySettings {
    let credentials = RegistryCredentials { username: "u".into(), password: "p4ss".into() };
    RegistrySettings { credentials: Some(credentials), ..registry(host) }
}

fn client(settings: &[RegistrySettings]) -> Client {
    let mut client = Client::new(settings, DockerConfig::default());
    client.timeouts.small = Duration::from_secs(60);
    client
}

#[tokio::test]
async fn tag_is_resolved_and_the_artifact_pulled_by_its_digest() {
    let artifact = artifact("1.0.0");
    let fake = FakeRegistry::start(honest(&artifact)).await;
    let pulled = client(&[]).pull(&reference(&fake.host())).await.unwrap();
    assert_eq!(pulled.artifact, artifact);
    let paths: Vec<_> =
        fake.arrived().into_iter().map(|request| (request.method, request.path)).collect();
    assert_eq!(paths[0], ("HEAD".to_owned(), "/v2/r/p/manifests/stable".to_owned()));
    assert_eq!(paths[1].1, format!("/v2/r/p/manifests/{}", pulled.digest));
    let again = reference(&fake.host()).with_digest(pulled.digest.clone());
    assert_eq!(client(&[]).pull(&again).await.unwrap().digest, pulled.digest);
}

#[tokio::test]
async fn missing_tag_and_unreachable_registry_are_told_apart() {
    let fake = FakeRegistry::start(|_| Answer::status(404)).await;
    let host = fake.host();
    let error = client(&[]).pull(&reference(&host)).await.unwrap_err();
    assert!(matches!(&error, RegistryError::Missing { host: found, .. } if *found == host));
    drop(fake);
    let error = client(&[]).pull(&reference(&host)).await.unwrap_err();
    assert_eq!(error.code(), "registry_unreachable");
    let error = client(&[]).pull(&reference("registry.invalid")).await.unwrap_err();
    assert_eq!(error.code(), "registry_unreachable");
}

/// Responses of a registry that wants a token of the service at `realm`.
fn wants_token(realm: String) -> impl Fn(&Arrived) -> Answer {
    let honest = honest(&artifact("1.0.0"));
    move |request| {
        let challenge = format!("Bearer realm=\"{realm}\",service=\"s\",scope=\"ours\"");
        match request.authorization.as_deref() {
            _ if request.path.starts_with("/token") => Answer::ok(b"{\"token\": \"t0ken\"}"),
            Some("Bearer t0ken") => honest(request),
            _ => Answer::Reply(401, vec![("www-authenticate", challenge)], Vec::new()),
        }
    }
}

#[tokio::test]
async fn token_of_the_registry_itself_is_fetched_with_the_credentials_and_our_scope() {
    let realm = std::sync::Arc::new(parking_lot::Mutex::new(String::new()));
    let known = std::sync::Arc::clone(&realm);
    let fake = FakeRegistry::start(move |request| wants_token(known.lock().clone())(request)).await;
    *realm.lock() = format!("http://{}/token", fake.host());
    client(&[with_credentials(&fake.host())]).pull(&reference(&fake.host())).await.unwrap();
    let arrived = fake.arrived();
    let token = arrived.iter().find(|request| request.path.starts_with("/token")).unwrap();
    assert_eq!(token.path, "/token?service=s&scope=repository:r/p:pull");
    assert_eq!(token.authorization.as_deref(), Some("Basic dTpwNHNz"));
    let is_basic = |request: &&Arrived| {
        request.authorization.as_ref().is_some_and(|value| value.starts_with("Basic"))
    };
    let mut with_password = arrived.iter().filter(is_basic);
    assert!(with_password.all(|request| request.path.starts_with("/token")), "{arrived:?}");
}

#[tokio::test]
async fn credentials_only_go_to_a_token_host_that_is_configured() {
    let service = FakeRegistry::start(|_| Answer::ok(b"{\"token\": \"t0ken\"}")).await;
    let fake = FakeRegistry::start(wants_token(format!("http://{}/", service.host()))).await;
    let settings = with_credentials(&fake.host());
    let error = client(std::slice::from_ref(&settings)).pull(&reference(&fake.host())).await;
    let error = error.unwrap_err();
    assert!(matches!(
        &error,
        RegistryError::TokenHost { target, .. } if *target == service.host()
    ));
    assert!(service.arrived().is_empty() && !error.to_string().contains("p4ss"));
    let settings = RegistrySettings { token_host: Some(service.host()), ..settings };
    client(&[settings]).pull(&reference(&fake.host())).await.unwrap();
    // Without credentials there is nothing to lose.
    client(&[]).pull(&reference(&fake.host())).await.unwrap();
    let sent: Vec<_> =
        service.arrived().into_iter().map(|request| request.authorization.is_some()).collect();
    assert!(sent.starts_with(&[true]) && sent.ends_with(&[false]), "{sent:?}");
}

#[tokio::test]
async fn basic_credentials_are_sent_when_the_registry_wants_them() {
    let honest = honest(&artifact("1.0.0"));
    let fake = FakeRegistry::start(move |request| match request.authorization.as_deref() {
        Some("Basic dTpwNHNz") => honest(request),
        _ => Answer::Reply(401, vec![("www-authenticate", "Basic realm=r".into())], Vec::new()),
    })
    .await;
    let error = client(&[]).pull(&reference(&fake.host())).await.unwrap_err();
    assert_eq!(error.code(), "registry_denied");
    client(&[with_credentials(&fake.host())]).pull(&reference(&fake.host())).await.unwrap();
    let docker = format!("{{\"auths\": {{\"{}\": {{\"auth\": \"dTpwNHNz\"}}}}}}", fake.host());
    let docker = DockerConfig::parse(&docker).unwrap();
    Client::new(&[], docker).pull(&reference(&fake.host())).await.unwrap();
}

#[tokio::test]
async fn mirrors_are_asked_first_without_the_credentials_of_the_registry() {
    let artifact = artifact("1.0.0");
    let (mirror, origin) = (
        FakeRegistry::start(honest(&artifact)).await,
        FakeRegistry::start(honest(&artifact)).await,
    );
    let dead = FakeRegistry::start(|_| Answer::status(500)).await;
    let settings = RegistrySettings {
        mirrors: vec![dead.host(), mirror.host()],
        ..with_credentials(&origin.host())
    };
    let client = client(&[settings]);
    client.pull(&reference(&origin.host())).await.unwrap();
    assert!(!dead.arrived().is_empty() && origin.arrived().is_empty());
    assert!(mirror.arrived().iter().all(|request| request.authorization.is_none()));
    drop((mirror, dead));
    client.pull(&reference(&origin.host())).await.unwrap();
    assert!(!origin.arrived().is_empty());
}
