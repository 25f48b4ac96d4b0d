//! The cost of keys: loading a file of 10,000, and identifying a request among few and many.

#![expect(clippy::unwrap_used, reason = "a benchmark")]

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use http::HeaderMap;
use http::header::AUTHORIZATION;
use pointsman_access::{Definitions, KeySet, Keys, SecretHash};

fn file(keys: usize) -> String {
    let group =
        "[[groups]]\nname = \"g\"\nmodels = [\"a\", \"b_*\"]\nlimits = { concurrent = 4 }\n";
    let key = |number: usize| {
        let hash = SecretHash::of_secret(&number.to_string());
        format!("[[keys]]\nid = \"k{number}\"\nhash = \"{hash}\"\ntenant = \"t\"\ngroup = \"g\"\n")
    };
    std::iter::once(group.to_owned()).chain((0..keys).map(key)).collect()
}

fn set(text: &str) -> KeySet {
    KeySet::from_definitions(&Definitions::parse(text).unwrap())
}

fn keys(criterion: &mut Criterion) {
    let many = file(10_000);
    criterion.bench_function("load 10000 keys", |bench| bench.iter(|| set(black_box(&many))));
    let headers = HeaderMap::from_iter([(AUTHORIZATION, "Bearer 7".parse().unwrap())]);
    for count in [10, 10_000] {
        let keys = Keys::from_set(set(&file(count)));
        criterion.bench_function(&format!("identify one of {count} keys"), |bench| {
            bench.iter(|| keys.identity(black_box(&headers)).unwrap());
        });
    }
}

criterion_group!(benches, keys);
criterion_main!(benches);
