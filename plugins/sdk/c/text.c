// Text, errors and lanes.
#include <string.h>

#include "arena.h"
#include "pointsman.h"

void *pm_alloc(size_t size) { return pm_arena_alloc(size); }

bool pm_equal(pm_text one, pm_text other) {
  return one.len == other.len && memcmp(one.ptr, other.ptr, one.len) == 0;
}

// Enough for any 64-bit number and its sign.
#define MAX_DIGITS 21

static pm_text digits(uint64_t value, bool negative, uint8_t buffer[MAX_DIGITS]) {
  size_t at = MAX_DIGITS;
  do {
    buffer[--at] = (uint8_t)('0' + value % 10);
    value /= 10;
  } while (value != 0);
  if (negative) buffer[--at] = '-';
  return (pm_text){buffer + at, MAX_DIGITS - at};
}

static pm_text piece(const char *format, va_list *arguments, uint8_t buffer[MAX_DIGITS]) {
  switch (format[1]) {
    case 's':
      return pm_literal(va_arg(*arguments, const char *));
    case 't':
      return va_arg(*arguments, pm_text);
    case 'u':
      return digits(va_arg(*arguments, uint64_t), false, buffer);
    case 'd': {
      int64_t value = va_arg(*arguments, int64_t);
      return digits(value < 0 ? 0 - (uint64_t)value : (uint64_t)value, value < 0, buffer);
    }
    default:
      return (pm_text){(uint8_t *)format, 1};
  }
}

// Formats into `to`, or only computes the length if `to` is null.
static size_t put(uint8_t *to, const char *format, va_list *arguments) {
  size_t length = 0;
  uint8_t buffer[MAX_DIGITS];
  for (; *format != 0; format++) {
    bool is_plain = *format != '%' || format[1] == 0;
    pm_text text = is_plain ? (pm_text){(uint8_t *)format, 1} : piece(format, arguments, buffer);
    if (to != NULL) memcpy(to + length, text.ptr, text.len);
    length += text.len;
    if (!is_plain) format++;
  }
  return length;
}

pm_text pm_format_list(const char *format, va_list arguments) {
  va_list again;
  va_copy(again, arguments);
  size_t length = put(NULL, format, &again);
  va_end(again);
  va_copy(again, arguments);
  pm_text text = {pm_alloc(length + 1), length};
  put(text.ptr, format, &again);
  va_end(again);
  return text;
}

pm_text pm_format(const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  pm_text text = pm_format_list(format, arguments);
  va_end(arguments);
  return text;
}

#define FAIL(kind, member)                                 \
  va_list arguments;                                       \
  va_start(arguments, format);                             \
  error->tag = POINTSMAN_POLICY_TYPES_POLICY_ERROR_##kind; \
  error->val.member = pm_format_list(format, arguments);   \
  va_end(arguments);                                       \
  return false

bool pm_fail(pm_error *error, const char *format, ...) { FAIL(OTHER, other); }

bool pm_unsupported(pm_error *error, const char *format, ...) { FAIL(UNSUPPORTED, unsupported); }

bool pm_invalid_config(pm_error *error, const char *format, ...) {
  FAIL(INVALID_CONFIG, invalid_config);
}

bool pm_lanes_contain(const pm_lane *lanes, size_t count, pm_lane lane) {
  for (size_t at = 0; at < count; at++) {
    if (lanes[at] == lane) return true;
  }
  return false;
}

bool pm_find(pm_lanes *lanes, const pm_context *context, pm_text name, pm_lane *lane) {
  if (!lanes->filled || lanes->topology != context->topology) {
    lanes->filled = true;
    lanes->topology = context->topology;
    lanes->count = 0;
  }
  for (size_t at = 0; at < lanes->count; at++) {
    if (pm_equal(lanes->entries[at].name, name)) {
      *lane = lanes->entries[at].lane;
      return lanes->entries[at].exists;
    }
  }
  bool exists = pointsman_policy_fleet_find(&name, lane);
  if (lanes->count < PM_MAX_CACHED_LANES) {
    lanes->entries[lanes->count].name = name;
    lanes->entries[lanes->count].exists = exists;
    lanes->entries[lanes->count].lane = *lane;
    lanes->count++;
  }
  return exists;
}
