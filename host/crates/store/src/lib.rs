//! The embedded store for what outlives a restart: one file in the state directory, or memory.
//!
//! ```text
//!   put, remove ──> index (memory: bounds, age) ──> queue (bounded) ──> writer ──> file
//!   get ──────────> index: unknown, expired? ──> queued value, or the file
//! ```
//!
//! A namespace is a table of the file with limits of its own: entries, bytes, bytes of one owner,
//! and age. The oldest entries are removed for new ones, and if the namespace is full, those of the
//! owner that has the most. Writes never block the caller: one thread commits what is queued, as
//! one transaction. What cannot be written, because the disk is full or fails, is lost, and
//! counted: requests are served without it.
//!
//! **Ordered tables** are for what is added up and read as a whole, such as usage: a
//! [`Transaction`] changes several of them and waits for the disk; [`Store::scan`] reads rows in
//! their order. If a transaction fails, the caller still has what it wanted to write, and tries
//! again.
//!
//! **Crashes:** a transaction is in the file with all of its writes or with none of them, whenever
//! the process is killed. **Two hosts:** the file is locked; the second host gets an error.
//! **Versions:** the file has a format version; a host refuses a file of a later one.

mod disk;
mod error;
mod foreign;
mod handover;
mod index;
mod namespace;
mod ordered;
mod shared;
mod store;
mod table;
mod writer;

pub use self::error::{OpenError, StoreError};
pub use self::foreign::{ForeignChange, StoreSuccessor};
pub use self::namespace::{Loss, Namespace, Options};
pub use self::ordered::{OrderedTable, Row, Transaction};
pub use self::store::Store;
pub use self::table::Table;
