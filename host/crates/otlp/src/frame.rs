//! The frame of a message in gRPC, and what a receiver answers.

/// Bytes before a message: a flag for compression and the length.
const PREFIX: usize = 5;

/// Why an export was refused in gRPC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrameError {
    /// The status, `grpc-status`; 2 (unknown) if the receiver has sent none.
    pub status: u32,
}

impl FrameError {
    /// Returns true if the export may succeed later (from the specification of OTLP).
    pub fn is_transient(&self) -> bool {
        // Cancelled, deadline exceeded, aborted, out of range, unavailable, data loss.
        matches!(self.status, 1 | 4 | 10 | 11 | 14 | 15)
    }
}

/// Returns a message as the body of a gRPC request.
pub fn grpc_frame(message: &[u8]) -> Vec<u8> {
    let mut body = Vec::with_capacity(PREFIX + message.len());
    body.push(0);
    // Batches are far smaller than 4 GiB.
    body.extend_from_slice(&u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes());
    body.extend_from_slice(message);
    body
}

/// Checks the `grpc-status` of a response, which is in its trailers or, without a body, in its
/// headers.
///
/// # Errors
/// If the receiver has refused the export.
pub fn check_frame(status: Option<&str>) -> Result<(), FrameError> {
    match status.and_then(|status| status.parse().ok()) {
        Some(0) => Ok(()),
        Some(status) => Err(FrameError { status }),
        None => Err(FrameError { status: 2 }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_have_the_length_of_their_message() {
        assert_eq!(grpc_frame(b"abc"), [0, 0, 0, 0, 3, b'a', b'b', b'c']);
    }

    #[test]
    fn only_status_zero_is_a_success() {
        assert_eq!(check_frame(Some("0")), Ok(()));
        for (status, is_transient) in
            [(Some("14"), true), (Some("16"), false), (Some("x"), false), (None, false)]
        {
            assert_eq!(check_frame(status).unwrap_err().is_transient(), is_transient, "{status:?}");
        }
    }
}
