// The parts of the C library that the bindings use.
#ifndef POINTSMAN_STDLIB_H
#define POINTSMAN_STDLIB_H

#include <stddef.h>

void *malloc(size_t size);
void *realloc(void *old, size_t size);
void free(void *place);
_Noreturn void abort(void);

#endif
