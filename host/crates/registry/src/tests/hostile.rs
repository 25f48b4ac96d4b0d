use std::time::Duration;

use pointsman_spec::{OciReference, RegistryCredentials, RegistrySettings};
use serde_json::{Value, json};

use super::artifact;
use super::fake::{Answer, Arrived, FakeRegistry, honest};
use crate::client::Client;
use crate::credentials::DockerConfig;
use crate::digest::digest;
use crate::error::RegistryError;

/// Pulls with credentials that must not get to other hosts.
async fn pull(fake: &FakeRegistry) -> Result<(), RegistryError> {
    let credentials = RegistryCredentials { username: "u".into(), password: "p4ss".into() };
    let settings = RegistrySettings {
        host: fake.host(),
        credentials: Some(credentials),
        ..RegistrySettings::default()
    };
    let mut client = Client::new(&[settings], DockerConfig::default());
    client.timeouts.small = Duration::from_secs(60);
    let reference: OciReference = format!("oci://{}/r/p:stable", fake.host()).parse().unwrap();
    client.pull(&reference).await.map(drop)
}

/// Returns the code of a pull from a registry that is honest, except where `change` answers.
async fn code(change: impl Fn(&Arrived) -> Option<Answer> + Send + Sync + 'static) -> &'static str {
    let honest = honest(&artifact("1.0.0"));
    let answer = move |request: &Arrived| change(request).unwrap_or_else(|| honest(request));
    pull(&FakeRegistry::start(answer).await).await.unwrap_err().code()
}

/// Returns true for requests of the part of an artifact: `manifest`, `config` or `component`.
fn is_of(request: &Arrived, part: &str) -> bool {
    let artifact = artifact("1.0.0");
    let packed = artifact.pack().unwrap();
    let bytes = match part {
        "manifest" => packed.manifest,
        "config" => packed.config,
        _ => artifact.component,
    };
    request.path.ends_with(&digest(&bytes).to_string())
}

#[tokio::test]
async fn other_bytes_than_those_of_the_digest_are_rejected() {
    for part in ["manifest", "config", "component"] {
        let changed = move |request: &Arrived| {
            let Answer::Reply(status, headers, mut body) = honest(&artifact("1.0.0"))(request)
            else {
                return None;
            };
            body[0] ^= 1;
            is_of(request, part).then_some(Answer::Reply(status, headers, body))
        };
        assert_eq!(code(changed).await, "digest_mismatch", "{part}");
    }
}

#[tokio::test]
async fn bodies_that_never_end_are_rejected_at_the_limit() {
    for part in ["manifest", "config", "component"] {
        let endless = move |request: &Arrived| is_of(request, part).then_some(Answer::Endless);
        assert_eq!(code(endless).await, "artifact_too_large", "{part}");
    }
}

#[tokio::test]
async fn sizes_above_the_limit_are_rejected_before_anything_is_pulled() {
    for pointer in ["/config/size", "/layers/0/size"] {
        let packed = artifact("1.0.0").pack().unwrap();
        let mut manifest: Value = serde_json::from_slice(&packed.manifest).unwrap();
        *manifest.pointer_mut(pointer).unwrap() = json!(1_u64 << 40);
        let bytes = manifest.to_string().into_bytes();
        let found = digest(&bytes).to_string();
        let fake = FakeRegistry::start(move |request| {
            let headers = vec![("docker-content-digest", found.clone())];
            match request.path.contains("/manifests/") {
                true => Answer::Reply(200, headers, bytes.clone()),
                false => honest(&artifact("1.0.0"))(request),
            }
        })
        .await;
        assert_eq!(pull(&fake).await.unwrap_err().code(), "artifact_too_large", "{pointer}");
        let component = digest(&artifact("1.0.0").component).to_string();
        assert!(fake.arrived().iter().all(|request| !request.path.ends_with(&component)));
    }
}

#[tokio::test]
async fn artifact_that_is_not_a_policy_is_a_permanent_error() {
    let bytes = b"{\"schemaVersion\": 2, \"layers\": 1}";
    let found = digest(bytes).to_string();
    let fake = FakeRegistry::start(move |_| {
        Answer::Reply(200, vec![("docker-content-digest", found.clone())], bytes.to_vec())
    })
    .await;
    let error = pull(&fake).await.unwrap_err();
    assert!(error.code() == "artifact_invalid" && error.is_permanent());
}

#[tokio::test]
async fn redirect_takes_no_authorization_to_another_host() {
    let other = FakeRegistry::start(honest(&artifact("1.0.0"))).await;
    let target = other.host();
    let fake = FakeRegistry::start(move |request| match request.authorization.as_deref() {
        Some(_) if request.path.contains("/blobs/") => {
            Answer::redirect(format!("http://{target}{}", request.path))
        }
        Some(_) => honest(&artifact("1.0.0"))(request),
        None => Answer::Reply(401, vec![("www-authenticate", "Basic".into())], Vec::new()),
    })
    .await;
    pull(&fake).await.unwrap();
    let arrived = other.arrived();
    assert_eq!(arrived.len(), 2, "{arrived:?}");
    assert!(arrived.iter().all(|request| request.authorization.is_none()), "{arrived:?}");
}

#[tokio::test]
async fn redirects_lead_to_no_other_place_and_end() {
    for location in ["http://registry.invalid/x", "ftp://127.0.0.1/x", "http://u:p@127.0.0.1/x"] {
        let answer = move |_: &Arrived| Some(Answer::redirect(location.to_owned()));
        assert_eq!(code(answer).await, "registry_redirect_forbidden", "{location}");
    }
    let answer = |request: &Arrived| Some(Answer::redirect(request.path.clone()));
    assert_eq!(code(answer).await, "registry_redirect_forbidden");
    for location in ["", "file:///etc/passwd", "\u{1}"] {
        let answer = move |_: &Arrived| Some(Answer::redirect(location.to_owned()));
        let code = code(answer).await;
        let is_invalid = ["registry_response_invalid", "registry_unreachable"].contains(&code);
        assert!(is_invalid, "{location:?}: {code}");
    }
}

#[tokio::test]
async fn registry_that_says_nothing_runs_out_of_time() {
    let fake = FakeRegistry::start(|_| Answer::Silence).await;
    let mut client = Client::new(&[], DockerConfig::default());
    client.timeouts.small = Duration::from_millis(50);
    let reference: OciReference = format!("oci://{}/r/p:stable", fake.host()).parse().unwrap();
    let error = client.resolve(&reference).await.unwrap_err();
    assert!(matches!(error, RegistryError::Timeout { timeout, .. }
        if timeout == client.timeouts.small));
}

#[tokio::test]
async fn statuses_of_a_broken_registry_are_errors() {
    for (status, expected) in [
        (401, "registry_denied"),
        (403, "registry_denied"),
        (404, "artifact_missing"),
        (204, "registry_response_invalid"),
        (500, "registry_response_invalid"),
    ] {
        assert_eq!(code(move |_| Some(Answer::status(status))).await, expected, "{status}");
    }
}
