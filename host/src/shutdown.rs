//! Graceful shutdown.
//!
//! ```text
//!   first signal    not ready; new requests get 503, in-flight responses continue
//!   drain timeout   remaining responses are aborted with an explicit error event
//!   then            queued requests are rejected, engines are stopped group by group; health
//!                   checks are still answered
//!   at the end      the listeners close
//!   second signal   skips draining; engines get a few seconds, then the keeper kills them
//! ```

use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::handover::{Inheritance, UpgradeRequest, hand_over, prepare, retire};
use crate::running::{Running, Signals, Wanted, finish_records, finish_store};
use crate::service_manager;
use crate::stop_limits::{ABORT_TIMEOUT, CLOSE_TIMEOUT};

/// Time for engines to stop after a second signal.
const FORCED_STOP_TIMEOUT: Duration = Duration::from_secs(3);

/// Serves until the host stops, or has handed over to the next one and finished its requests.
pub(crate) async fn run(
    mut running: Running,
    mut inheritance: Inheritance,
    mut signals: Signals,
) -> Result<()> {
    let name = loop {
        let request = tokio::select! {
            ended = running.server.join_next() => {
                running.fleet.shutdown().await;
                ended.transpose().context("the server failed")?;
                anyhow::bail!("the server ended unexpectedly");
            }
            wanted = signals.next(&running.reloader) => match wanted {
                Wanted::Stop(name) => break name,
                Wanted::Upgrade => UpgradeRequest::by_signal(),
            },
            Some(request) = inheritance.upgrades.recv() => request,
        };
        let prepared = tokio::select! {
            prepared = prepare(&running, &inheritance, &request) => prepared,
            name = signals.stop() => break name,
        };
        let handed_over = match prepared {
            Ok(successor) => hand_over(&running, successor).await,
            Err(error) => Err(error),
        };
        request.answer(&handed_over);
        if let Ok(next) = handed_over {
            retire(running, inheritance, next, signals).await;
            return Ok(());
        }
    };
    stop(running, name, signals).await;
    Ok(())
}

/// Stops the host because of a signal.
async fn stop(mut running: Running, name: &str, mut signals: Signals) {
    let limits = *running.limits.lock();
    let timeout_s = limits.drain_timeout.as_secs_f32();
    let limit_s = limits.limit.as_secs_f32();
    tracing::info!(
        event = "draining",
        signal = name,
        timeout_s,
        limit_s,
        "draining; a second signal \
        skips it"
    );
    service_manager::stopping(limits.limit);
    running.drain.begin();
    running.fleet.announce_stop();
    let (drained, is_forced) = tokio::select! {
        drained = tokio::time::timeout(limits.drain_timeout, running.drain.drained()) => {
            (drained.is_ok(), false)
        }
        name = signals.stop() => {
            tracing::warn!(signal = name, "second signal: skipping the drain");
            (false, true)
        }
    };
    if !drained {
        running.drain.abort();
        tokio::time::timeout(ABORT_TIMEOUT, running.drain.drained()).await.ok();
        running.drain.cut();
    }
    let forced = async {
        if !is_forced {
            let name = signals.stop().await;
            tracing::warn!(signal = name, "second signal: not waiting for the engines");
        }
        tokio::time::sleep(FORCED_STOP_TIMEOUT).await;
    };
    tokio::select! {
        () = running.fleet.shutdown() => {}
        () = forced => tracing::warn!("engines are left to the keeper, which kills them"),
    }
    running.drain.close();
    running.reloader.stop();
    if tokio::time::timeout(CLOSE_TIMEOUT, running.server.join_next()).await.is_err() {
        running.server.shutdown().await;
    }
    finish_records(running.records.take_writer()).await;
    finish_store(running.usage, running.states, running.shared, running.store).await;
    tracing::info!("stopped");
}
