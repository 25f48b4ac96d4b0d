//! The allocator of the host.
//!
//! One thread allocates what another one frees: requests move between the workers of the runtime.
//! The allocator of the C library does that under locks, and with jemalloc a host serves about a
//! quarter more requests with the same CPU time; `host/docs/performance.md` compares them.

use tikv_jemallocator::Jemalloc;

#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

/// The options of jemalloc, which it reads before `main`. A thread of its own returns memory to the
/// system that has not been used for a second, after a burst of large bodies for example, so that
/// no request has to. Few arenas, because each keeps memory of its own.
#[expect(unsafe_code, reason = "jemalloc finds its options by the name of a symbol")]
// SAFETY: no other crate defines this symbol, and its type is what jemalloc declares: a pointer to
// a text that ends with NUL.
#[unsafe(export_name = "_rjem_malloc_conf")]
pub(crate) static OPTIONS: &[u8; 78] =
    b"background_thread:true,max_background_threads:1,narenas:4,dirty_decay_ms:1000\0";
