//! A sequential test of whether an outcome is more frequent with a new version than with the
//! version before.
//!
//! The host assigns each request to one of the two versions at random, with a known probability. If
//! the versions do not differ, the version of a request is independent of its outcome, however the
//! outcomes change over time and depend on each other. The test bets on the version of each request
//! after it has seen the outcome. A bet is fair if the versions do not differ, and loses if the new
//! one is better, so its wealth exceeds a threshold `t` with a probability of at most `1/t`, at any
//! time (Ville's inequality). Its logarithm grows linearly if the new version is worse by about the
//! two rates of the bet.
//!
//! The wealth is divided among bets with different rates, and among starts at different times,
//! because a difference may begin long after the rollout.

use super::Arm;

/// Rates of the outcome with the two versions, between which bets are placed.
const RATES: [f64; 7] = [0.001, 0.02, 0.1, 0.3, 0.6, 0.9, 0.999];
/// Pairs of rates in which that of the new version is higher.
const BETS: usize = RATES.len() * (RATES.len() - 1) / 2;
/// Requests between two starts.
const BLOCK: u64 = 16;
/// Upper bound of the wealth of a bet, so that it stays finite.
const MAX_WEALTH: f64 = 1e12;

/// A bet that the outcome has one rate with the version before, and a higher one with the new one.
#[derive(Debug, Clone, Copy)]
struct Bet {
    /// By which the wealth changes, by whether the outcome occurred and by the version.
    factors: [[f64; 2]; 2],
    wealth: f64,
}

impl Bet {
    /// `share` is the probability of the new version.
    fn new(share: f64, before: f64, new: f64) -> Self {
        // The probability of a version by this bet, given the outcome, divided by the one that the
        // host assigns it with.
        let factors = |before: f64, new: f64| {
            let both = share * new + (1.0 - share) * before;
            [before / both, new / both]
        };
        Self { factors: [factors(1.0 - before, 1.0 - new), factors(before, new)], wealth: 0.0 }
    }
}

/// The test of one outcome. Its size is constant.
#[derive(Debug, Clone)]
pub(crate) struct RateTest {
    bets: [Bet; BETS],
    seen: u64,
}

impl RateTest {
    /// Creates a test. `share` is the probability with which a request gets the new version.
    pub(crate) fn new(share: f64) -> Self {
        let higher = |before: usize| (before + 1..RATES.len()).map(move |new| (before, new));
        let mut pairs = (0..RATES.len()).flat_map(higher);
        let mut bet = || {
            let (before, new) = pairs.next().unwrap_or((0, 1));
            Bet::new(share, RATES[before], RATES[new])
        };
        Self { bets: std::array::from_fn(|_| bet()), seen: 0 }
    }

    /// Adds a request, and whether it had the outcome.
    pub(crate) fn observe(&mut self, arm: Arm, occurred: bool) {
        // The stakes of all blocks add up to one.
        let stake = match self.seen % BLOCK {
            0 => 1.0 / (self.blocks() + 1.0) - 1.0 / (self.blocks() + 2.0),
            _ => 0.0,
        };
        self.seen += 1;
        for bet in &mut self.bets {
            let factor = bet.factors[usize::from(occurred)][arm as usize];
            bet.wealth = ((bet.wealth + stake) * factor).min(MAX_WEALTH);
        }
    }

    /// Returns the evidence that the outcome is more frequent with the new version. If it is not,
    /// the evidence ever exceeds `t` with a probability of at most `1/t`.
    pub(crate) fn evidence(&self) -> f64 {
        let wealth: f64 = self.bets.iter().map(|bet| bet.wealth).sum();
        #[expect(clippy::cast_precision_loss, reason = "a small constant")]
        let mean = wealth / BETS as f64;
        // What has not been staked yet is kept.
        mean + 1.0 / (self.blocks() + 1.0)
    }

    /// Returns the number of blocks that have begun.
    fn blocks(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "exact for 2^53 requests")]
        let blocks = self.seen.div_ceil(BLOCK) as f64;
        blocks
    }
}
