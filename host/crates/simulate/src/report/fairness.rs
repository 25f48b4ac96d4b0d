//! How alike tenants are treated, as one number.
//!
//! The number is the index of R. Jain, D. Chiu and W. Hawe, "A Quantitative Measure of Fairness and Discrimination for
//! Resource Allocation in Shared Computer Systems" (DEC-TR-301, 1984): `(Σx)² / (n Σx²)`. It is 1 when all `x` are the same,
//! and `k/n` when `k` of `n` get everything and the others nothing.
//!
//! What `x` has to be, where tenants ask for different amounts, is their allocation in relation to what they asked for. Here
//! this is **promptness**: the part of a request's time in which it was worked on, `served / (wait + served)`, on average over
//! the tenant's requests. It is the inverse of what queueing theory calls the slowdown, so a tenant with long requests may wait
//! longer than one with short ones and is treated as well; and unlike the slowdown it is between 0 and 1, so the index falls when
//! one tenant is served at once and all others starve, and not only the other way round.
//!
//! * Work that took less than a second counts as one second, as in the bounded slowdown of D. Feitelson ("Metrics for Parallel
//!   Job Scheduling and Their Convergence", 2001): a wait that nobody notices is no injustice.
//! * A request that went wrong, or whose client left, has promptness 0.
//! * A request that a policy refused does not count: a quota that refuses the greedy is what makes it fair for the others.
//! * A tenant who asks for more than its part waits for itself. This lowers the index though nobody is wronged; so compare
//!   variants under the same traffic, rather than one number with 1.

use std::time::Duration;

use crate::observe::{FinishedRequest, RequestResult};

/// Shorter work counts as this.
const NOTICED: Duration = Duration::from_secs(1);

/// Mean promptness of the requests of one tenant.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Promptness {
    sum: f64,
    count: u64,
}

impl Promptness {
    pub(super) fn add(&mut self, ended: &FinishedRequest<'_>) {
        if ended.result == RequestResult::Rejected {
            return;
        }
        self.count += 1;
        if ended.result.is_success() {
            let served =
                ended.at.saturating_sub(ended.request.at).saturating_sub(ended.wait).max(NOTICED);
            self.sum += served.as_secs_f64() / (served + ended.wait).as_secs_f64();
        }
    }

    /// `None` if it has no requests that count.
    pub(super) fn mean(self) -> Option<f64> {
        (self.count > 0).then(|| self.sum / self.count as f64)
    }
}

/// Jain's index. All treated equally badly are treated equally. `None` for nobody.
pub fn jain(shares: &[f64]) -> Option<f64> {
    let sum: f64 = shares.iter().sum();
    let squares: f64 = shares.iter().map(|share| share * share).sum();
    match shares.len() {
        0 => None,
        _ if squares <= 0.0 => Some(1.0),
        len => Some((sum * sum / (len as f64 * squares)).min(1.0)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_index_is_that_of_the_paper() {
        for (shares, index) in [
            (&[][..], None),
            (&[0.3], Some(1.0)),
            (&[0.0, 0.0], Some(1.0)),
            (&[0.7, 0.7, 0.7, 0.7], Some(1.0)),
            (&[1.0, 0.0, 0.0, 0.0], Some(0.25)),
            (&[1.0, 1.0, 1.0, 0.0], Some(0.75)),
            (&[1.0, 0.5], Some(0.9)),
        ] {
            let got = jain(shares);
            let close = got.zip(index).map_or(got == index, |(a, b)| (a - b).abs() < 1e-12);
            assert!(close, "{shares:?}: {got:?}");
        }
    }
}
