//! Pushes artifacts.

use bytes::Bytes;
use http::{Method, StatusCode, header};
use pointsman_spec::{OciDigest, OciReference, OciVersion};

use crate::client::{Call, Client, Endpoint, MAX_SMALL, verify};
use crate::digest::digest;
use crate::error::RegistryError;
use crate::http_client::Expected;
use crate::layout::{Artifact, MANIFEST_TYPE};

impl Client {
    /// Pushes an artifact to the registry, not to its mirrors, and returns its digest. A tag then
    /// leads to it; a reference with a digest has to be that of the artifact.
    ///
    /// # Errors
    /// If the artifact is not a policy, has another digest, or the registry does not take it.
    pub async fn push(
        &self,
        reference: &OciReference,
        artifact: &Artifact,
    ) -> Result<OciDigest, RegistryError> {
        let packed = artifact.pack()?;
        let found = digest(&packed.manifest);
        let version = match reference.version() {
            OciVersion::Tag(tag) => tag.clone(),
            OciVersion::Digest(expected) => {
                verify("manifest", &packed.manifest, expected)?;
                expected.to_string()
            }
        };
        let (endpoint, repository) = (self.endpoint(reference.host()), reference.repository());
        for blob in [&packed.config, &artifact.component] {
            endpoint.push_blob(repository, blob).await?;
        }
        let mut call = endpoint.push_request(Method::PUT, repository);
        call.path = format!("/v2/{repository}/manifests/{version}");
        call.content_type = Some(MANIFEST_TYPE);
        call.body = packed.manifest;
        let reply = endpoint.call(&call).await?;
        match reply.status {
            StatusCode::CREATED => Ok(found),
            status => Err(endpoint.unexpected(&call, status)),
        }
    }
}

impl Endpoint {
    fn push_request(&self, method: Method, repository: &str) -> Call {
        let timeout = self.timeouts.blob;
        Call {
            method,
            path: String::new(),
            scope: format!("repository:{repository}:pull,push"),
            content_type: None,
            body: Bytes::new(),
            expected: Expected { what: "response", max: MAX_SMALL, timeout },
        }
    }

    /// Pushes a blob, unless the registry has it.
    async fn push_blob(&self, repository: &str, blob: &Bytes) -> Result<(), RegistryError> {
        let digest = digest(blob);
        let mut call = self.push_request(Method::HEAD, repository);
        call.path = format!("/v2/{repository}/blobs/{digest}");
        if self.call(&call).await?.status == StatusCode::OK {
            return Ok(());
        }
        let mut call = self.push_request(Method::POST, repository);
        call.path = format!("/v2/{repository}/blobs/uploads/");
        let reply = self.call(&call).await?;
        if reply.status != StatusCode::ACCEPTED {
            return Err(self.unexpected(&call, reply.status));
        }
        let location = reply.header(header::LOCATION).unwrap_or_default();
        let path = self.own_path(location)?;
        let separator = if path.contains('?') { '&' } else { '?' };
        let mut call = self.push_request(Method::PUT, repository);
        call.path = format!("{path}{separator}digest={digest}");
        call.content_type = Some("application/octet-stream");
        call.body = blob.clone();
        match self.call(&call).await?.status {
            StatusCode::CREATED => Ok(()),
            status => Err(self.unexpected(&call, status)),
        }
    }
}
