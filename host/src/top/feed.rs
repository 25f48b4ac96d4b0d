//! The events of a host, in a thread of their own.

use std::cell::RefCell;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::policy::HostClient;

/// Updates that wait to be shown.
const MAX_WAITING: usize = 256;
/// Pause before the next attempt to connect.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// What has arrived.
#[derive(Debug)]
pub(super) enum Update {
    /// The whole status.
    State(Value),
    /// A decision.
    Decision(Value),
    /// A line of the log.
    Log(Value),
    /// So many events were lost.
    Lost(u64),
    /// The host is not reachable; it is tried again.
    Failed(anyhow::Error),
}

/// Follows the events of a host until the receiver is dropped.
///
/// # Errors
/// If the thread cannot be spawned.
pub(super) fn follow(client: HostClient) -> Result<Receiver<Update>> {
    let (sender, receiver) = sync_channel(MAX_WAITING);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("failed to start the async runtime")?;
    let work = move || runtime.block_on(connect_again(&client, &sender));
    let thread = std::thread::Builder::new().name("events".into()).spawn(work);
    thread.context("failed to spawn the thread of events")?;
    Ok(receiver)
}

async fn connect_again(client: &HostClient, sender: &SyncSender<Update>) {
    loop {
        let parser = RefCell::new(Parser::default());
        let on_text = |text: &str| {
            let updates = parser.borrow_mut().parse(text);
            // Fails only if the receiver has been dropped.
            Ok(updates.into_iter().all(|update| sender.send(update).is_ok()))
        };
        let ended = client.stream("/events", on_text).await;
        let error = ended.err().unwrap_or_else(|| anyhow::anyhow!("the host has ended the events"));
        if sender.send(Update::Failed(error)).is_err() {
            return;
        }
        tokio::time::sleep(RETRY_DELAY).await;
    }
}

/// Reads server-sent events, whose lines arrive as a whole.
#[derive(Debug, Default)]
struct Parser {
    event: String,
}

impl Parser {
    fn parse(&mut self, text: &str) -> Vec<Update> {
        let mut updates = Vec::new();
        for line in text.lines() {
            if let Some(event) = line.strip_prefix("event: ") {
                event.clone_into(&mut self.event);
            } else if let Some(data) = line.strip_prefix("data: ")
                && let Ok(data) = serde_json::from_str::<Value>(data)
            {
                updates.extend(update(&self.event, data));
            }
        }
        updates
    }
}

/// Returns the update of an event; `None` for one that this version does not know.
fn update(event: &str, data: Value) -> Option<Update> {
    match event {
        "state" => Some(Update::State(data)),
        "decision" => Some(Update::Decision(data)),
        "log" => Some(Update::Log(data)),
        "lost" => Some(Update::Lost(data["count"].as_u64().unwrap_or_default())),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_read_even_if_their_lines_come_one_by_one() {
        let mut parser = Parser::default();
        assert!(parser.parse(":\n\nevent: log\n").is_empty());
        let text = "data: {\"a\":1}\n\nevent: lost\ndata: {\"count\":3}\n\nevent: x\ndata: {}\n\n";
        let updates = parser.parse(text);
        let [Update::Log(line), Update::Lost(3)] = &updates[..] else { panic!("{updates:?}") };
        assert_eq!(line["a"], 1);
    }
}
