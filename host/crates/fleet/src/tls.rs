//! TLS towards engines that are not ours, such as a remote API as the last lane to try.

use std::sync::Arc;

use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};

/// Whose certificates are good: those that the system trusts, and those of a PEM text.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Trust<'a> {
    pub(crate) also: Option<&'a [u8]>,
}

/// Connections with TLS where the URL says https, and plain ones where it says http. Without `trust`, https fails.
pub(crate) fn connector(
    mut http: HttpConnector,
    trust: Option<Trust<'_>>,
) -> HttpsConnector<HttpConnector> {
    http.enforce_http(false);
    let mut roots = RootCertStore::empty();
    if let Some(trust) = trust {
        let system = rustls_native_certs::load_native_certs();
        for error in &system.errors {
            tracing::warn!("a certificate of the system cannot be read: {error}");
        }
        let (_, broken) = roots.add_parsable_certificates(system.certs);
        if broken > 0 {
            tracing::debug!("{broken} certificates of the system are of no use");
        }
        for certificate in CertificateDer::pem_slice_iter(trust.also.unwrap_or_default()) {
            let added = certificate
                .map_err(|error| error.to_string())
                .and_then(|certificate| roots.add(certificate).map_err(|error| error.to_string()));
            if let Err(error) = added {
                tracing::warn!("a certificate of `ca-file` is of no use: {error}");
            }
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(rustls::DEFAULT_VERSIONS);
    let config = match config {
        Ok(config) => config.with_root_certificates(roots).with_no_client_auth(),
        // The provider and the versions are both constants of the library, and match.
        Err(never) => unreachable!("{never}"),
    };
    HttpsConnectorBuilder::new()
        .with_tls_config(config)
        .https_or_http()
        .enable_http1()
        .wrap_connector(http)
}
