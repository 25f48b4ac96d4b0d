//! Queue places: how many requests of a key may wait for slots.

use std::pin::pin;
use std::time::Duration;

use pointsman_access::Admission;
use pointsman_domain::SlotRequest;
use pointsman_domain::dispatch::{AcquireError, Ticket};
use pointsman_fleet::{Fleet, Lease};

use crate::failure::AttemptError;

/// Time within which a free slot is granted. A request that gets one of these needs no queue place.
const GRANT_TIME: Duration = Duration::from_millis(20);

/// Waits for a slot with a ticket, in one of the queue places of the key if it has a limit of them.
///
/// # Errors
/// If the lane grants no slot, or all queue places are taken.
pub(crate) async fn acquire(
    fleet: &Fleet,
    (ticket, slot_request): (Ticket, SlotRequest),
    admission: Option<&mut Admission>,
) -> Result<Lease, AttemptError> {
    let acquire = fleet.acquire_as(ticket, slot_request);
    let Some(admission) = admission.filter(|admission| admission.limits_queue()) else {
        return acquire.await.map_err(AttemptError::Acquire);
    };
    let mut acquire = pin!(acquire);
    if let Ok(granted) = tokio::time::timeout(GRANT_TIME, acquire.as_mut()).await {
        return granted.map_err(AttemptError::Acquire);
    }
    if let Err(refusal) = admission.wait() {
        let retry_in = refusal.retry_after.unwrap_or_default();
        // Saturates: a limit does not exceed `u32`.
        let queued = usize::try_from(refusal.max).unwrap_or(usize::MAX);
        let denied = AcquireError::QueueFull { queued, retry_in };
        return Err(AttemptError::QueueLimit { refusal: Box::new(refusal), denied });
    }
    let granted = acquire.await;
    // Not after a drop of this future: the end of the request gives the place back.
    admission.stop_waiting();
    granted.map_err(AttemptError::Acquire)
}
