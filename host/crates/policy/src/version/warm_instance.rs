//! An instance with its store.

use wasmtime::Store;

use crate::contract::guest::Instance;
use crate::contract::host_state::HostState;
use crate::version::call::Guest;

/// An instance with its store, which can be called again.
pub(crate) struct WarmInstance {
    pub(crate) store: Store<HostState>,
    pub(crate) instance: Instance,
    /// How often it was put into the pool.
    pub(crate) calls: u32,
}

impl Guest for WarmInstance {
    fn store(&mut self) -> &mut Store<HostState> {
        &mut self.store
    }
}
