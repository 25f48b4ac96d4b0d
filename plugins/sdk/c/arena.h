// The memory of an instance: an arena that is reset to its size after `configure` before each call.
#ifndef POINTSMAN_ARENA_H
#define POINTSMAN_ARENA_H

#include <stddef.h>

/// Starts a hook: releases the allocations of the previous call, unless they are released already.
void pm_arena_begin(void);
/// Ends a hook: later allocations belong to the next call.
void pm_arena_end(void);
/// Keeps all current allocations for the lifetime of the instance.
void pm_arena_keep(void);
/// Allocates zeroed memory, aligned to 8 bytes.
void *pm_arena_alloc(size_t size);
/// Returns the number of bytes in use.
size_t pm_arena_used(void);

#endif
