//! Everything about WebAssembly that does not depend on policies: the engine, and the way from the
//! bytes of a component to compiled code.

pub(crate) mod cache;
pub(crate) mod caching_compiler;
pub(crate) mod compile;
pub(crate) mod deadline;
pub(crate) mod engine;
pub(crate) mod epoch_clock;
pub(crate) mod error;
pub(crate) mod features;
pub(crate) mod import_rules;
pub(crate) mod memory_limit;
pub(crate) mod metering;
pub(crate) mod parts;
pub(crate) mod scan;
pub(crate) mod validate;
