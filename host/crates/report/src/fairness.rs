//! Fairness between tenants, as one number.
//!
//! The number is the index of R. Jain, D. Chiu and W. Hawe, "A Quantitative Measure of Fairness and
//! Discrimination for Resource Allocation in Shared Computer Systems" (DEC-TR-301, 1984):
//! `(Σx)² / (n Σx²)`. It is 1 if all `x` are equal, and `k/n` if `k` of `n` tenants share
//! everything equally and the others get nothing.
//!
//! Where tenants demand different amounts, `x` has to be their allocation relative to their demand.
//! Here it is the **promptness**: the share of a request's time in which the request was being
//! served, `service / (wait + service)`, averaged over the tenant's requests. Promptness is the
//! inverse of the slowdown of queueing theory, so a tenant with long requests may wait longer than
//! one with short requests and still be treated equally. Unlike the slowdown it lies between 0 and
//! 1, so the index falls not only when one tenant starves, but also when one tenant is served
//! immediately and all others starve.
//!
//! * A service time below one second counts as one second, as in the bounded slowdown of D.
//!   Feitelson ("Metrics for Parallel Job Scheduling and Their Convergence", 2001): a wait too
//!   short to be noticed is not unfair.
//! * A request that failed, or whose client disconnected, has promptness 0.
//! * A request that a policy rejected does not count: rejecting the requests of a greedy tenant is
//!   how a quota protects the others.
//! * A tenant that demands more than its share waits for itself. This lowers the index although no
//!   tenant is treated unfairly; so compare variants under the same traffic rather than one index
//!   with 1.

use std::time::Duration;

use pointsman_domain::RequestResult;

use crate::events::EndedRequest;

/// Shorter service times count as this long.
const MIN_SERVICE_TIME: Duration = Duration::from_secs(1);

/// The mean promptness of one tenant's requests.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Promptness {
    sum: f64,
    count: u64,
}

impl Promptness {
    pub(crate) fn add(&mut self, ended: &EndedRequest<'_>) {
        if ended.result == RequestResult::Rejected {
            return;
        }
        self.count += 1;
        if ended.result.is_success() {
            let served = ended
                .at
                .saturating_sub(ended.arrived_at)
                .saturating_sub(ended.wait)
                .max(MIN_SERVICE_TIME);
            self.sum += served.as_secs_f64() / (served + ended.wait).as_secs_f64();
        }
    }

    /// Returns the mean; `None` if no request counts.
    pub(crate) fn mean(self) -> Option<f64> {
        (self.count > 0).then(|| self.sum / self.count as f64)
    }
}

/// Returns Jain's fairness index; `None` if `shares` is empty. It is 1 if all shares are zero,
/// because all tenants are then treated equally.
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
    fn jain_index_matches_the_paper() {
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
