//! Frames on a Unix stream socket: the lengths of the message and of its list of descriptors, then
//! the message. Descriptors travel with the first bytes of their frame (`SCM_RIGHTS`).

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};

/// Maximum size of a message in bytes. The largest one has the environment of an engine, which the
/// kernel limits to a quarter of the stack.
pub(super) const MAX_MESSAGE: usize = 16 << 20;
/// Maximum number of descriptors of a message.
pub(super) const MAX_DESCRIPTORS: usize = 4;
/// Two numbers of 32 bits, least significant byte first.
const HEADER: usize = 8;
/// Bytes that are received at a time.
const CHUNK: usize = 16 << 10;

/// A message with its descriptors.
#[derive(Debug)]
pub struct Frame {
    /// The message.
    pub message: Vec<u8>,
    /// The descriptors, as many as the sender said.
    pub descriptors: Vec<OwnedFd>,
}

/// Assembles frames from the bytes and descriptors that arrive.
#[derive(Debug, Default)]
pub struct FrameReceiver {
    bytes: Vec<u8>,
    descriptors: VecDeque<OwnedFd>,
}

impl FrameReceiver {
    /// Receives what has arrived, or waits for it if the socket blocks. Returns false at the end of
    /// the connection.
    ///
    /// # Errors
    /// If the socket fails, or too many descriptors arrive.
    pub fn receive(&mut self, socket: impl AsFd) -> io::Result<bool> {
        let mut chunk = vec![0; CHUNK];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut chunk)];
        let flags = RecvFlags::CMSG_CLOEXEC;
        let received = rustix::io::retry_on_intr(|| {
            rustix::net::recvmsg(&socket, &mut parts, &mut control, flags)
        })?;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                self.descriptors.extend(descriptors);
            }
        }
        if received.flags.contains(ReturnFlags::CTRUNC) {
            return Err(invalid("too many descriptors"));
        }
        self.bytes.extend_from_slice(chunk.get(..received.bytes).unwrap_or_default());
        Ok(received.bytes > 0)
    }

    /// Returns the next complete frame.
    ///
    /// # Errors
    /// If the peer does not keep the limits.
    pub fn next_frame(&mut self) -> io::Result<Option<Frame>> {
        let Some(header) = self.bytes.first_chunk::<HEADER>() else { return Ok(None) };
        let [a, b, c, d, e, f, g, h] = *header;
        let length = |bytes| usize::try_from(u32::from_le_bytes(bytes)).unwrap_or(usize::MAX);
        let (length, count) = (length([a, b, c, d]), length([e, f, g, h]));
        if length > MAX_MESSAGE || count > MAX_DESCRIPTORS {
            return Err(invalid("the message is too long"));
        }
        let Some(message) = self.bytes.get(HEADER..HEADER + length) else { return Ok(None) };
        let message = message.to_vec();
        // They arrive with the first bytes of the frame, so all of them are there.
        if self.descriptors.len() < count {
            return Err(invalid("descriptors are missing"));
        }
        let descriptors = self.descriptors.drain(..count).collect();
        self.bytes.drain(..HEADER + length);
        Ok(Some(Frame { message, descriptors }))
    }
}

/// A frame that is being sent.
#[derive(Debug)]
pub struct OutgoingFrame {
    bytes: Vec<u8>,
    sent: usize,
    descriptors: Vec<OwnedFd>,
}

impl OutgoingFrame {
    /// Creates the frame of a message with at most four descriptors.
    pub fn new(message: &[u8], descriptors: Vec<OwnedFd>) -> Self {
        let length = |count: usize| u32::try_from(count).unwrap_or(u32::MAX).to_le_bytes();
        let mut bytes = Vec::with_capacity(HEADER + message.len());
        bytes.extend(length(message.len()));
        bytes.extend(length(descriptors.len()));
        bytes.extend_from_slice(message);
        Self { bytes, sent: 0, descriptors }
    }

    /// Returns the number of bytes that are left.
    pub(super) fn left(&self) -> usize {
        self.bytes.len().saturating_sub(self.sent)
    }

    /// Sends what the socket takes. Returns true if the frame has been sent.
    ///
    /// # Errors
    /// If the socket fails.
    pub fn send(&mut self, socket: impl AsFd) -> io::Result<bool> {
        while self.left() > 0 {
            let borrowed: Vec<BorrowedFd<'_>> = match self.sent {
                0 => self.descriptors.iter().map(AsFd::as_fd).collect(),
                _ => Vec::new(),
            };
            let mut space =
                [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !borrowed.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&borrowed)) {
                return Err(invalid("too many descriptors"));
            }
            let rest = [IoSlice::new(self.bytes.get(self.sent..).unwrap_or_default())];
            let sent = rustix::io::retry_on_intr(|| {
                rustix::net::sendmsg(&socket, &rest, &mut control, SendFlags::NOSIGNAL)
            });
            match sent {
                Ok(sent) => self.sent += sent,
                Err(rustix::io::Errno::AGAIN) => return Ok(false),
                Err(error) => return Err(error.into()),
            }
        }
        self.descriptors.clear();
        Ok(true)
    }
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::os::unix::net::UnixStream;

    use super::*;

    fn pair() -> (UnixStream, UnixStream) {
        let (one, two) = UnixStream::pair().unwrap();
        one.set_nonblocking(true).unwrap();
        two.set_nonblocking(true).unwrap();
        (one, two)
    }

    #[test]
    fn frames_and_their_descriptors_arrive_in_order() {
        let (one, two) = pair();
        let mut pipes = Vec::new();
        let mut outgoing: VecDeque<OutgoingFrame> = (0..40u8)
            .map(|index| {
                let (reader, writer) = io::pipe().unwrap();
                pipes.push(writer);
                let descriptors = vec![OwnedFd::from(reader)];
                let message = vec![index; usize::from(index) * 3000];
                OutgoingFrame::new(&message, if index % 2 == 0 { descriptors } else { Vec::new() })
            })
            .collect();
        let (mut receiver, mut frames) = (FrameReceiver::default(), Vec::new());
        while frames.len() < 40 {
            while let Some(first) = outgoing.front_mut()
                && first.send(&one).unwrap()
            {
                outgoing.pop_front();
            }
            receiver.receive(&two).unwrap();
            while let Some(frame) = receiver.next_frame().unwrap() {
                frames.push(frame);
            }
        }
        for (index, (frame, mut writer)) in (0u8..).zip(frames.into_iter().zip(pipes)) {
            assert_eq!(frame.message, vec![index; usize::from(index) * 3000]);
            assert_eq!(frame.descriptors.len(), usize::from(index % 2 == 0));
            if let Some(reader) = frame.descriptors.into_iter().next() {
                writer.write_all(&[index]).unwrap();
                drop(writer);
                let mut text = Vec::new();
                std::fs::File::from(reader).read_to_end(&mut text).unwrap();
                assert_eq!(text, [index]);
            }
        }
    }

    #[test]
    fn peer_that_exceeds_the_limits_is_refused() {
        for header in [[0xff; 8], [0, 0, 0, 2, 0, 0, 0, 0], [1, 0, 0, 0, 99, 0, 0, 0]] {
            let (mut one, two) = pair();
            one.write_all(&header).unwrap();
            let mut receiver = FrameReceiver::default();
            assert!(receiver.receive(&two).unwrap());
            assert_eq!(receiver.next_frame().unwrap_err().kind(), io::ErrorKind::InvalidData);
        }
        // Announced, but not sent.
        let (mut one, two) = pair();
        one.write_all(&[1, 0, 0, 0, 1, 0, 0, 0, b'x']).unwrap();
        let mut receiver = FrameReceiver::default();
        receiver.receive(&two).unwrap();
        assert_eq!(receiver.next_frame().unwrap_err().kind(), io::ErrorKind::InvalidData);
        drop(one);
        assert!(!receiver.receive(&two).unwrap(), "the end of the connection");
    }
}
