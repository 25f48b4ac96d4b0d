//! Fetches the keys of the issuer of tokens: at the start, at an interval, and when a token has an
//! unknown key.
//!
//! The last key set is kept in the state directory, so that a host that starts while the issuer
//! cannot be reached checks tokens with it, for as long as the grace time lasts.

mod metrics;
mod source;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use pointsman_access::{Keys, MAX_KEY_SET, PublicKeys, Schedule, TokenVerifier};
use pointsman_config::{KeySource, Tokens, format_duration};
use pointsman_files::{read_private, write_atomic};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio::time::Instant;

use self::source::{Source, Unavailable, read_file};

/// Name of the file in the state directory.
const FILE: &str = "token-keys.json";
/// Maximum size of the file in bytes: the text of a key set is escaped in it.
const MAX_FILE: u64 = 4 * MAX_KEY_SET as u64;

/// The keys of the issuer of tokens, if tokens are accepted.
#[derive(Debug)]
pub(crate) struct TokenKeys(Option<Refresher>);

#[derive(Debug)]
struct Refresher {
    verifier: Arc<TokenVerifier>,
    source: Source,
    schedule: Schedule,
    /// Notified when a token has an unknown key.
    wanted: Arc<Notify>,
    /// Where the key set is kept.
    file: Option<PathBuf>,
    failures: Counter,
}

/// What is kept of a key set.
#[derive(Debug, Serialize, Deserialize)]
struct Stored {
    /// The key set belongs to this issuer and source: others must not be used for it.
    issuer: String,
    source: String,
    fetched_ms: u64,
    keys: String,
}

impl TokenKeys {
    /// Reads the keys that are in a file, or those that an earlier host has fetched.
    ///
    /// # Errors
    /// If the keys are configured to be in a file, and it cannot be used.
    pub(crate) fn open(
        tokens: Option<Tokens>,
        state_dir: Option<&Path>,
        registry: &mut Registry,
    ) -> Result<Self> {
        let Some(tokens) = tokens else { return Ok(Self(None)) };
        let (stored, file) = (initial_keys(&tokens, state_dir)?, stored_file(&tokens, state_dir));
        let wanted = Arc::new(Notify::new());
        let notify = Arc::clone(&wanted);
        let Tokens { settings, source, ca, refresh, .. } = tokens;
        let source = Source::new(source, settings.issuer.clone(), ca.as_deref());
        let verifier = TokenVerifier::new(settings, Box::new(move || notify.notify_one()));
        let verifier = Arc::new(verifier);
        if let Some((keys, fetched)) = stored {
            verifier.replace(keys, fetched);
        }
        let failures = metrics::register(registry, &verifier);
        let schedule = Schedule::new(refresh);
        Ok(Self(Some(Refresher { verifier, source, schedule, wanted, file, failures })))
    }

    /// Makes keys of the configuration accept tokens as well.
    pub(crate) fn added_to(&self, keys: Keys) -> Keys {
        match &self.0 {
            Some(refresher) => keys.with_tokens(Arc::clone(&refresher.verifier)),
            None => keys,
        }
    }

    /// Fetches the keys whenever it is time, as long as the future is polled.
    pub(crate) async fn refresh(self) {
        match self.0 {
            Some(refresher) => refresher.run().await,
            None => std::future::pending().await,
        }
    }
}

impl Refresher {
    async fn run(mut self) {
        let begun = Instant::now();
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(begun + self.schedule.next()) => {}
                () = self.wanted.notified() => {
                    self.schedule.want();
                    continue;
                }
            }
            let fetched = self.fetch().await;
            self.schedule.ended(begun.elapsed(), fetched.is_ok());
            if let Err(error) = fetched {
                self.failures.inc();
                let status = self.verifier.status(SystemTime::now());
                let (age_s, usable) = (status.age_s, status.usable);
                let error = error.to_string();
                tracing::warn!(
                    event = "token_keys_unavailable",
                    age_s,
                    usable,
                    error = error.as_str(),
                    "failed to fetch the keys of the issuer of tokens"
                );
                self.verifier.set_problem(error);
            }
        }
    }

    async fn fetch(&self) -> Result<(), Unavailable> {
        let text = self.source.fetch().await?;
        let settings = self.verifier.settings();
        let keys = PublicKeys::parse(&text, &settings.algorithms)?;
        let (now, count) = (SystemTime::now(), keys.len());
        let is_first = !self.verifier.status(now).usable;
        self.verifier.replace(keys, now);
        if is_first {
            tracing::info!(event = "token_keys_fetched", count, "fetched the issuer's keys");
        }
        let Some(file) = self.file.clone() else { return Ok(()) };
        let stored = Stored {
            issuer: settings.issuer.clone(),
            source: self.source.name(),
            fetched_ms: unix_ms(now),
            // Parsed as JSON, and so UTF-8.
            keys: String::from_utf8_lossy(&text).into_owned(),
        };
        let write = move || -> Result<()> {
            Ok(write_atomic(&file, &serde_json::to_vec(&stored)?, 0o600)?)
        };
        // The key set is in use; only a restart without the issuer needs the file.
        if let Ok(Err(error)) = tokio::task::spawn_blocking(write).await {
            tracing::warn!(%error, "failed to keep the issuer's keys for a restart");
        }
        Ok(())
    }
}

/// Returns lines about tokens for `check`.
///
/// # Errors
/// As [`TokenKeys::open`].
pub(crate) fn describe(tokens: Option<&Tokens>, state_dir: Option<&Path>) -> Result<Vec<String>> {
    let Some(tokens) = tokens else { return Ok(Vec::new()) };
    let keys = match initial_keys(tokens, state_dir)? {
        Some((keys, fetched)) => {
            let age = SystemTime::now().duration_since(fetched).unwrap_or_default();
            let age = format_duration(Duration::from_secs(age.as_secs()));
            format!("key set: {}, {age} old", keys.len())
        }
        None => "key set: not fetched yet".to_owned(),
    };
    let (issuer, source) = (&tokens.settings.issuer, source::name(&tokens.source));
    Ok(vec![format!("tokens: issuer {issuer}, keys from {source}"), format!("  {keys}")])
}

fn stored_file(tokens: &Tokens, state_dir: Option<&Path>) -> Option<PathBuf> {
    match &tokens.source {
        KeySource::File(_) => None,
        KeySource::Discovery(_) | KeySource::Url(_) => Some(state_dir?.join(FILE)),
    }
}

/// Returns the keys that are there without a request to the issuer, and when they were fetched.
fn initial_keys(
    tokens: &Tokens,
    state_dir: Option<&Path>,
) -> Result<Option<(PublicKeys, SystemTime)>> {
    if let KeySource::File(path) = &tokens.source {
        let keys = read_file(path).map_err(Unavailable::from).and_then(|text| {
            PublicKeys::parse(&text, &tokens.settings.algorithms).map_err(Unavailable::from)
        });
        let keys = keys.with_context(|| format!("cannot use {} (`jwks-file`)", path.display()))?;
        return Ok(Some((keys, SystemTime::now())));
    }
    let Some(file) = stored_file(tokens, state_dir) else { return Ok(None) };
    match read_stored(&file, tokens) {
        Ok(stored) => Ok(stored),
        Err(error) => {
            let error = format!("{error:#}");
            tracing::warn!(error, "ignored the key set of an earlier host");
            Ok(None)
        }
    }
}

fn read_stored(file: &Path, tokens: &Tokens) -> Result<Option<(PublicKeys, SystemTime)>> {
    let text = match read_private(file, MAX_FILE) {
        Ok(text) => text,
        Err(error) if error.is_not_found() => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let stored: Stored = serde_json::from_slice(&text).context("invalid content")?;
    if stored.issuer != tokens.settings.issuer || stored.source != source::name(&tokens.source) {
        return Ok(None);
    }
    let keys = PublicKeys::parse(stored.keys.as_bytes(), &tokens.settings.algorithms)?;
    Ok(Some((keys, UNIX_EPOCH + Duration::from_millis(stored.fetched_ms))))
}

fn unix_ms(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
