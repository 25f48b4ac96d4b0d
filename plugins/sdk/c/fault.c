// Reports of faults. A trap has no message, so the SDK tells the host the cause and the location
// before: the host takes the last report of a call as the cause of its failure.
#include <stdlib.h>

#include "pointsman.h"

_Noreturn void pm_panic_at(const char *file, uint32_t line, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  pm_text message = pm_format_list(format, arguments);
  va_end(arguments);
  for (size_t at = 0; at < message.len; at++) {
    // The fields of a report are separated by tabs.
    if (message.ptr[at] < ' ') message.ptr[at] = ' ';
  }
  pm_log(POINTSMAN_POLICY_TYPES_LEVEL_ERROR,
         pm_format("pointsman:fault/1\t%s\t%u\t%t", file, (uint64_t)line, message));
  abort();
}

#ifdef __wasm__
// The handlers of the compiler's checks (`-fsanitize`). Their first argument begins with a
// location.
typedef struct {
  const char *file;
  uint32_t line;
  uint32_t column;
} location;

#define HANDLER(name, message)                               \
  _Noreturn void __ubsan_handle_##name(const location *at);  \
  _Noreturn void __ubsan_handle_##name(const location *at) { \
    pm_panic_at(at->file, at->line, message);                \
  }
#define HANDLER_1(name, message)                                          \
  _Noreturn void __ubsan_handle_##name(const location *at, uintptr_t a);  \
  _Noreturn void __ubsan_handle_##name(const location *at, uintptr_t a) { \
    (void)a;                                                              \
    pm_panic_at(at->file, at->line, message);                             \
  }
#define HANDLER_2(name, message)                                                       \
  _Noreturn void __ubsan_handle_##name(const location *at, uintptr_t a, uintptr_t b);  \
  _Noreturn void __ubsan_handle_##name(const location *at, uintptr_t a, uintptr_t b) { \
    (void)a, (void)b;                                                                  \
    pm_panic_at(at->file, at->line, message);                                          \
  }

HANDLER(builtin_unreachable, "unreachable code was reached")
HANDLER_1(out_of_bounds_abort, "array index out of bounds")
HANDLER_1(type_mismatch_v1_abort, "null pointer dereference")
HANDLER_2(divrem_overflow_abort, "division by zero")
HANDLER_2(shift_out_of_bounds_abort, "shift by an invalid number of bits")
#endif
