//! One start of an engine: which conversations its slots have.

use std::collections::HashSet;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::engine::{self, EngineCalls, SlotError, fingerprint};
use super::files::Folder;
use super::index::Record;
use super::plan::{ConversationPrompt, FileId, Held, Owner, SlotTable, Stored};
use super::{Conversations, new_id, now};

/// Maximum time for a restore, for which a request waits. Reading a file takes as long as the disk
/// needs for it.
const RESTORE_TIMEOUT: Duration = Duration::from_secs(30);
/// Maximum time to save what a restore overwrites, for which a request waits.
const OVERWRITE_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes that remain free on the disk.
const RESERVE: u64 = 1 << 30;

/// The conversations of one start of an engine.
#[derive(Debug)]
pub(crate) struct Session {
    store: Conversations,
    lane: String,
    slots: u32,
    /// Set when the engine is ready.
    ready: OnceLock<Ready>,
}

#[derive(Debug)]
struct Ready {
    fingerprint: u64,
    /// The adapters of the engine, if it has any: clients with the right to can change them.
    adapters: Option<String>,
    table: Mutex<SlotTable>,
    /// Files that were restored: what the engine has of them since is newer.
    restored: Mutex<HashSet<FileId>>,
}

impl Session {
    pub(super) fn new(store: Conversations, lane: &str, slots: u32) -> Self {
        Self { store, lane: lane.to_owned(), slots, ready: OnceLock::new() }
    }

    /// Asks a ready engine what it is. Until then, and if it does not say so, requests are not
    /// placed.
    pub(crate) async fn begin(&self, engine: &impl EngineCalls, launch: &str) {
        let Some(facts) = engine::facts(engine).await else {
            self.store.0.metrics.failed(&self.lane, "unknown-engine");
            return;
        };
        let slots = facts.slots.filter(|slots| *slots > 0).unwrap_or(self.slots).min(self.slots);
        let share = self.store.0.settings.share_tenants;
        let ready = Ready {
            fingerprint: fingerprint(launch, &facts),
            adapters: facts.adapters,
            table: Mutex::new(SlotTable::new(slots, share)),
            restored: Mutex::default(),
        };
        // An engine becomes ready once.
        self.ready.set(ready).ok();
    }

    /// Assigns a slot to a request, and restores its conversation into it. Returns `None` if the
    /// engine chooses the slot.
    pub(crate) async fn place(
        self: &Arc<Self>,
        engine: &impl EngineCalls,
        prompt: ConversationPrompt,
    ) -> Option<Placed> {
        let ready = self.ready.get()?;
        let stored = self.store.is_on(&self.lane, ready.fingerprint);
        let stored = stored.then(|| self.store.best(&self.lane, ready.fingerprint, &prompt));
        let stored =
            stored.flatten().filter(|stored| !ready.restored.lock().contains(&stored.file));
        let placement = ready.table.lock().place(&prompt, stored)?;
        // From here on, the slot is freed when this is dropped.
        let mut placed = Placed {
            session: Arc::clone(self),
            slot: placement.slot,
            prompt,
            erasures: self.store.erasures(),
            expected: None,
            usage: None,
        };
        let Some(stored) = placement.restore else { return Some(placed) };
        if !ready.restored.lock().insert(stored.file) {
            return Some(placed);
        }
        if let Some(held) = placement.overwritten
            && held.tokens >= self.store.0.settings.min_tokens
        {
            // Its file is found by its prompt.
            self.save(ready, engine, placement.slot, &held, OVERWRITE_TIMEOUT).await;
        }
        placed.expected = self.restore(ready, engine, placement.slot, &stored).await;
        Some(placed)
    }

    /// Restores a file into a slot. Returns the number of tokens that the engine should find in its
    /// cache.
    async fn restore(
        &self,
        ready: &Ready,
        engine: &impl EngineCalls,
        slot: u32,
        stored: &Stored,
    ) -> Option<u32> {
        let begun = Instant::now();
        let (saved_tokens, expected) = {
            let mut index = self.store.0.index.lock();
            let record = index.touch(stored.file, now())?;
            (record.saved_tokens, record.expected_tokens(stored.common))
        };
        if ready.adapters.is_some() && engine::adapters(engine).await != ready.adapters {
            self.store.0.metrics.failed(&self.lane, "adapters-changed");
            return None;
        }
        let name = Folder::name(stored.file);
        let restored = engine::restore(engine, slot, &name, RESTORE_TIMEOUT).await;
        let took = begun.elapsed();
        let error = match restored {
            Ok(tokens) if tokens == saved_tokens => {
                self.store.0.metrics.restored(&self.lane, took);
                tracing::info!(
                    event = "conversation_restored",
                    lane = self.lane,
                    slot,
                    tokens,
                    took_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
                    "conversation restored"
                );
                return Some(expected);
            }
            Ok(_) => SlotError::Mismatch,
            Err(error) => error,
        };
        self.failed(ready, error, "failed to restore a conversation");
        // The engine does not accept it now, and would not the next time.
        if error != SlotError::Timeout {
            self.store.remove(stored.file);
        }
        None
    }

    /// Saves the conversations that no file has, those used last first, until the time is over.
    /// To be called when the engine has no requests.
    pub(crate) async fn save_all(&self, engine: &impl EngineCalls) {
        let Some(ready) = self.ready.get() else { return };
        if !self.store.is_on(&self.lane, ready.fingerprint) {
            return;
        }
        let settings = self.store.0.settings;
        let (end, erasures) = (Instant::now() + settings.save_timeout, self.store.erasures());
        // One after the other: the engine saves one at a time.
        let unsaved = ready.table.lock().take_unsaved(settings.min_tokens);
        if unsaved.is_empty() {
            return;
        }
        let has_changed =
            ready.adapters.is_some() && engine::adapters(engine).await != ready.adapters;
        for (slot, mut held) in unsaved {
            let rest = end.saturating_duration_since(Instant::now());
            if has_changed {
                self.store.0.metrics.failed(&self.lane, "adapters-changed");
            } else if rest.is_zero() {
                self.store.0.metrics.failed(&self.lane, "timeout");
            } else if self.store.is_on(&self.lane, ready.fingerprint) {
                held.file = self.save(ready, engine, slot, &held, rest).await;
            }
            let is_current = self.store.erasures() == erasures;
            ready.table.lock().release(slot, is_current.then_some(held));
        }
    }

    /// Saves a slot into a file. Returns its id, if it is kept.
    async fn save(
        &self,
        ready: &Ready,
        engine: &impl EngineCalls,
        slot: u32,
        held: &Held,
        timeout: Duration,
    ) -> Option<FileId> {
        let folder = self.store.0.folder.as_ref()?;
        let bytes_per_token =
            self.store.0.lanes.lock().get(&self.lane).map_or(0, |lane| lane.bytes_per_token);
        let estimate = u64::from(held.tokens).saturating_mul(bytes_per_token);
        let needed = estimate.saturating_add(RESERVE);
        let is_too_large = estimate > self.store.0.settings.max_bytes;
        if is_too_large || folder.free().is_none_or(|free| free < needed) {
            let reason = if is_too_large { "too-large" } else { "disk" };
            self.store.0.metrics.failed(&self.lane, reason);
            return None;
        }
        let (file, erasures) = (new_id(), self.store.erasures());
        let saved = match folder.reserve(&self.lane, file) {
            Ok(()) => self.written(folder, engine, (slot, file), held, timeout).await,
            Err(_) => Err(SlotError::Disk),
        };
        match saved {
            Ok((tokens, bytes)) if self.store.erasures() == erasures => {
                self.keep(ready.fingerprint, file, held, tokens, bytes).then_some(file)
            }
            Ok(_) => {
                folder.delete(&self.lane, file);
                None
            }
            Err(error) => {
                folder.delete(&self.lane, file);
                self.failed(ready, error, "failed to save a conversation");
                None
            }
        }
    }

    /// Lets the engine write a file, and checks that it has the conversation. Returns its tokens
    /// and its size.
    async fn written(
        &self,
        folder: &Folder,
        engine: &impl EngineCalls,
        (slot, file): (u32, FileId),
        held: &Held,
        timeout: Duration,
    ) -> Result<(u32, u64), SlotError> {
        let saved = engine::save(engine, slot, &Folder::name(file), timeout).await?;
        let size = folder.size(&self.lane, file).map_err(|_| SlotError::Disk)?;
        if size != saved.bytes {
            return Err(SlotError::Disk);
        }
        // Another slot than the one that was asked for, or what a request of the engine's own API
        // has left in it: that may be the conversation of another tenant.
        if !held.can_have(saved.tokens) {
            return Err(SlotError::Mismatch);
        }
        Ok((saved.tokens, saved.bytes))
    }

    /// Keeps a file. Returns false if it exceeds the budget.
    fn keep(
        &self,
        fingerprint: u64,
        file: FileId,
        held: &Held,
        saved_tokens: u32,
        bytes: u64,
    ) -> bool {
        let lane = self.lane.clone();
        let each = bytes / u64::from(saved_tokens.max(1));
        self.store.0.lanes.lock().entry(lane.clone()).or_default().bytes_per_token = each;
        let (prompt, prompt_tokens, used) = (held.prompt.clone(), held.prompt_tokens, now());
        let record = Record { lane, fingerprint, prompt, prompt_tokens, saved_tokens, bytes, used };
        if !self.store.insert(file, record.clone()) {
            self.store.0.metrics.failed(&self.lane, "too-large");
            return false;
        }
        self.store.0.metrics.saved(&self.lane, bytes);
        self.store.commit(file, record);
        tracing::info!(
            event = "conversation_saved",
            lane = self.lane,
            tokens = saved_tokens,
            bytes,
            "conversation saved"
        );
        true
    }

    fn failed(&self, ready: &Ready, error: SlotError, what: &str) {
        tracing::warn!(event = "conversation_failed", lane = self.lane, %error, "{what}");
        self.store.0.metrics.failed(&self.lane, error.reason());
        if error == SlotError::Unsupported {
            self.store.turn_off(&self.lane, ready.fingerprint, "unsupported");
        }
    }

    /// Forgets what slots have cached for some owners, so that it is not saved.
    pub(super) fn forget(&self, is_erased: impl Fn(&Owner) -> bool) {
        if let Some(ready) = self.ready.get() {
            ready.table.lock().forget(is_erased);
        }
    }
}

/// The slot of a request. It is freed on drop.
#[derive(Debug)]
pub(crate) struct Placed {
    session: Arc<Session>,
    slot: u32,
    prompt: ConversationPrompt,
    /// The number of erasures when it was placed.
    erasures: u64,
    /// Tokens that the engine should find in its cache after a restore.
    expected: Option<u32>,
    /// Tokens of the prompt and of the response.
    usage: Option<(u32, u32)>,
}

impl Placed {
    /// Returns the id of the slot.
    pub(crate) fn slot(&self) -> u32 {
        self.slot
    }

    /// Notes the tokens that the engine reported for a complete response. A restore is of use if
    /// the engine has found at least half of what was restored: templates may leave out parts of
    /// earlier turns.
    pub(crate) fn report_usage(&mut self, prompt: u32, cached: Option<u32>, completion: u32) {
        self.usage = Some((prompt, completion));
        let (Some(expected), Some(cached)) = (self.expected.take(), cached) else { return };
        let Session { store, lane, ready, .. } = &*self.session;
        let Some(ready) = ready.get() else { return };
        let was_useful = cached >= expected / 2;
        if was_useful {
            store.0.metrics.used(lane, cached);
        }
        store.note_restore(lane, ready.fingerprint, was_useful);
    }
}

impl Drop for Placed {
    fn drop(&mut self) {
        // Without a usage, the response was cut: the slot probably has the prompt all the same.
        let (prompt_tokens, completion) = self.usage.unwrap_or_default();
        let held = (self.session.store.erasures() == self.erasures).then(|| Held {
            prompt: std::mem::take(&mut self.prompt),
            prompt_tokens,
            tokens: prompt_tokens.saturating_add(completion),
            file: None,
        });
        if let Some(ready) = self.session.ready.get() {
            ready.table.lock().release(self.slot, held);
        }
    }
}

#[cfg(test)]
mod tests;
