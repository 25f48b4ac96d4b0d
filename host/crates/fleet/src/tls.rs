//! TLS connections to external engines, such as a remote API as the last lane of a plan.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper_rustls::builderstates::WantsProtocols1;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use parking_lot::Mutex;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};

/// The trusted root certificates: the system's, and optionally more.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TrustedRoots<'a> {
    /// PEM of certificates to trust in addition to the system's.
    pub(crate) additional: Option<&'a [u8]>,
}

/// How long the system's certificates are used without reading them again. Reading them takes
/// milliseconds, which the lanes of one configuration share.
const SYSTEM_ROOTS_FRESH: Duration = Duration::from_secs(60);

/// Returns the certificates that the system trusts.
fn system_roots() -> RootCertStore {
    static KNOWN: Mutex<Option<(Instant, RootCertStore)>> = Mutex::new(None);
    let mut known = KNOWN.lock();
    if let Some((read, store)) = &*known
        && read.elapsed() < SYSTEM_ROOTS_FRESH
    {
        return store.clone();
    }
    let system = rustls_native_certs::load_native_certs();
    for error in &system.errors {
        tracing::warn!(error = %error, "failed to read a system certificate");
    }
    let mut store = RootCertStore::empty();
    let (_, invalid) = store.add_parsable_certificates(system.certs);
    if invalid > 0 {
        // Usual: systems ship certificates that rustls does not support.
        tracing::debug!(count = invalid, "ignored invalid system certificates");
    }
    known.insert((Instant::now(), store)).1.clone()
}

/// Creates a connector that uses TLS for https URLs, and plain connections for http URLs. Without
/// `roots`, no certificate is trusted and https fails.
pub(crate) fn connector(
    http: HttpConnector,
    roots: Option<TrustedRoots<'_>>,
) -> HttpsConnector<HttpConnector> {
    builder(roots).enable_http1().wrap_connector(for_https(http))
}

/// Creates a connector for https and plain http URLs, which trusts the roots of the system and
/// those in `ca` as PEM.
pub fn https_connector(ca: Option<&[u8]>, timeout: Duration) -> HttpsConnector<HttpConnector> {
    let mut http = HttpConnector::new();
    http.set_connect_timeout(Some(timeout));
    connector(http, Some(TrustedRoots { additional: ca }))
}

/// Returns true if a connection failed because the certificate of the server cannot be trusted.
pub(crate) fn is_certificate_error(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<rustls::Error>() {
            return matches!(error, rustls::Error::InvalidCertificate(_));
        }
        // The source of an I/O error is that of the error that it wraps.
        let wrapped = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        next = match wrapped {
            Some(wrapped) => Some(wrapped),
            None => error.source(),
        };
    }
    false
}

/// Does the same as [`connector`] for a server that speaks HTTP/2.
pub(crate) fn http2_connector(
    http: HttpConnector,
    roots: Option<TrustedRoots<'_>>,
) -> HttpsConnector<HttpConnector> {
    builder(roots).enable_http2().wrap_connector(for_https(http))
}

fn builder(roots: Option<TrustedRoots<'_>>) -> HttpsConnectorBuilder<WantsProtocols1> {
    HttpsConnectorBuilder::new().with_tls_config(client_config(roots)).https_or_http()
}

fn for_https(mut http: HttpConnector) -> HttpConnector {
    http.enforce_http(false);
    http
}

fn client_config(roots: Option<TrustedRoots<'_>>) -> ClientConfig {
    let mut store = RootCertStore::empty();
    if let Some(roots) = roots {
        store = system_roots();
        for certificate in CertificateDer::pem_slice_iter(roots.additional.unwrap_or_default()) {
            match certificate {
                Ok(certificate) => {
                    if let Err(error) = store.add(certificate) {
                        tracing::warn!(error = %error, "invalid certificate in `ca-file`");
                    }
                }
                Err(error) => tracing::warn!(error = %error, "invalid certificate in `ca-file`"),
            }
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(rustls::DEFAULT_VERSIONS);
    match config {
        Ok(config) => config.with_root_certificates(store).with_no_client_auth(),
        // Provider and versions are constants of the library, and compatible.
        Err(error) => unreachable!("{error}"),
    }
}
