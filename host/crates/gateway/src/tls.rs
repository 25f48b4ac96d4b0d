//! TLS of a listener: reads its certificate and key, and reads them again when they change.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use pointsman_files::{ReadError, read_regular};
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{VerifierBuilderError, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};

/// The name of HTTP/2 in a TLS handshake.
pub(crate) const ALPN_HTTP2: &[u8] = b"h2";
const ALPN_HTTP1: &[u8] = b"http/1.1";
/// Maximum size of a file with certificates or a key.
const MAX_FILE: u64 = 1 << 20;
/// How often the files are looked at. A change is read at the second look, so that a pair of files
/// that is being written is complete.
const RELOAD_INTERVAL: Duration = Duration::from_secs(2);

/// The files of a listener's TLS, in PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate of the host, followed by those of intermediate authorities.
    pub certificate: PathBuf,
    /// The private key of the certificate, not encrypted.
    pub key: PathBuf,
    /// The authorities that sign certificates of clients; `None` if clients need none.
    pub client_ca: Option<PathBuf>,
    /// With `client_ca`: clients may come without a certificate.
    pub client_certificates_optional: bool,
}

/// An error in the files of a listener's TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A file is not valid PEM.
    #[error("{} is not valid PEM: {error}", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        error: pem::Error,
    },
    /// A file has no certificate.
    #[error("{} has no certificate; expected PEM with `BEGIN CERTIFICATE`", .0.display())]
    NoCertificate(PathBuf),
    /// A file has no key.
    #[error("{} has no private key; expected PEM with `BEGIN PRIVATE KEY`", .0.display())]
    NoKey(PathBuf),
    /// The key is encrypted.
    #[error(
        "the private key in {} is encrypted; decrypt it, for example with `openssl pkey`",
        .0.display()
    )]
    EncryptedKey(PathBuf),
    /// Certificate and key cannot be used together, or one of them is of an unsupported kind.
    #[error(
        "certificate {} and key {} cannot be used: {error}",
        certificate.display(),
        key.display()
    )]
    Pair {
        /// The file of the certificate.
        certificate: PathBuf,
        /// The file of the key.
        key: PathBuf,
        /// The cause.
        #[source]
        error: rustls::Error,
    },
    /// A certificate of an authority cannot be used.
    #[error("invalid certificate in {}: {error}", path.display())]
    Authority {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        error: rustls::Error,
    },
    /// The authorities cannot be used.
    #[error("the certificates in {} cannot be used: {error}", path.display())]
    Verifier {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        error: VerifierBuilderError,
    },
}

/// The TLS of a listener. Connections that are open keep the certificate that they began with.
#[derive(Debug)]
pub struct Tls {
    files: TlsFiles,
    http2: bool,
    current: ArcSwap<ServerConfig>,
    /// The state of the files that was read last.
    read: Vec<Stamp>,
}

impl Tls {
    /// Reads the files. With `http2`, clients can choose it in the handshake.
    ///
    /// # Errors
    /// If a file cannot be read or used.
    pub fn read(files: TlsFiles, http2: bool) -> Result<Self, TlsError> {
        // First, so that a change after it is noticed.
        let read = stamps(&files);
        let current = ArcSwap::new(server_config(&files, http2)?);
        if is_readable_by_others(&files.key) {
            tracing::warn!(
                path = %files.key.display(),
                "other users of this machine can read the private key; set its mode to 600"
            );
        }
        Ok(Self { files, http2, current, read })
    }

    /// Returns the settings of the next connection.
    pub(crate) fn current(&self) -> Arc<ServerConfig> {
        self.current.load_full()
    }

    /// Reads the files again whenever they change. A pair that cannot be used is logged, and the
    /// one before it stays.
    pub(crate) async fn reload_on_changes(self: Arc<Self>) {
        let (mut known, mut last) = (self.read.clone(), self.read.clone());
        loop {
            tokio::time::sleep(RELOAD_INTERVAL).await;
            // On a blocking thread: a disk may hang.
            let files = self.files.clone();
            let Ok(now) = tokio::task::spawn_blocking(move || stamps(&files)).await else {
                continue;
            };
            let has_settled = now == last;
            last = now;
            if last == known || !has_settled {
                continue;
            }
            known.clone_from(&last);
            let (files, http2) = (self.files.clone(), self.http2);
            let read = tokio::task::spawn_blocking(move || server_config(&files, http2)).await;
            let path = self.files.certificate.display();
            match read {
                Ok(Ok(config)) => {
                    self.current.store(config);
                    tracing::info!(event = "certificate_reloaded", %path, "certificate reloaded");
                }
                Ok(Err(error)) => tracing::warn!(
                    event = "certificate_reload_failed",
                    %path,
                    %error,
                    "failed to reload the certificate; keeping the current one"
                ),
                // The thread has panicked, or the runtime stops.
                Err(error) => tracing::debug!(%error, "certificate was not reloaded"),
            }
        }
    }
}

/// Reads the files, and returns the settings of connections.
fn server_config(files: &TlsFiles, http2: bool) -> Result<Arc<ServerConfig>, TlsError> {
    let chain = certificates(&files.certificate)?;
    let key = private_key(&files.key)?;
    let pair_error = |error| TlsError::Pair {
        certificate: files.certificate.clone(),
        key: files.key.clone(),
        error,
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(rustls::DEFAULT_VERSIONS)
        .map_err(pair_error)?;
    let builder = match &files.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates(path)? {
                let invalid = |error| TlsError::Authority { path: path.clone(), error };
                roots.add(certificate).map_err(invalid)?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            let verifier = match files.client_certificates_optional {
                true => verifier.allow_unauthenticated(),
                false => verifier,
            };
            let invalid = |error| TlsError::Verifier { path: path.clone(), error };
            builder.with_client_cert_verifier(verifier.build().map_err(invalid)?)
        }
    };
    let mut config = builder.with_single_cert(chain, key).map_err(pair_error)?;
    let protocols = if http2 { &[ALPN_HTTP2, ALPN_HTTP1][..] } else { &[ALPN_HTTP1] };
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    Ok(Arc::new(config))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let bytes = read_regular(path, MAX_FILE)?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match certificates {
        Ok(found) if found.is_empty() => Err(TlsError::NoCertificate(path.to_owned())),
        Ok(found) => Ok(found),
        Err(error) => Err(TlsError::Pem { path: path.to_owned(), error }),
    }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let bytes = read_regular(path, MAX_FILE)?;
    let has = |text: &[u8]| bytes.windows(text.len()).any(|window| window == text);
    if has(b"BEGIN ENCRYPTED PRIVATE KEY") || has(b"Proc-Type: 4,ENCRYPTED") {
        return Err(TlsError::EncryptedKey(path.to_owned()));
    }
    PrivateKeyDer::from_pem_slice(&bytes).map_err(|error| match error {
        pem::Error::NoItemsFound => TlsError::NoKey(path.to_owned()),
        error => TlsError::Pem { path: path.to_owned(), error },
    })
}

/// Device, inode, size and change time of a file that a path leads to; `None` if there is none.
/// Links are followed, because Kubernetes replaces a link to the folder of the files.
type Stamp = Option<(u64, u64, u64, i64, i64)>;

fn stamps(files: &TlsFiles) -> Vec<Stamp> {
    let paths = [&files.certificate, &files.key].into_iter().chain(&files.client_ca);
    let stamp = |path: &PathBuf| -> io::Result<_> {
        let found = std::fs::metadata(path)?;
        Ok((found.dev(), found.ino(), found.size(), found.ctime(), found.ctime_nsec()))
    };
    paths.map(|path| stamp(path).ok()).collect()
}

/// Returns true if users who are neither the owner nor in the group can read a file.
fn is_readable_by_others(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|found| found.mode() & 0o004 != 0)
}

#[cfg(test)]
mod tests;
