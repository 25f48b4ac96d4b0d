// Memory of an instance: one heap that only grows, and is cut back to where `configure` left it before every further call.
#ifndef POINTSMAN_ARENA_H
#define POINTSMAN_ARENA_H

#include <stddef.h>

/// A hook begins: what the call before it allocated is given up, unless that has happened already.
void pm_arena_begin(void);
/// A hook ends: what is allocated from now on belongs to the next call.
void pm_arena_end(void);
/// What is allocated now stays.
void pm_arena_keep(void);
/// Zeros, aligned to 8 bytes.
void *pm_arena_alloc(size_t size);
/// Bytes in use.
size_t pm_arena_used(void);

#endif
