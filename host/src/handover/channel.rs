//! A connection between two hosts. Threads send and receive, because descriptors travel with the
//! messages.

use std::io;
use std::marker::PhantomData;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use pointsman_fleet::{FrameReceiver, OutgoingFrame};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// The maximum time for the other host to read a message.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);

/// A message that was received, with its descriptors.
pub(super) type Received<R> = (R, Vec<OwnedFd>);

#[derive(Debug)]
enum Queued {
    Frame(OutgoingFrame),
    /// Nothing is sent after what was queued before.
    End,
}

/// Sends messages of the type `S`. Clones share the connection.
#[derive(Debug)]
pub(super) struct Sender<S> {
    queue: mpsc::Sender<Queued>,
    types: PhantomData<fn(S)>,
}

impl<S> Clone for Sender<S> {
    fn clone(&self) -> Self {
        Self { queue: self.queue.clone(), types: PhantomData }
    }
}

impl<S: Serialize> Sender<S> {
    /// Queues a message. One that cannot be sent is dropped: the other host is gone, and the end of
    /// what is received tells that.
    pub(super) fn send(&self, message: &S) {
        self.send_with(message, Vec::new());
    }

    /// Queues a message with descriptors.
    pub(super) fn send_with(&self, message: &S, descriptors: Vec<OwnedFd>) {
        if let Ok(text) = serde_json::to_vec(message) {
            self.queue.send(Queued::Frame(OutgoingFrame::new(&text, descriptors))).ok();
        }
    }
}

/// The thread that sends.
#[derive(Debug)]
pub(super) struct SenderThread {
    queue: mpsc::Sender<Queued>,
    thread: JoinHandle<()>,
}

impl SenderThread {
    /// Waits until everything is sent that was queued before. Blocks.
    pub(super) fn finish(self) {
        // Fails only if the thread has ended, because the other host is gone.
        self.queue.send(Queued::End).ok();
        self.thread.join().ok();
    }
}

/// Starts the threads of a connection. What is received ends with the connection.
pub(super) fn open<S: Serialize, R: DeserializeOwned + Send + 'static>(
    stream: UnixStream,
) -> io::Result<(Sender<S>, SenderThread, UnboundedReceiver<Received<R>>)> {
    stream.set_write_timeout(Some(SEND_TIMEOUT))?;
    let (queue, queued) = mpsc::channel();
    let writer = stream.try_clone()?;
    let thread = std::thread::Builder::new().name("handover-send".to_owned());
    let thread = thread.spawn(move || {
        while let Ok(Queued::Frame(mut frame)) = queued.recv() {
            if !frame.send(&writer).is_ok_and(|is_sent| is_sent) {
                // A part may have been sent, so no other message can follow.
                writer.shutdown(std::net::Shutdown::Both).ok();
                return;
            }
        }
    })?;
    let (received, receiver) = unbounded_channel();
    let reader = std::thread::Builder::new().name("handover-receive".to_owned());
    reader.spawn(move || {
        if let Err(error) = receive(&stream, &received) {
            tracing::warn!(%error, "the connection to the other host has failed");
        }
    })?;
    let sender = Sender { queue: queue.clone(), types: PhantomData };
    Ok((sender, SenderThread { queue, thread }, receiver))
}

fn receive<R: DeserializeOwned>(
    stream: &UnixStream,
    received: &UnboundedSender<Received<R>>,
) -> io::Result<()> {
    let mut frames = FrameReceiver::default();
    loop {
        while let Some(frame) = frames.next_frame()? {
            let message = serde_json::from_slice(&frame.message)?;
            if received.send((message, frame.descriptors)).is_err() {
                return Ok(());
            }
        }
        match frames.receive(stream) {
            Ok(true) => {}
            Ok(false) => return Ok(()),
            // A process that ends with messages that it has not read. What it has sent has been
            // received before.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}
