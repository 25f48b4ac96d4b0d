//! The end of a host that has handed over: it finishes its requests.

use std::sync::Arc;

use pointsman_fleet::{SlotMessage, SlotReply, Successor};
use pointsman_store::StoreSuccessor;
use tokio::sync::Notify;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinSet;

use super::Inheritance;
use super::channel::{Received, Sender};
use super::message::{NewMessage, OldMessage};
use super::next_store::NextStore;
use super::successor::HandedOver;
use crate::running::{Running, Signals};
use crate::service_manager;
use crate::usage::Used;

/// Finishes the requests of a host that has handed over, and returns when none is left, or when
/// the time for them is over.
pub(crate) async fn retire(
    running: Running,
    inheritance: Inheritance,
    handed_over: HandedOver,
    signals: Signals,
) {
    let next = handed_over.pid();
    let HandedOver { sender, thread, messages, paused, .. } = handed_over;
    tracing::info!(
        event = "handed_over",
        pid = next,
        "the next host serves; finishing the requests in flight"
    );
    for (_, copy) in &inheritance.listeners {
        copy.leave_file();
    }
    // Requests of operators that come too late are refused.
    drop(inheritance);
    if let Some(pid) = next {
        service_manager::main_process(pid);
    }
    running.drain.retire();
    let (slots, slot_messages) = unbounded_channel();
    let (replies, replied) = unbounded_channel();
    paused.hand_over(Successor { messages: slots, replies: replied });
    running.fleet.release();
    let store = Arc::new(NextStore::new(sender.clone()));
    running.store.forward(Arc::clone(&store) as Arc<dyn StoreSuccessor>);
    let usage = sender.clone();
    running.usage.forward(Box::new(move |Used { rows, budgets }| {
        usage.send(&OldMessage::Usage { rows, budgets });
    }));
    let stop = Arc::new(Notify::new());
    let mut bridge = JoinSet::new();
    bridge.spawn(send_slots(slot_messages, sender));
    bridge.spawn(receive(messages, replies, store, Arc::clone(&stop)));
    running.finish_retired(signals, &stop).await;
    bridge.shutdown().await;
    tokio::task::spawn_blocking(move || thread.finish()).await.ok();
    tracing::info!("ended after the hand-over");
}

/// Sends what the requests of this host need.
async fn send_slots(mut slots: UnboundedReceiver<SlotMessage>, sender: Sender<OldMessage>) {
    while let Some(message) = slots.recv().await {
        sender.send(&OldMessage::Slot(message));
    }
}

/// Passes on what the next host answers. If it stops, so does this one; if it ends, requests that
/// wait are rejected, and the others go on as long as their engines do.
async fn receive(
    mut messages: UnboundedReceiver<Received<NewMessage>>,
    replies: UnboundedSender<SlotReply>,
    store: Arc<NextStore>,
    stop: Arc<Notify>,
) {
    while let Some((message, _)) = messages.recv().await {
        match message {
            // Fails only at the end of this host.
            NewMessage::Slot(reply) => drop(replies.send(reply)),
            NewMessage::Value { id, value } => store.answer(id, value),
            NewMessage::Stop => stop.notify_one(),
            NewMessage::Prepared | NewMessage::Failed(_) | NewMessage::Serving => {}
        }
    }
    store.end();
    tracing::warn!(event = "successor_ended", "the next host has ended");
}
