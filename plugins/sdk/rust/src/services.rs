//! State, metrics and logging.

use crate::{Level, StateError};

/// The services of a host, implemented by the imports of a component and by the fake host.
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

/// The host, reached through the imports of the component.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Host;

/// A reference to the services. Natively it points to the fake host of a test. In a component the
/// host is known at compile time: static dispatch lets the linker drop the imports that a policy
/// does not use.
#[cfg(not(target_arch = "wasm32"))]
pub(crate) type Source<'a> = &'a dyn Services;
#[cfg(target_arch = "wasm32")]
pub(crate) use self::host_source::Source;

#[cfg(target_arch = "wasm32")]
mod host_source {
    use std::marker::PhantomData;
    use std::ops::Deref;

    use super::Host;

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

/// The small shared state of a policy: visible to all its instances and kept across reloads,
/// limited in entries and bytes. The host may evict entries, so a policy has to work without them.
#[derive(Clone, Copy)]
pub struct State<'a>(pub(crate) Source<'a>);

impl State<'_> {
    /// Returns the value of an entry that was written by [`State::put`].
    #[must_use]
    pub fn get(&self, key: &str) -> Option<Vec<u8>> {
        self.0.get(key)
    }

    /// Stores a value for `ttl_ms` milliseconds; with 0 it does not expire.
    ///
    /// # Errors
    /// Returns an error if the state is full, or the key or the value is too long.
    pub fn put(&self, key: &str, value: &[u8], ttl_ms: u32) -> Result<(), StateError> {
        self.0.put(key, value, ttl_ms)
    }

    /// Removes an entry.
    pub fn delete(&self, key: &str) {
        self.0.delete(key);
    }

    /// Adds to a counter and returns its new value. The counter expires `ttl_ms` after its first
    /// use (0: never). Atomic across all instances.
    ///
    /// # Errors
    /// Returns an error if the state is full, the key is too long, or the entry was written by
    /// [`State::put`].
    pub fn increment(&self, key: &str, by: i64, ttl_ms: u32) -> Result<i64, StateError> {
        self.0.increment(key, by, ttl_ms)
    }
}

/// The metrics of a policy. Names that the manifest does not declare are dropped and counted.
#[derive(Clone, Copy)]
pub struct Metrics<'a>(pub(crate) Source<'a>);

impl Metrics<'_> {
    /// Adds to a counter.
    pub fn add(&self, name: &str, value: u64) {
        self.0.add(name, value);
    }

    /// Records a value in a histogram.
    pub fn record(&self, name: &str, value: u64) {
        self.0.record(name, value);
    }
}

/// The host's log. Lines are limited in length and rate.
#[derive(Clone, Copy)]
pub struct Log<'a>(pub(crate) Source<'a>);

impl Log<'_> {
    /// Writes a line.
    pub fn write(&self, level: Level, message: &str) {
        self.0.write(level, message);
    }

    /// Writes a line if its level is enabled; `message` is called only then.
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
