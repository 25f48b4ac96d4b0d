//! The client of registries: resolves and pulls.

use std::net::IpAddr;
use std::time::Duration;

use bytes::Bytes;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body_util::Full;
use pointsman_spec::{OciDigest, OciReference, OciVersion, RegistryCredentials, RegistrySettings};
use tokio::sync::Mutex;

use crate::auth::{self, Challenge};
use crate::credentials::DockerConfig;
use crate::digest::digest;
use crate::error::RegistryError;
use crate::http_client::{Expected, HttpClient, Reply};
use crate::layout::{Artifact, Blob, MANIFEST_TYPE, MAX_MANIFEST, Manifest};

/// Maximum number of redirects of a request.
const MAX_REDIRECTS: usize = 4;
/// Maximum size of the response of a token service, and of responses that are only looked at for
/// their status, in bytes.
pub(crate) const MAX_SMALL: usize = 64 << 10;
/// The header with the digest of a manifest.
const DIGEST_HEADER: &str = "docker-content-digest";

/// How long requests may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timeouts {
    /// Of requests for manifests and tokens.
    pub(crate) small: Duration,
    /// Of requests for blobs.
    pub(crate) blob: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { small: Duration::from_secs(10), blob: Duration::from_secs(120) }
    }
}

/// An artifact, and the digest of its manifest.
#[derive(Debug)]
pub struct Pulled {
    /// The digest by which the same artifact can be pulled again.
    pub digest: OciDigest,
    /// The artifact.
    pub artifact: Artifact,
}

/// A client of registries.
#[derive(Debug)]
pub struct Client {
    registries: Vec<RegistrySettings>,
    docker: DockerConfig,
    pub(crate) timeouts: Timeouts,
}

impl Client {
    /// Creates a client. Registries without settings and without credentials in `docker` are asked
    /// anonymously.
    pub fn new(registries: &[RegistrySettings], docker: DockerConfig) -> Self {
        Self { registries: registries.to_vec(), docker, timeouts: Timeouts::default() }
    }

    /// Returns the digest that a tag leads to. A digest leads to itself.
    ///
    /// # Errors
    /// If neither a mirror nor the registry knows the tag.
    pub async fn resolve(&self, reference: &OciReference) -> Result<OciDigest, RegistryError> {
        let tag = match reference.version() {
            OciVersion::Digest(digest) => return Ok(digest.clone()),
            OciVersion::Tag(tag) => tag,
        };
        for mirror in self.mirrors(reference.host()) {
            match mirror.resolve(reference.repository(), tag).await {
                Ok(digest) => return Ok(digest),
                Err(error) => mirror.log_failure(&error),
            }
        }
        self.endpoint(reference.host()).resolve(reference.repository(), tag).await
    }

    /// Pulls an artifact. All of it is verified.
    ///
    /// # Errors
    /// If neither a mirror nor the registry has it, a limit is exceeded, or a digest is wrong.
    pub async fn pull(&self, reference: &OciReference) -> Result<Pulled, RegistryError> {
        let digest = self.resolve(reference).await?;
        for mirror in self.mirrors(reference.host()) {
            match mirror.pull(reference.repository(), &digest).await {
                Ok(artifact) => return Ok(Pulled { digest, artifact }),
                Err(error) => mirror.log_failure(&error),
            }
        }
        let endpoint = self.endpoint(reference.host());
        let artifact = endpoint.pull(reference.repository(), &digest).await?;
        Ok(Pulled { digest, artifact })
    }

    /// Returns the mirrors of a registry, which are asked before it.
    fn mirrors(&self, host: &str) -> Vec<Endpoint> {
        self.settings(host).mirrors.iter().map(|mirror| self.endpoint(mirror)).collect()
    }

    fn settings(&self, host: &str) -> RegistrySettings {
        let found = self.registries.iter().find(|registry| registry.host == host);
        let default = || RegistrySettings { host: host.to_owned(), ..RegistrySettings::default() };
        found.cloned().unwrap_or_else(default)
    }

    /// Returns what asks one host.
    pub(crate) fn endpoint(&self, host: &str) -> Endpoint {
        let RegistrySettings { ca, plain_http, token_host, credentials, .. } = self.settings(host);
        let is_hub = host == "docker.io";
        let authority = if is_hub { "registry-1.docker.io" } else { host };
        let token_host = token_host.or_else(|| is_hub.then(|| "auth.docker.io".to_owned()));
        // Certificates are configured for a registry that has one.
        let is_plain = plain_http || (ca.is_none() && is_loopback(host));
        Endpoint {
            host: host.to_owned(),
            authority: authority.to_owned(),
            scheme: if is_plain { Scheme::HTTP } else { Scheme::HTTPS },
            token_host,
            credentials: credentials.or_else(|| self.docker.credentials(host).cloned()),
            http: HttpClient::new(ca.as_deref()),
            timeouts: self.timeouts,
            authorization: Mutex::default(),
        }
    }
}

/// Returns true for a host on this machine.
fn is_loopback(host: &str) -> bool {
    let Ok(authority) = host.parse::<Authority>() else { return false };
    let host = authority.host();
    let address = host.trim_matches(['[', ']']).parse::<IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

/// A request to a registry.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    pub(crate) method: Method,
    /// Path and query.
    pub(crate) path: String,
    /// What is done, for tokens: `repository:NAME:pull`.
    pub(crate) scope: String,
    pub(crate) content_type: Option<&'static str>,
    pub(crate) body: Bytes,
    pub(crate) expected: Expected,
}

/// One host, with the authorization that it has accepted.
#[derive(Debug)]
pub(crate) struct Endpoint {
    /// Its name in references.
    host: String,
    authority: String,
    scheme: Scheme,
    token_host: Option<String>,
    credentials: Option<RegistryCredentials>,
    http: HttpClient,
    pub(crate) timeouts: Timeouts,
    authorization: Mutex<Option<HeaderValue>>,
}

impl Endpoint {
    fn log_failure(&self, error: &RegistryError) {
        let (mirror, code) = (self.host.as_str(), error.code());
        tracing::debug!(mirror, code, %error, "the mirror cannot be used");
    }

    async fn resolve(&self, repository: &str, tag: &str) -> Result<OciDigest, RegistryError> {
        let mut call = self.manifest(repository, tag);
        call.method = Method::HEAD;
        let head = self.call_for_ok(&call).await?;
        if let Some(digest) = head.header(DIGEST_HEADER).and_then(|digest| digest.parse().ok()) {
            return Ok(digest);
        }
        // A registry that does not say.
        call.method = Method::GET;
        Ok(digest(&self.call_for_ok(&call).await?.body))
    }

    async fn pull(&self, repository: &str, digest: &OciDigest) -> Result<Artifact, RegistryError> {
        let bytes = self.call_for_ok(&self.manifest(repository, &digest.to_string())).await?.body;
        verify("manifest", &bytes, digest)?;
        let manifest = Manifest::parse(&bytes)?;
        let config = self.pull_blob(repository, &manifest.config).await?;
        let component = self.pull_blob(repository, &manifest.layer).await?;
        Ok(manifest.unpack(&config, component)?)
    }

    async fn pull_blob(&self, repository: &str, blob: &Blob) -> Result<Bytes, RegistryError> {
        let Blob { what, digest, size, max } = blob;
        let size = usize::try_from(*size).ok().filter(|size| size <= max);
        let size = size.ok_or(RegistryError::TooLarge { what, max: *max })?;
        let call = Call {
            method: Method::GET,
            path: format!("/v2/{repository}/blobs/{digest}"),
            scope: pull_scope(repository),
            content_type: None,
            body: Bytes::new(),
            // No byte more than the manifest says.
            expected: Expected { what, max: size, timeout: self.timeouts.blob },
        };
        let body = self.call_for_ok(&call).await?.body;
        verify(what, &body, digest)?;
        Ok(body)
    }

    fn manifest(&self, repository: &str, version: &str) -> Call {
        let timeout = self.timeouts.small;
        Call {
            method: Method::GET,
            path: format!("/v2/{repository}/manifests/{version}"),
            scope: pull_scope(repository),
            content_type: None,
            body: Bytes::new(),
            expected: Expected { what: "manifest", max: MAX_MANIFEST, timeout },
        }
    }

    /// Sends a request, for which only the status 200 is good.
    async fn call_for_ok(&self, call: &Call) -> Result<Reply, RegistryError> {
        let reply = self.call(call).await?;
        match reply.status {
            StatusCode::OK => Ok(reply),
            status => Err(self.unexpected(call, status)),
        }
    }

    /// Returns the error of an unexpected status.
    pub(crate) fn unexpected(&self, call: &Call, status: StatusCode) -> RegistryError {
        let host = self.host.clone();
        let what = call.path.trim_start_matches("/v2/");
        let what = what.split('?').next().unwrap_or_default().to_owned();
        match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                RegistryError::Denied { host, status }
            }
            StatusCode::NOT_FOUND => RegistryError::Missing { host, what },
            status => RegistryError::Status { host, what, status },
        }
    }

    /// Sends a request, if needed with the authorization that the registry wants, and follows
    /// redirects.
    pub(crate) async fn call(&self, call: &Call) -> Result<Reply, RegistryError> {
        let reply = self.call_once(call).await?;
        if reply.status != StatusCode::UNAUTHORIZED {
            return Ok(reply);
        }
        let challenges = reply.headers.get_all(header::WWW_AUTHENTICATE).iter();
        let challenges = challenges.filter_map(|value| Challenge::parse(value.to_str().ok()?));
        // The safer one first, if there are several.
        let challenge = challenges.min_by_key(|challenge| *challenge == Challenge::Basic);
        let Some(challenge) = challenge else { return Ok(reply) };
        let Some(authorization) = self.authorize(challenge, &call.scope).await? else {
            return Ok(reply);
        };
        *self.authorization.lock().await = Some(authorization);
        self.call_once(call).await
    }

    /// Returns the authorization that a challenge is about; `None` without credentials.
    async fn authorize(
        &self,
        challenge: Challenge,
        scope: &str,
    ) -> Result<Option<HeaderValue>, RegistryError> {
        let basic = self.credentials.as_ref().and_then(auth::basic);
        let Challenge::Bearer { realm, service, scope: _ } = challenge else { return Ok(basic) };
        // The scope is ours: the registry has no say in what the token may be used for.
        let url = auth::token_url(&realm, service.as_deref(), scope);
        let url = url.ok_or_else(|| self.invalid("the realm of its challenge is not a URL"))?;
        self.check_secure(&url)?;
        let target = url.authority().map(ToString::to_string).unwrap_or_default();
        let is_known = target == self.authority || self.token_host.as_ref() == Some(&target);
        if basic.is_some() && !is_known {
            return Err(RegistryError::TokenHost { host: self.host.clone(), target });
        }
        let mut request = Request::new(Full::default());
        *request.uri_mut() = url;
        if let Some(basic) = basic {
            request.headers_mut().insert(header::AUTHORIZATION, basic);
        }
        let timeout = self.timeouts.small;
        let expected = Expected { what: "token", max: MAX_SMALL, timeout };
        let reply = self.http.send(request, expected).await?;
        match reply.status {
            StatusCode::OK => {
                let token = auth::bearer(&reply.body);
                token.map(Some).ok_or_else(|| self.invalid("no token in the response"))
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                Err(RegistryError::Denied { host: self.host.clone(), status: reply.status })
            }
            status => {
                let what = "a token".to_owned();
                Err(RegistryError::Status { host: self.host.clone(), what, status })
            }
        }
    }

    async fn call_once(&self, call: &Call) -> Result<Reply, RegistryError> {
        let mut url = self.url(&call.path)?;
        for _ in 0..=MAX_REDIRECTS {
            let reply = self.http.send(self.request(call, &url).await, call.expected).await?;
            let is_read = [Method::GET, Method::HEAD].contains(&call.method);
            if !(is_read && is_redirect(reply.status)) {
                return Ok(reply);
            }
            url = self.redirected(&url, reply.header(header::LOCATION).unwrap_or_default())?;
        }
        let target = format!("{url}, after {MAX_REDIRECTS} others");
        Err(RegistryError::Redirect { host: self.host.clone(), target })
    }

    async fn request(&self, call: &Call, url: &Uri) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(call.body.clone()));
        *request.method_mut() = call.method.clone();
        *request.uri_mut() = url.clone();
        let headers = request.headers_mut();
        headers.insert(header::ACCEPT, HeaderValue::from_static(MANIFEST_TYPE));
        if let Some(content_type) = call.content_type {
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        }
        let is_own = url.scheme() == Some(&self.scheme)
            && url.authority().is_some_and(|authority| authority.as_str() == self.authority);
        if is_own && let Some(authorization) = self.authorization.lock().await.clone() {
            headers.insert(header::AUTHORIZATION, authorization);
        }
        request
    }

    /// Returns the URL of a path of the registry.
    pub(crate) fn url(&self, path: &str) -> Result<Uri, RegistryError> {
        let url = Uri::builder().scheme(self.scheme.clone()).authority(self.authority.as_str());
        url.path_and_query(path).build().map_err(|error| self.invalid(&error.to_string()))
    }

    /// Returns where a redirect leads to, if it is allowed.
    fn redirected(&self, from: &Uri, location: &str) -> Result<Uri, RegistryError> {
        let target = location.parse::<Uri>();
        let target = target.map_err(|_| self.invalid("redirect without a valid location"))?;
        let parts = target.into_parts();
        let path = parts.path_and_query.unwrap_or_else(|| PathAndQuery::from_static("/"));
        if parts.authority.is_none() && !path.as_str().starts_with('/') {
            return Err(self.invalid("redirect without a valid location"));
        }
        let scheme = parts.scheme.or_else(|| from.scheme().cloned());
        let authority = parts.authority.or_else(|| from.authority().cloned());
        let url = Uri::builder()
            .scheme(scheme.unwrap_or(Scheme::HTTPS))
            .authority(authority.as_ref().map_or("", Authority::as_str))
            .path_and_query(path)
            .build()
            .map_err(|error| self.invalid(&error.to_string()))?;
        self.check_secure(&url)?;
        Ok(url)
    }

    /// Checks that a URL which the registry names is https; plain http only leads from a registry
    /// with plain http to itself or to this machine.
    fn check_secure(&self, url: &Uri) -> Result<(), RegistryError> {
        let target = url.authority().map(ToString::to_string).unwrap_or_default();
        let is_near = target == self.authority || is_loopback(&target);
        let is_secure = match url.scheme_str() {
            Some("https") => true,
            Some("http") => self.scheme == Scheme::HTTP && is_near,
            Some(_) | None => false,
        };
        if is_secure && !target.is_empty() && !target.contains('@') {
            return Ok(());
        }
        Err(RegistryError::Redirect { host: self.host.clone(), target: url.to_string() })
    }

    /// Returns the path of a URL that the registry has named for the next request of an upload.
    pub(crate) fn own_path(&self, location: &str) -> Result<String, RegistryError> {
        let url: Uri = location.parse().map_err(|_| self.invalid("invalid location"))?;
        if url.authority().is_some_and(|authority| authority.as_str() != self.authority) {
            let target = location.to_owned();
            return Err(RegistryError::Redirect { host: self.host.clone(), target });
        }
        let path = url.path_and_query().map(|path| path.as_str().to_owned());
        path.ok_or_else(|| self.invalid("invalid location"))
    }

    pub(crate) fn invalid(&self, cause: &str) -> RegistryError {
        RegistryError::Response { host: self.host.clone(), cause: cause.to_owned() }
    }
}

/// Checks that `bytes` are what the digest stands for. `what` names them in the error.
pub(crate) fn verify(
    what: &'static str,
    bytes: &[u8],
    expected: &OciDigest,
) -> Result<(), RegistryError> {
    let found = digest(bytes);
    if found == *expected {
        return Ok(());
    }
    Err(RegistryError::Digest { what, expected: expected.clone(), found })
}

fn pull_scope(repository: &str) -> String {
    format!("repository:{repository}:pull")
}

fn is_redirect(status: StatusCode) -> bool {
    [301, 302, 303, 307, 308].contains(&status.as_u16())
}
