// The parts of the C library that the bindings, the SDK and the compiler use. Nothing is freed; see
// arena.h.
#include "stdlib.h"
#include "string.h"

#include "../arena.h"

void *malloc(size_t size) { return pm_arena_alloc(size); }

void *realloc(void *old, size_t size) {
  void *place = pm_arena_alloc(size);
  // The old size is unknown. Reading `size` bytes is safe: the arena extends at least to the end of
  // the new allocation.
  if (old != NULL) memmove(place, old, size);
  return place;
}

void free(void *place) { (void)place; }

_Noreturn void abort(void) { __builtin_trap(); }

void *memcpy(void *restrict to, const void *restrict from, size_t size) {
  unsigned char *target = to;
  const unsigned char *source = from;
  for (size_t at = 0; at < size; at++) target[at] = source[at];
  return to;
}

void *memmove(void *to, const void *from, size_t size) {
  unsigned char *target = to;
  const unsigned char *source = from;
  if (target < source) {
    for (size_t at = 0; at < size; at++) target[at] = source[at];
  } else {
    for (size_t at = size; at > 0; at--) target[at - 1] = source[at - 1];
  }
  return to;
}

void *memset(void *place, int value, size_t size) {
  unsigned char *bytes = place;
  for (size_t at = 0; at < size; at++) bytes[at] = (unsigned char)value;
  return place;
}

int memcmp(const void *one, const void *other, size_t size) {
  const unsigned char *left = one, *right = other;
  for (size_t at = 0; at < size; at++) {
    if (left[at] != right[at]) return left[at] < right[at] ? -1 : 1;
  }
  return 0;
}

size_t strlen(const char *text) {
  size_t length = 0;
  while (text[length] != 0) length++;
  return length;
}
