//! The host functions of track 0.1: conversion between its types and those of
//! [`HostApi`](crate::contract::host_api::HostApi).

use pointsman_domain as domain;

use crate::contract::guarded_api::GuardedApi;
use crate::contract::state::entry::StateError;
use crate::contract::v0_1::bindings::pointsman::policy::{
    fleet, log, metrics, request, state, types,
};
use crate::contract::v0_1::convert::{allowance, lane_info, lane_stat, level, text_match};
use crate::limits::{MAX_NEEDLE_BYTES, MAX_PATTERN_BYTES, MAX_PATTERNS};

impl types::Host for GuardedApi<'_> {}

impl request::Host for GuardedApi<'_> {
    fn id(&mut self) -> wasmtime::Result<String> {
        self.call(|api| api.id())
    }

    fn model(&mut self) -> wasmtime::Result<String> {
        self.call(|api| api.model())
    }

    fn tenant(&mut self) -> wasmtime::Result<Option<String>> {
        self.call(|api| api.tenant())
    }

    fn header(&mut self, name: String) -> wasmtime::Result<Option<String>> {
        self.call(|api| api.header(&name))
    }

    fn field(&mut self, pointer: String, max_bytes: u32) -> wasmtime::Result<types::FieldValue> {
        Ok(match self.call(|api| api.field(&pointer, max_bytes))? {
            domain::FieldValue::Absent => types::FieldValue::Absent,
            domain::FieldValue::Json(json) => types::FieldValue::Json(json),
            domain::FieldValue::TooLarge(size) => types::FieldValue::TooLarge(size),
        })
    }

    fn messages(&mut self) -> wasmtime::Result<Vec<types::MessageInfo>> {
        let info = |info: domain::MessageInfo| types::MessageInfo {
            role: match info.role {
                domain::Role::System => types::Role::System,
                domain::Role::User => types::Role::User,
                domain::Role::Assistant => types::Role::Assistant,
                domain::Role::Tool => types::Role::Tool,
                domain::Role::Other => types::Role::Other,
            },
            text_bytes: info.text_bytes,
            parts: info.parts,
            media_parts: info.media_parts,
        };
        Ok(self.call(|api| api.messages())?.into_iter().map(info).collect())
    }

    fn text(&mut self, index: u32, offset: u64, max_bytes: u32) -> wasmtime::Result<String> {
        self.call(|api| api.text(index, offset, max_bytes))
    }

    fn body(&mut self, offset: u64, max_bytes: u32) -> wasmtime::Result<Vec<u8>> {
        self.call(|api| api.body(offset, max_bytes))
    }

    fn contains(&mut self, needle: String, ignore_case: bool) -> wasmtime::Result<bool> {
        wasmtime::ensure!(
            needle.len() <= MAX_NEEDLE_BYTES,
            "search for {} bytes (maximum: {MAX_NEEDLE_BYTES})",
            needle.len()
        );
        self.call(|api| api.contains(&needle, ignore_case))
    }

    fn prefix_hashes(&mut self, block_bytes: u32, max_blocks: u32) -> wasmtime::Result<Vec<u64>> {
        self.call(|api| api.prefix_hashes(block_bytes, max_blocks))
    }

    fn deadline_ms(&mut self) -> wasmtime::Result<Option<u32>> {
        self.call(|api| api.deadline_ms())
    }

    fn find_any(
        &mut self,
        patterns: Vec<String>,
        ignore_case: bool,
    ) -> wasmtime::Result<Vec<types::TextMatch>> {
        let bytes: usize = patterns.iter().map(String::len).sum();
        wasmtime::ensure!(
            patterns.len() <= MAX_PATTERNS && bytes <= MAX_PATTERN_BYTES,
            "search for {} patterns with {bytes} bytes (maximum: {MAX_PATTERNS} with \
             {MAX_PATTERN_BYTES})",
            patterns.len()
        );
        let found = self.call(|api| api.find_any(&patterns, ignore_case))?;
        Ok(found.into_iter().map(text_match).collect())
    }

    fn endpoint_kind(&mut self) -> wasmtime::Result<String> {
        self.call(|api| api.endpoint_kind())
    }

    fn key_group(&mut self) -> wasmtime::Result<Option<String>> {
        self.call(|api| api.key_group())
    }

    fn key_name(&mut self) -> wasmtime::Result<Option<String>> {
        self.call(|api| api.key_name())
    }

    fn allowance(&mut self) -> wasmtime::Result<types::Allowance> {
        self.call(|api| allowance(api.allowance()))
    }
}

impl fleet::Host for GuardedApi<'_> {
    fn stats(&mut self) -> wasmtime::Result<Vec<types::LaneStat>> {
        Ok(self.call(|api| api.stats())?.into_iter().map(lane_stat).collect())
    }

    fn stat(&mut self, lane: u32) -> wasmtime::Result<Option<types::LaneStat>> {
        self.call(|api| api.stat(lane).map(lane_stat))
    }

    fn candidates(&mut self) -> wasmtime::Result<Vec<u32>> {
        self.call(|api| api.candidates())
    }

    fn info(&mut self, lane: u32) -> wasmtime::Result<Option<types::LaneInfo>> {
        self.call(|api| api.info(lane).map(lane_info))
    }

    fn find(&mut self, name: String) -> wasmtime::Result<Option<u32>> {
        self.call(|api| api.find(&name))
    }

    fn with_label(&mut self, key: String, value: String) -> wasmtime::Result<Vec<u32>> {
        self.call(|api| api.with_label(&key, &value))
    }

    fn lanes_left(&mut self) -> wasmtime::Result<Vec<u32>> {
        self.call(|api| api.lanes_left())
    }
}

impl log::Host for GuardedApi<'_> {
    fn write(&mut self, severity: types::Level, message: String) -> wasmtime::Result<()> {
        self.log(level(severity), &message)
    }

    fn enabled(&mut self, severity: types::Level) -> wasmtime::Result<bool> {
        self.call(|api| api.log_enabled(level(severity)))
    }
}

impl metrics::Host for GuardedApi<'_> {
    fn add(&mut self, name: String, value: u64) -> wasmtime::Result<()> {
        self.call(|api| api.add_metric(&name, value))
    }

    fn record_value(&mut self, name: String, value: u64) -> wasmtime::Result<()> {
        self.call(|api| api.record_metric(&name, value))
    }
}

impl state::Host for GuardedApi<'_> {
    fn get(&mut self, key: String) -> wasmtime::Result<Option<Vec<u8>>> {
        self.call(|api| api.get(&key))
    }

    fn put(
        &mut self,
        key: String,
        value: Vec<u8>,
        ttl_ms: u32,
    ) -> wasmtime::Result<Result<(), state::StateError>> {
        self.call(|api| api.put(key, &value, ttl_ms).map_err(state_error))
    }

    fn delete(&mut self, key: String) -> wasmtime::Result<()> {
        self.call(|api| api.delete(&key))
    }

    fn increment(
        &mut self,
        key: String,
        by: i64,
        ttl_ms: u32,
    ) -> wasmtime::Result<Result<i64, state::StateError>> {
        self.call(|api| api.increment(key, by, ttl_ms).map_err(state_error))
    }
}

fn state_error(error: StateError) -> state::StateError {
    match error {
        StateError::TooLong => state::StateError::TooLong,
        StateError::NotACounter => state::StateError::NotACounter,
    }
}

#[cfg(test)]
mod tests;
