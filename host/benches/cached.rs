//! What the weight `cached-tokens` is worth: multi-turn conversations on two lanes of one model,
//! routed by the shortest wait alone and by a blend with the cached tokens.
//!
//! - Simulated: the numbers are the same on every machine.
//! - Real: two servers of llama.cpp with a small model behind this host's gateway. Needs the Python
//!   environment that `cargo xtask demo` installs, in `POINTSMAN_VENV`; skipped without it.

#![expect(clippy::unwrap_used, reason = "a failed setup has to end the benchmark")]

#[path = "shared/gateway.rs"]
mod gateway;
#[path = "cached/real.rs"]
mod real;
#[path = "cached/simulated.rs"]
mod simulated;

use std::sync::Arc;
use std::time::Duration;

use pointsman_domain::{
    Advice, Advised, Advisor, Facts, FleetView, LaneAdvice, Merge, Metric, MetricWeight,
    OnConflict, PolicyRef, Trace,
};

/// The name of both lanes' model.
const MODEL: &str = "m";
/// Rows of the tables.
const WEIGHTS: [&[(Metric, i32)]; 2] =
    [&[(Metric::EstWait, 1000)], &[(Metric::EstWait, 700), (Metric::CachedTokens, 300)]];

/// Returns the same advice for all requests: like `blend({…})` of a policy.
#[derive(Debug)]
struct Blend(Vec<MetricWeight>);

impl Blend {
    fn new(weights: &[(Metric, i32)]) -> Self {
        let weight =
            |(metric, weight): &(Metric, i32)| MetricWeight { metric: *metric, weight: *weight };
        Self(weights.iter().map(weight).collect())
    }
}

impl Advisor for Blend {
    fn advise(&self, facts: &Facts, fleet: &Arc<FleetView>, _: &mut Trace) -> Advised {
        let endpoint = facts.request.info().endpoint;
        let mut merge = Merge::new(fleet, facts.request.model(), endpoint);
        let lanes = LaneAdvice::Blend(self.0.clone());
        let advice = Advice { lanes, ..Advice::default() };
        merge.add(&PolicyRef::new("blend", "1"), 1000, advice);
        merge.finish(OnConflict::Refuse).into()
    }
}

/// One response.
#[derive(Debug, Clone, Copy)]
struct Turn {
    first: bool,
    prompt: u32,
    cached: u32,
    first_token: Duration,
}

fn print(name: &str, turns: &[Turn]) {
    let sum =
        |field: fn(&Turn) -> u32| turns.iter().map(|turn| u64::from(field(turn))).sum::<u64>();
    let cached = 100.0 * sum(|turn| turn.cached) as f64 / sum(|turn| turn.prompt).max(1) as f64;
    let mut times: Vec<f64> = turns.iter().map(|turn| turn.first_token.as_secs_f64()).collect();
    times.sort_by(f64::total_cmp);
    let at = |part: usize| times.get(times.len().saturating_sub(1) * part / 100).unwrap_or(&0.0);
    let later: Vec<f64> = turns
        .iter()
        .filter(|turn| !turn.first)
        .map(|turn| turn.first_token.as_secs_f64())
        .collect();
    let later = later.iter().sum::<f64>() / later.len().max(1) as f64;
    println!(
        "| {name} | {} | {cached:.0} % | {:.2} | {:.2} | {later:.2} |",
        turns.len(),
        at(50),
        at(95)
    );
}

fn table(title: &str, mut run: impl FnMut(Blend) -> Vec<Turn>) {
    println!("\n{title}\n");
    println!("| weights | requests | cached | first token p50 | p95 | mean of later turns |");
    println!("|---|---|---|---|---|---|");
    for weights in WEIGHTS {
        let names: Vec<String> = weights.iter().map(|(m, w)| format!("{m:?} {w}")).collect();
        print(&names.join(", "), &run(Blend::new(weights)));
    }
}

fn main() {
    for clients in [8, 16, 24] {
        let title = format!("Simulated: two lanes of 8 slots, {clients} clients");
        table(&title, |blend| simulated::run(blend, clients));
    }
    match real::Python::find() {
        Some(python) => {
            table("Real: two llama.cpp servers of 2 slots, 3 clients", |blend| python.run(blend));
        }
        None => println!("\nReal: skipped, because POINTSMAN_VENV is not set or has no python3"),
    }
}
