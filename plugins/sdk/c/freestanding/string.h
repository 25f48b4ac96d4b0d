// The parts of the C library that the bindings, the SDK and the compiler use.
#ifndef POINTSMAN_STRING_H
#define POINTSMAN_STRING_H

#include <stddef.h>

void *memcpy(void *restrict to, const void *restrict from, size_t size);
void *memmove(void *to, const void *from, size_t size);
void *memset(void *place, int value, size_t size);
int memcmp(const void *one, const void *other, size_t size);
size_t strlen(const char *text);

#endif
