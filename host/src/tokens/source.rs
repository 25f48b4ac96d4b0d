//! Where the keys of an issuer are, and how they are read.

use std::path::Path;
use std::time::Duration;

use pointsman_access::{KeySetError, MAX_KEY_SET};
use pointsman_config::KeySource;
use pointsman_files::{ReadError, read_regular};
use pointsman_fleet::{FetchError, FetchUrl, FetchUrlError, Fetcher};
use serde::Deserialize;

/// Maximum time of a request to the issuer.
const FETCH_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum size of the document of an issuer in bytes.
const MAX_DISCOVERY: usize = 64 << 10;

/// Where the keys of an issuer are.
#[derive(Debug)]
pub(super) struct Source {
    place: KeySource,
    issuer: String,
    fetcher: Fetcher,
}

/// Why the keys cannot be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unavailable {
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    KeySet(#[from] KeySetError),
    #[error("invalid document of the issuer: {0}")]
    Discovery(#[source] serde_json::Error),
    #[error("the document of the issuer is that of another one")]
    OtherIssuer,
    #[error("invalid `jwks_uri` of the issuer: {0}")]
    Url(#[from] FetchUrlError),
    #[error("the host is stopping")]
    Stopping,
}

/// The document of an issuer; further members are ignored.
#[derive(Deserialize)]
struct Discovery {
    issuer: String,
    jwks_uri: String,
}

impl Source {
    pub(super) fn new(place: KeySource, issuer: String, ca: Option<&[u8]>) -> Self {
        Self { place, issuer, fetcher: Fetcher::new(ca, FETCH_TIMEOUT) }
    }

    /// Returns the place, for the log and to compare it.
    pub(super) fn name(&self) -> String {
        name(&self.place)
    }

    /// Returns the text of the key set.
    pub(super) async fn fetch(&self) -> Result<Vec<u8>, Unavailable> {
        match &self.place {
            KeySource::File(path) => {
                // On a blocking thread: a disk may hang.
                let path = path.clone();
                let read = tokio::task::spawn_blocking(move || read_file(&path)).await;
                Ok(read.map_err(|_| Unavailable::Stopping)??)
            }
            KeySource::Url(url) => Ok(self.fetcher.get(url, MAX_KEY_SET).await?.to_vec()),
            KeySource::Discovery(url) => {
                let document = self.fetcher.get(url, MAX_DISCOVERY).await?;
                let document = serde_json::from_slice(&document).map_err(Unavailable::Discovery)?;
                let Discovery { issuer, jwks_uri } = document;
                if issuer != self.issuer {
                    return Err(Unavailable::OtherIssuer);
                }
                let url = FetchUrl::parse(&jwks_uri)?;
                Ok(self.fetcher.get(&url, MAX_KEY_SET).await?.to_vec())
            }
        }
    }
}

/// Returns a place as it is shown.
pub(super) fn name(place: &KeySource) -> String {
    match place {
        KeySource::Discovery(url) | KeySource::Url(url) => url.to_string(),
        KeySource::File(path) => path.display().to_string(),
    }
}

/// Reads a key set from a file.
pub(super) fn read_file(path: &Path) -> Result<Vec<u8>, ReadError> {
    read_regular(path, MAX_KEY_SET as u64)
}
