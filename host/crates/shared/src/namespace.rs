//! A namespace: keys that belong together, such as the state of a policy.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::batch::{Batch, BatchReply, Kind, Op};
use crate::bucket::Bucket;
use crate::entry::Entry;
use crate::replica::Replica;

/// Number of slots of a cluster to which the keys of a namespace are distributed. Hosts that share
/// must agree on it.
const BUCKETS: usize = 8;
/// Maximum number of entries in a batch: a script of the store holds up all others meanwhile.
const MAX_BATCH: usize = 200;

/// The counters and values of one purpose. Clones are the same namespace.
///
/// Keys are of the host's own making, or their length and number are limited by the caller. No
/// function waits for the store.
#[derive(Debug, Clone)]
pub struct Namespace(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    bases: Vec<Arc<str>>,
    buckets: Vec<Mutex<Bucket>>,
    replica: Arc<Replica>,
    is_loaded: Mutex<bool>,
    loaded: Condvar,
}

impl Namespace {
    pub(crate) fn new(
        replica: Arc<Replica>,
        prefix: &str,
        name: &str,
        max_bytes: usize,
        max_keys: usize,
    ) -> Self {
        // Braces: keys with the same text in them are in the same slot of a cluster.
        let base = |number| Arc::from(format!("{{{prefix}:{name}:{number}}}"));
        let bucket = |_| Mutex::new(Bucket::new(max_bytes / BUCKETS, max_keys.div_ceil(BUCKETS)));
        Self(Arc::new(Inner {
            bases: (0..BUCKETS).map(base).collect(),
            buckets: (0..BUCKETS).map(bucket).collect(),
            replica,
            is_loaded: Mutex::new(false),
            loaded: Condvar::new(),
        }))
    }

    /// Adds to a counter, and returns its total as far as this host knows it. `ttl` is the time to
    /// live of a counter that begins with this; `None` for one that does not expire.
    ///
    /// A replica contributes at most 2⁵³ to a counter, and at least −2⁵³.
    pub fn add(&self, key: &str, delta: i64, ttl: Option<Duration>) -> i64 {
        let field = || self.0.replica.unique_name();
        self.bucket(key).lock().add(key, (delta, millis(ttl)), field, self.0.replica.now())
    }

    /// Returns the total of a counter as far as this host knows it; 0 if there is none.
    pub fn total(&self, key: &str) -> i64 {
        let field = || self.0.replica.unique_name();
        self.bucket(key).lock().total(key, field, self.0.replica.now())
    }

    /// Removes a counter for all replicas.
    pub fn reset(&self, key: &str) {
        let replica = &self.0.replica;
        let now = replica.now();
        let stamp = replica.stamps.next(now.wall);
        self.bucket(key).lock().reset(key, stamp, || replica.unique_name(), now);
    }

    /// Writes a value. `ttl` is its time to live; `None` if it does not expire.
    pub fn put(&self, key: &str, value: &[u8], ttl: Option<Duration>) {
        self.write(key, Some(value.into()), millis(ttl));
    }

    /// Returns a value as far as this host knows it.
    pub fn get(&self, key: &str) -> Option<Arc<[u8]>> {
        self.bucket(key).lock().get(key, self.0.replica.now())
    }

    /// Removes a value for all replicas.
    pub fn remove(&self, key: &str) {
        self.write(key, None, 0);
    }

    /// Returns true if this host knows a counter of that key that is not 0. Does not ask the store.
    pub fn is_counter(&self, key: &str) -> bool {
        self.bucket(key).lock().has(Kind::Counter, key, self.0.replica.now())
    }

    /// Returns true if this host knows a value of that key. Does not ask the store.
    pub fn is_value(&self, key: &str) -> bool {
        self.bucket(key).lock().has(Kind::Value, key, self.0.replica.now())
    }

    /// Returns all entries that this host knows, in no particular order.
    pub fn entries(&self) -> Vec<Entry> {
        let now = self.0.replica.now();
        self.0.buckets.iter().flat_map(|bucket| bucket.lock().entries(now)).collect()
    }

    /// Waits until what the store had of this namespace is known, and returns true if it is. Blocks
    /// for at most `limit`; without the store, everything works without what it has.
    pub fn wait_loaded(&self, limit: Duration) -> bool {
        let end = Instant::now() + limit;
        let mut is_loaded = self.0.is_loaded.lock();
        while !*is_loaded {
            if self.0.loaded.wait_until(&mut is_loaded, end).timed_out() {
                break;
            }
        }
        *is_loaded
    }

    fn write(&self, key: &str, value: Option<Arc<[u8]>>, ttl: u64) {
        let now = self.0.replica.now();
        let mut bucket = self.bucket(key).lock();
        // In the lock, so that of two writes the later one has the later stamp.
        let stamp = self.0.replica.stamps.next(now.wall);
        bucket.write(key, stamp, (value, ttl), now);
    }

    fn bucket(&self, key: &str) -> &Mutex<Bucket> {
        // Cast: the remainder is below 8.
        &self.0.buckets[(fnv1a(key.as_bytes()) % BUCKETS as u64) as usize]
    }
}

/// What the thread does.
impl Namespace {
    /// Returns what is to be sent, at most `max` items, with the numbers of the buckets.
    pub(crate) fn collect(&self, max: usize) -> Vec<(usize, Batch)> {
        let (mut batches, mut left) = (Vec::new(), max);
        for (number, bucket) in self.0.buckets.iter().enumerate() {
            let mut items = bucket.lock().collect(left, self.0.replica.now());
            left = left.saturating_sub(items.len());
            while !items.is_empty() {
                let rest = items.split_off(items.len().min(MAX_BATCH));
                let is_change = |op: &Op| match op {
                    Op::Count(count) => count.delta != 0 || count.is_reset,
                    Op::Write(_) => true,
                    Op::Read(_) => false,
                };
                let has_changes = items.iter().any(|item| is_change(&item.op));
                let base = Arc::clone(&self.0.bases[number]);
                batches.push((number, Batch { base, items, has_changes }));
                items = rest;
            }
        }
        batches
    }

    /// Takes up a reply.
    pub(crate) fn apply(&self, number: usize, batch: &Batch, reply: &BatchReply) {
        let replica = &self.0.replica;
        let mut bucket = self.0.buckets[number].lock();
        bucket.apply(&batch.items, reply, replica.now(), |stamp| replica.stamps.observe(stamp));
    }

    /// Returns the prefixes of the keys in the store, one for each bucket.
    pub(crate) fn bases(&self) -> &[Arc<str>] {
        &self.0.bases
    }

    /// Returns true once the entries of the store were read.
    pub(crate) fn is_loaded(&self) -> bool {
        *self.0.is_loaded.lock()
    }

    /// Asks for entries of the store, by members of an index.
    pub(crate) fn discover(&self, members: &[String]) {
        let now = self.0.replica.now();
        for (kind, key) in members.iter().filter_map(|member| Kind::parse(member)) {
            let field = || self.0.replica.unique_name();
            self.bucket(key).lock().discover(kind, key, field, now);
        }
    }

    /// Notes that the entries of the store were read.
    pub(crate) fn set_loaded(&self) {
        *self.0.is_loaded.lock() = true;
        self.0.loaded.notify_all();
    }

    /// Returns the number of entries with changes that are not confirmed, and of those given up.
    pub(crate) fn pending_and_dropped(&self) -> (usize, u64) {
        self.0.buckets.iter().fold((0, 0), |(pending, dropped), bucket| {
            let bucket = bucket.lock();
            (pending + bucket.pending(), dropped + bucket.dropped())
        })
    }
}

fn millis(ttl: Option<Duration>) -> u64 {
    // A time to live of less than a millisecond is not the same as none.
    ttl.map_or(0, |ttl| u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX).clamp(1, 1 << 50))
}

/// Returns a hash that is the same in all hosts and versions.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
