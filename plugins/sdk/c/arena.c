#include "arena.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define ALIGNMENT 8
#define PAGE 65536

#ifdef __wasm__
extern unsigned char __heap_base;
static unsigned char *base(void) {
  return (unsigned char *)(((uintptr_t)&__heap_base + ALIGNMENT - 1) & ~(uintptr_t)(ALIGNMENT - 1));
}

static bool reserve(size_t wanted) {
  size_t end = (size_t)__builtin_wasm_memory_size(0) * PAGE;
  size_t have = end - (size_t)base();
  if (wanted <= have) return true;
  size_t pages = (wanted - have + PAGE - 1) / PAGE;
  return __builtin_wasm_memory_grow(0, pages) != (size_t)-1;
}
#else
// Native tests use as much memory as a policy may have.
static _Alignas(ALIGNMENT) unsigned char memory[8 << 20];
static unsigned char *base(void) { return memory; }
static bool reserve(size_t wanted) { return wanted <= sizeof memory; }
#endif

static size_t used, kept;
// The arguments of a call are allocated before its hook begins. The arena is therefore reset by the
// first allocation after the end of the previous hook, or by the next `pm_arena_begin`, whichever
// comes first.
static bool ended;

void pm_arena_begin(void) {
  if (ended) {
    used = kept;
    ended = false;
  }
}

void pm_arena_end(void) { ended = true; }

void pm_arena_keep(void) { kept = used; }

size_t pm_arena_used(void) { return used; }

void *pm_arena_alloc(size_t size) {
  pm_arena_begin();
  if (size > SIZE_MAX / 2) abort();
  size_t rounded = (size + ALIGNMENT - 1) & ~(size_t)(ALIGNMENT - 1);
  if (!reserve(used + rounded)) abort();
  void *place = base() + used;
  used += rounded;
  return memset(place, 0, rounded);
}
