//! State and counters that hosts share in Redis.
