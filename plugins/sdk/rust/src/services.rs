//! What a policy can do besides answering: remember, count, and write log lines.

use crate::{Level, StateError};

/// The host's side of it.
pub(crate) trait Services {
    fn get(&self, key: &str) -> Option<Vec<u8>>;
    fn put(&self, key: &str, value: &[u8], ttl_ms: u32) -> Result<(), StateError>;
    fn delete(&self, key: &str);
    fn increment(&self, key: &str, by: i64, ttl_ms: u32) -> Result<i64, StateError>;
    fn add(&self, name: &str, value: u64);
    fn record(&self, name: &str, value: u64);
    fn write(&self, level: Level, message: &str);
    fn enabled(&self, level: Level) -> bool;
}

/// Where the services are had. Natively a test brings them along. In a component there is but one host, known when it
/// is compiled, so a policy imports those functions that it uses, and no others.
#[cfg(not(target_arch = "wasm32"))]
pub(crate) type Source<'a> = &'a dyn Services;
#[cfg(target_arch = "wasm32")]
pub(crate) use self::only::Source;

#[cfg(target_arch = "wasm32")]
mod only {
    use std::marker::PhantomData;
    use std::ops::Deref;

    use crate::guest::Host;

    #[derive(Clone, Copy)]
    pub(crate) struct Source<'a>(PhantomData<&'a Host>);

    impl Source<'_> {
        pub(crate) const HOST: Self = Self(PhantomData);
    }

    impl Deref for Source<'_> {
        type Target = Host;

        fn deref(&self) -> &Host {
            &Host
        }
    }
}

/// The policy's small shared state: seen by all its instances and kept over a reload, limited in entries and bytes.
/// The host may evict what is in it, so a policy has to do without at any time.
#[derive(Clone, Copy)]
pub struct State<'a>(pub(crate) Source<'a>);

impl State<'_> {
    /// The value of an entry that [`State::put`] wrote.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<Vec<u8>> {
        self.0.get(key)
    }

    /// Store a value for `ttl_ms`; 0 is for good.
    ///
    /// # Errors
    /// If there is no room, or the key or the value is too long.
    pub fn put(&self, key: &str, value: &[u8], ttl_ms: u32) -> Result<(), StateError> {
        self.0.put(key, value, ttl_ms)
    }

    /// Remove an entry.
    pub fn delete(&self, key: &str) {
        self.0.delete(key);
    }

    /// Add to a counter, which expires `ttl_ms` after its first use (0: never), and return its new value. Atomic over
    /// all instances.
    ///
    /// # Errors
    /// If there is no room, the key is too long, or [`State::put`] wrote the entry.
    pub fn increment(&self, key: &str, by: i64, ttl_ms: u32) -> Result<i64, StateError> {
        self.0.increment(key, by, ttl_ms)
    }
}

/// Numbers for the operator's dashboards. Only names that the manifest declares are kept.
#[derive(Clone, Copy)]
pub struct Metrics<'a>(pub(crate) Source<'a>);

impl Metrics<'_> {
    /// Add to a counter.
    pub fn add(&self, name: &str, value: u64) {
        self.0.add(name, value);
    }

    /// Put a value into a histogram.
    pub fn record(&self, name: &str, value: u64) {
        self.0.record(name, value);
    }
}

/// Lines for the host's log, limited in length and rate.
#[derive(Clone, Copy)]
pub struct Log<'a>(pub(crate) Source<'a>);

impl Log<'_> {
    /// Write a line.
    pub fn write(&self, level: Level, message: &str) {
        self.0.write(level, message);
    }

    /// Write a line that is costly to make, if lines of this level are kept at all.
    pub fn write_with(&self, level: Level, message: impl FnOnce() -> String) {
        if self.0.enabled(level) {
            self.0.write(level, &message());
        }
    }
}

macro_rules! opaque {
    ($($handle:ident),*) => {$(
        impl std::fmt::Debug for $handle<'_> {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.debug_struct(stringify!($handle)).finish_non_exhaustive()
            }
        }
    )*};
}

opaque!(State, Metrics, Log);
