//! Tells the service manager about start, reload, stop and health (`sd_notify(3)`), if it has asked
//! for that with `NOTIFY_SOCKET`.

use std::future::{Future, pending};
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use pointsman_fleet::Fleet;
use tokio::time::MissedTickBehavior;

/// How much time a start that goes on asks for.
const START_EXTENSION: Duration = Duration::from_secs(60);
/// How often it asks.
const START_INTERVAL: Duration = Duration::from_secs(20);

/// Asks for time while the host starts, which takes minutes if policies are compiled. Never
/// returns.
pub(crate) async fn extend_start() {
    let mut ticks = tokio::time::interval(START_INTERVAL);
    loop {
        ticks.tick().await;
        let extension = START_EXTENSION.as_micros();
        notify(&format!("STATUS=starting\nEXTEND_TIMEOUT_USEC={extension}"));
    }
}

/// Reports that the host accepts requests.
pub(crate) fn ready() {
    notify("READY=1\nSTATUS=serving");
}

/// Reports that the configuration is read again, until [`ready`] or [`reload_failed`].
pub(crate) fn reloading() {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let micros = now.tv_sec.saturating_mul(1_000_000).saturating_add(now.tv_nsec / 1000);
    notify(&format!("RELOADING=1\nMONOTONIC_USEC={micros}\nSTATUS=reloading"));
}

/// Reports that the host goes on with the configuration that it has.
pub(crate) fn reload_failed() {
    notify("READY=1\nSTATUS=serving; the changed configuration was rejected, see the log");
}

/// Tells the watchdog of the service manager that the host is alive, if it has one: as long as the
/// task that serves clients, in which this runs, and the dispatcher make progress. Never returns.
pub(crate) async fn feed_watchdog(fleet: &Fleet) {
    match watchdog_timeout(|name| std::env::var(name).ok(), std::process::id()) {
        Some(timeout) => {
            feed(timeout / 2, || fleet.is_responding(), || notify("WATCHDOG=1")).await;
        }
        None => pending().await,
    }
}

/// Returns the time after which the watchdog kills the process `pid`, if it watches that one
/// (`sd_watchdog_enabled(3)`).
fn watchdog_timeout(variable: impl Fn(&str) -> Option<String>, pid: u32) -> Option<Duration> {
    let is_own = variable("WATCHDOG_PID").is_none_or(|own| own.parse() == Ok(pid));
    let micros = variable("WATCHDOG_USEC").filter(|_| is_own)?.parse().ok()?;
    Some(Duration::from_micros(micros)).filter(|timeout| !timeout.is_zero())
}

async fn feed<F: Future<Output = bool>>(
    interval: Duration,
    is_responding: impl Fn() -> F,
    ping: impl Fn(),
) {
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if is_responding().await {
            ping();
        }
    }
}

/// Reports that another process is the main one of the service from now on.
pub(crate) fn main_process(pid: u32) {
    notify(&format!("MAINPID={pid}"));
}

/// Reports that the host stops, and asks for this much time, however short the configured timeout
/// of the service (`TimeoutStopSec`) is.
pub(crate) fn stopping(limit: Duration) {
    notify(&stopping_message(limit));
}

fn stopping_message(limit: Duration) -> String {
    format!("STOPPING=1\nSTATUS=draining\nEXTEND_TIMEOUT_USEC={}", limit.as_micros())
}

fn notify(message: &str) {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET").filter(|socket| !socket.is_empty()) else {
        return;
    };
    if let Err(error) = send(socket.as_encoded_bytes(), message) {
        tracing::warn!(%error, "failed to notify the service manager");
    }
}

fn send(socket: &[u8], message: &str) -> io::Result<()> {
    let address = match socket.strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => {
            use std::os::unix::ffi::OsStrExt as _;
            SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(socket))?
        }
    };
    let datagram = UnixDatagram::unbound()?;
    // A service manager that does not read must not hold up the host.
    datagram.set_nonblocking(true)?;
    datagram.send_to_addr(message.as_bytes(), &address)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn messages_reach_named_and_abstract_sockets() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let name = format!("pointsman-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let sockets = [
            (UnixDatagram::bind(&path).unwrap(), path.as_os_str().as_encoded_bytes().to_vec()),
            (UnixDatagram::bind_addr(&address).unwrap(), format!("@{name}").into_bytes()),
        ];
        for (socket, address) in sockets {
            send(&address, &stopping_message(Duration::from_secs(90))).unwrap();
            let mut buffer = [0; 100];
            let length = socket.recv(&mut buffer).unwrap();
            let expected = b"STOPPING=1\nSTATUS=draining\nEXTEND_TIMEOUT_USEC=90000000";
            assert_eq!(&buffer[..length], expected);
        }
        assert!(send(b"/nonexistent/socket", "READY=1").is_err());
    }

    #[test]
    fn watchdog_of_another_process_is_not_fed() {
        for (usec, pid, expected) in [
            (Some("2000000"), None, Some(2)),
            (Some("2000000"), Some("7"), Some(2)),
            (Some("2000000"), Some("8"), None),
            (Some("0"), None, None),
            (Some("x"), None, None),
            (None, Some("7"), None),
        ] {
            let variable = |name: &str| match name {
                "WATCHDOG_USEC" => usec.map(str::to_owned),
                _ => pid.map(str::to_owned),
            };
            let timeout = watchdog_timeout(variable, 7);
            assert_eq!(timeout, expected.map(Duration::from_secs), "{usec:?} {pid:?}");
        }
    }

    /// A dispatcher that hangs, or has ended, must not be taken for healthy.
    #[tokio::test(start_paused = true)]
    async fn watchdog_is_only_fed_while_the_dispatcher_responds() {
        let (asked, pings) = (Cell::new(0), Cell::new(0));
        // Responds three times, then says that it has ended, then hangs.
        let responds = || {
            asked.set(asked.get() + 1);
            let number = asked.get();
            async move {
                match number {
                    1..=3 => true,
                    4 => false,
                    _ => pending().await,
                }
            }
        };
        let ping = || pings.set(pings.get() + 1);
        let minute = Duration::from_secs(60);
        let fed = tokio::time::timeout(minute, feed(Duration::from_secs(1), responds, ping)).await;
        assert!(fed.is_err());
        assert_eq!((asked.get(), pings.get()), (5, 3));
    }
}
