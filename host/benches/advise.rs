//! The cost of a policy: one warm call of the cortex policy, from facts to merged advice.
#![allow(missing_docs, reason = "criterion's macros generate public functions")]

mod shared;

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use pointsman_domain::Trace;
use pointsman_policy::{PolicySpec, RuntimeSettings};

use self::shared::{facts, fleet, load, policies, policy_dir};

fn advise(criterion: &mut Criterion) {
    let policies = policies(RuntimeSettings { warm_instances: 1, ..RuntimeSettings::default() });
    load(&policies, vec![PolicySpec::new("cortex", policy_dir("cortex"))]);
    let chain = policies.slot().load_full();
    for (name, model, lanes) in [
        ("advise, lane named by the model, 8 lanes", "coder", 8),
        ("advise, 2 KB prompt searched, 1 lane", "auto", 1),
        ("advise, 2 KB prompt searched, 8 lanes", "auto", 8),
        ("advise, 2 KB prompt searched, 64 lanes", "auto", 64),
    ] {
        let (facts, fleet) = (facts(model, 2070), fleet(lanes));
        // A call without advice would be faster than the one to measure.
        assert_eq!(chain.advise(&facts, &fleet, &mut Trace::off()).merged.by.len(), 1);
        criterion.bench_function(name, |bencher| {
            bencher.iter(|| chain.advise(black_box(&facts), &fleet, &mut Trace::off()))
        });
    }
    let (facts, fleet) = (facts("auto", 2070), fleet(8));
    criterion.bench_function("advise, 2 KB prompt searched, 8 lanes, recorded", |bencher| {
        bencher.iter(|| {
            let mut trace = Trace::on();
            let merged = chain.advise(black_box(&facts), &fleet, &mut trace);
            // The trace is part of the measured work, so it must not be optimized away.
            (merged, trace.into_calls())
        });
    });
}

criterion_group!(benches, advise);
criterion_main!(benches);
