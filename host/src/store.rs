//! Opens the store: what outlives a restart, in the state directory.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result};
use pointsman_gateway::{ResponseLimits, response_namespace};
use pointsman_store::{Loss, OpenError, Options, Store};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;

/// Name of the file in the state directory.
pub(crate) const FILE: &str = "store";

/// Maximum size of all responses that are kept in memory.
const MAX_IN_MEMORY: u64 = 64 << 20;

/// The maximum time for the host before to close the file.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(5);
const RELEASE_INTERVAL: Duration = Duration::from_millis(5);

/// Interval of log lines about losses.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// Returns the limits of responses.
pub(crate) fn limits(config: &pointsman_config::Responses) -> ResponseLimits {
    let pointsman_config::Responses {
        max_response,
        max_tenant_bytes,
        max_bytes,
        max_entries,
        max_age,
        max_background,
    } = *config;
    ResponseLimits {
        max_response,
        max_tenant_bytes,
        max_bytes,
        max_entries,
        max_age,
        max_background,
    }
}

/// Opens the store, on a blocking thread. A file that cannot be used does not keep the host from
/// serving: a broken one is moved aside, and with another problem the host works in memory. Only a
/// file of a later version is an error, because a host of that version will need it.
///
/// # Errors
/// If a later version of the host has written the file, or if it is inherited from a host that
/// could use it, and cannot be used.
pub(crate) async fn open(
    state_dir: Option<&Path>,
    limits: ResponseLimits,
    is_inherited: bool,
    registry: &mut Registry,
) -> Result<Store> {
    let lost = Counter::default();
    registry.register(
        "pointsman_store_lost",
        "Entries that could not be written to the store",
        lost.clone(),
    );
    let path = state_dir.map(|dir| dir.join(FILE));
    let open = move || open_or_memory(path, limits, is_inherited, &lost);
    tokio::task::spawn_blocking(open).await.context("failed to open the store")?
}

fn open_or_memory(
    path: Option<PathBuf>,
    limits: ResponseLimits,
    is_inherited: bool,
    lost: &Counter,
) -> Result<Store> {
    let options = |path: Option<PathBuf>| {
        let limits = match path {
            Some(_) => limits,
            None => ResponseLimits { max_bytes: limits.max_bytes.min(MAX_IN_MEMORY), ..limits },
        };
        Options {
            path,
            namespaces: vec![response_namespace(&limits)],
            on_loss: on_loss(lost.clone()),
        }
    };
    let Some(file) = &path else { return Ok(Store::open(options(None))?) };
    let deadline = Instant::now() + RELEASE_TIMEOUT;
    let mut opened = Store::open(options(path.clone()));
    if is_inherited {
        // A read of the host before may not have ended.
        while matches!(opened, Err(OpenError::InUse(_))) && Instant::now() < deadline {
            pause();
            opened = Store::open(options(path.clone()));
        }
        return opened.map_err(|error| {
            let code = error.code();
            anyhow::Error::new(error).context(format!("cannot open the store ({code})"))
        });
    }
    if let Err(error @ OpenError::Corrupt { .. }) = opened {
        opened = move_aside(file, error).and_then(|()| Store::open(options(path.clone())));
    }
    let error = match opened {
        Ok(store) => return Ok(store),
        Err(error) => error,
    };
    let code = error.code();
    if let OpenError::NewerFormat { .. } = error {
        return Err(error).with_context(|| format!("cannot open the store ({code})"));
    }
    let error = format!("{:#}", anyhow::Error::new(error));
    tracing::warn!(event = "store_unavailable", code, error, "keeping what is new in memory only");
    Ok(Store::open(options(None))?)
}

#[expect(clippy::disallowed_methods, reason = "waits for another process, on a blocking thread")]
fn pause() {
    std::thread::park_timeout(RELEASE_INTERVAL);
}

/// Renames a broken file, so that a new one can be created and the old one examined. Returns the
/// problem with the file if that is not possible.
fn move_aside(file: &Path, error: OpenError) -> Result<(), OpenError> {
    let now = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    let aside = file.with_extension(format!("corrupt-{}", now.replace([':', '-'], "")));
    if std::fs::rename(file, &aside).is_err() {
        return Err(error);
    }
    let path = aside.display();
    let error = format!("{:#}", anyhow::Error::new(error));
    let message = "the store was broken; beginning a new one";
    tracing::error!(event = "store_corrupt", %path, error, "{message}");
    Ok(())
}

/// Returns what counts losses, and logs some of them.
fn on_loss(lost: Counter) -> Box<dyn Fn(Loss<'_>) + Send + Sync> {
    let next_log = Mutex::new(Instant::now());
    Box::new(move |loss| {
        lost.inc_by(loss.writes);
        let now = Instant::now();
        let Ok(mut next_log) = next_log.lock() else { return };
        if now < *next_log {
            return;
        }
        *next_log = now + LOG_INTERVAL;
        let cause = std::error::Error::source(loss.error).map(ToString::to_string);
        tracing::error!(
            event = "store_lost",
            writes = loss.writes,
            error = %loss.error,
            cause,
            "entries could not be written to the store"
        );
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn file_that_cannot_be_used_does_not_keep_the_host_from_serving() {
        let dir = tempfile::tempdir().unwrap();
        let mut registry = Registry::default();
        let limits = ResponseLimits::default();
        let file = dir.path().join(FILE);
        std::fs::write(&file, "not a store, but something longer").unwrap();
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(&file, private).unwrap();
        let store = open(Some(dir.path()), limits, false, &mut registry).await.unwrap();
        assert_eq!(store.lost(), 0);
        let names = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name());
        let mut names: Vec<_> = names.map(|name| name.into_string().unwrap()).collect();
        names.sort();
        assert!(names[0] == FILE && names[1].starts_with("store.corrupt-2"), "{names:?}");
        let folder = dir.path().join("a");
        std::fs::create_dir(&folder).unwrap();
        let first = open(Some(&folder), limits, false, &mut registry).await.unwrap();
        let second = open(Some(&folder), limits, false, &mut registry).await.unwrap();
        drop((first, second));
        assert!(folder.join(FILE).is_file());
    }
}
