//! The embedded store for what outlives a restart.
