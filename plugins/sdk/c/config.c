// A reader for a policy's configuration. Every error names its key.
#include <string.h>

#include "pointsman.h"

typedef enum { IS_NULL, IS_BOOL, IS_NUMBER, IS_STRING, IS_LIST, IS_OBJECT } kind;

// A JSON value. Members of lists and objects form a linked list.
struct pm_json {
  kind kind;
  bool boolean;
  bool is_integer;
  bool read;
  int64_t integer;
  pm_text key;
  pm_text text;
  /// The JSON text of the value, for error messages.
  pm_text raw;
  pm_json *first;
  pm_json *next;
};

// -- JSON (RFC 8259) ------------------------------------------------------------------------------

// Maximum nesting. The parser is recursive and the stack of a policy has 64 KiB.
#define MAX_DEPTH 32
// Maximum bytes of a value in an error message.
#define MAX_FOUND_BYTES 60

typedef struct {
  const uint8_t *at;
  const uint8_t *end;
} reader;

static pm_json *read_value(reader *in, int depth);

static int peek(const reader *in) { return in->at < in->end ? *in->at : -1; }

static void skip_blanks(reader *in) {
  while (peek(in) == ' ' || peek(in) == '\t' || peek(in) == '\n' || peek(in) == '\r') in->at++;
}

static bool take(reader *in, char wanted) {
  skip_blanks(in);
  if (peek(in) != wanted) return false;
  in->at++;
  return true;
}

static bool word(reader *in, const char *wanted) {
  size_t length = strlen(wanted);
  if ((size_t)(in->end - in->at) < length || memcmp(in->at, wanted, length) != 0) return false;
  in->at += length;
  return true;
}

static bool is_digit(int letter) { return letter >= '0' && letter <= '9'; }

static bool hex4(reader *in, uint32_t *code) {
  *code = 0;
  for (int at = 0; at < 4; at++) {
    int letter = peek(in), folded = letter | 0x20;
    if (is_digit(letter)) {
      *code = *code * 16 + (uint32_t)(letter - '0');
    } else if (folded >= 'a' && folded <= 'f') {
      *code = *code * 16 + (uint32_t)(folded - 'a' + 10);
    } else {
      return false;
    }
    in->at++;
  }
  return true;
}

static uint8_t *put_utf8(uint8_t *to, uint32_t code) {
  if (code < 0x80) {
    *to++ = (uint8_t)code;
    return to;
  }
  int more = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
  static const uint8_t first[] = {0, 0xc0, 0xe0, 0xf0};
  *to++ = (uint8_t)(first[more] | code >> (6 * more));
  while (more-- > 0) *to++ = (uint8_t)(0x80 | (code >> (6 * more) & 0x3f));
  return to;
}

static bool escape(reader *in, uint8_t **to) {
  static const char letters[] = "\"\\/bfnrt", meant[] = "\"\\/\b\f\n\r\t";
  int letter = peek(in);
  in->at++;
  for (size_t at = 0; letters[at] != 0; at++) {
    if (letter == letters[at]) {
      *(*to)++ = (uint8_t)meant[at];
      return true;
    }
  }
  uint32_t code, low;
  if (letter != 'u' || !hex4(in, &code)) return false;
  if (code >= 0xd800 && code < 0xdc00) {
    if (!word(in, "\\u") || !hex4(in, &low) || low < 0xdc00 || low >= 0xe000) return false;
    code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
  } else if (code >= 0xdc00 && code < 0xe000) {
    return false;
  }
  *to = put_utf8(*to, code);
  return true;
}

// An escape is never shorter than the character it encodes, so the length of the JSON text is
// enough.
static bool read_text(reader *in, pm_text *text) {
  if (!take(in, '"')) return false;
  uint8_t *begin = pm_alloc((size_t)(in->end - in->at) + 1), *to = begin;
  for (int letter = peek(in); letter != '"'; letter = peek(in)) {
    if (letter < 0x20) return false;
    in->at++;
    if (letter != '\\') {
      *to++ = (uint8_t)letter;
    } else if (!escape(in, &to)) {
      return false;
    }
  }
  in->at++;
  *text = (pm_text){begin, (size_t)(to - begin)};
  return true;
}

static bool digits(reader *in) {
  if (!is_digit(peek(in))) return false;
  while (is_digit(peek(in))) in->at++;
  return true;
}

static bool read_number(reader *in, pm_json *value) {
  bool negative = peek(in) == '-';
  if (negative) in->at++;
  const uint8_t *begin = in->at;
  if (!digits(in) || (*begin == '0' && in->at - begin > 1)) return false;
  // Numbers of 19 or more digits can overflow an int64_t, so they are treated as out of range.
  value->is_integer = in->at - begin <= 18;
  for (const uint8_t *at = begin; value->is_integer && at < in->at; at++) {
    value->integer = value->integer * 10 + (*at - '0');
  }
  if (negative) value->integer = -value->integer;
  if (peek(in) == '.') {
    in->at++;
    value->is_integer = false;
    if (!digits(in)) return false;
  }
  if ((peek(in) | 0x20) == 'e') {
    in->at++;
    value->is_integer = false;
    if (peek(in) == '+' || peek(in) == '-') in->at++;
    if (!digits(in)) return false;
  }
  return true;
}

static bool read_members(reader *in, pm_json *value, char end, int depth) {
  in->at++;
  if (take(in, end)) return true;
  pm_json **last = &value->first;
  do {
    pm_text key = PM_NO_TEXT;
    if (value->kind == IS_OBJECT && (!read_text(in, &key) || !take(in, ':'))) return false;
    pm_json *member = read_value(in, depth + 1);
    if (member == NULL) return false;
    member->key = key;
    *last = member;
    last = &member->next;
  } while (take(in, ','));
  return take(in, end);
}

static pm_json *read_value(reader *in, int depth) {
  if (depth > MAX_DEPTH) return NULL;
  skip_blanks(in);
  const uint8_t *begin = in->at;
  pm_json *value = pm_alloc(sizeof *value);
  bool ok = true;
  switch (peek(in)) {
    case '{':
      value->kind = IS_OBJECT;
      ok = read_members(in, value, '}', depth);
      break;
    case '[':
      value->kind = IS_LIST;
      ok = read_members(in, value, ']', depth);
      break;
    case '"':
      value->kind = IS_STRING;
      ok = read_text(in, &value->text);
      break;
    case 't':
    case 'f':
      value->kind = IS_BOOL;
      value->boolean = peek(in) == 't';
      ok = word(in, value->boolean ? "true" : "false");
      break;
    case 'n':
      value->kind = IS_NULL;
      ok = word(in, "null");
      break;
    default:
      value->kind = IS_NUMBER;
      ok = read_number(in, value);
  }
  value->raw = (pm_text){(uint8_t *)begin, (size_t)(in->at - begin)};
  return ok ? value : NULL;
}

// -- Configuration --------------------------------------------------------------------------------

static pm_json empty = {.kind = IS_OBJECT};

static pm_text path_of(const pm_config *config, pm_text key) {
  return config->path.len == 0 ? key : pm_format("%t.%t", config->path, key);
}

// Only the first error is kept.
static void fail(pm_config *config, pm_text path, pm_text reason) {
  pm_text prefix = path.len == 0 ? pm_literal("") : pm_format("%t: ", path);
  if (!*config->failed) pm_invalid_config(config->error, "%t%t", prefix, reason);
  *config->failed = true;
  config->object = &empty;
}

// Truncates a long value at a character boundary, because error messages are logged.
static pm_text found_text(const pm_json *value) {
  if (value->kind == IS_LIST) return pm_literal("a list");
  if (value->kind == IS_OBJECT) return pm_literal("an object");
  pm_text text = value->raw;
  if (text.len <= MAX_FOUND_BYTES) return text;
  text.len = MAX_FOUND_BYTES;
  while (text.len > 0 && (text.ptr[text.len] & 0xc0) == 0x80) text.len--;
  return pm_format("%t…", text);
}

static void expected(pm_config *config, pm_text path, pm_text what, const pm_json *value) {
  fail(config, path, pm_format("expected %t, found %t", what, found_text(value)));
}

pm_config pm_config_parse(pm_text json, pm_error *error) {
  reader in = {json.ptr, json.ptr + json.len};
  bool *failed = pm_alloc(sizeof *failed);
  pm_config config = {read_value(&in, 0), PM_NO_TEXT, error, failed};
  skip_blanks(&in);
  if (config.object == NULL || in.at != in.end) {
    fail(&config, PM_NO_TEXT, pm_literal("invalid JSON"));
  } else if (config.object->kind != IS_OBJECT) {
    expected(&config, PM_NO_TEXT, pm_literal("an object"), config.object);
  }
  return config;
}

// Of duplicate keys the last one counts, as in JavaScript and Python.
static pm_json *member(pm_config *config, pm_text key) {
  pm_json *found = NULL;
  for (pm_json *at = config->object->first; at != NULL; at = at->next) {
    if (pm_equal(at->key, key)) {
      at->read = true;
      found = at;
    }
  }
  return found;
}

static pm_json *member_of_kind(pm_config *config, pm_text key, kind wanted, const char *what) {
  pm_json *found = member(config, key);
  if (found == NULL || found->kind == wanted) return found;
  expected(config, path_of(config, key), pm_literal(what), found);
  return NULL;
}

pm_text pm_config_text(pm_config *config, const char *key) {
  pm_json *found = member_of_kind(config, pm_literal(key), IS_STRING, "a string");
  return found == NULL ? PM_NO_TEXT : found->text;
}

bool pm_config_bool(pm_config *config, const char *key, bool default_value) {
  pm_json *found = member_of_kind(config, pm_literal(key), IS_BOOL, "a boolean");
  return found == NULL ? default_value : found->boolean;
}

int64_t pm_config_integer(pm_config *config, const char *key, int64_t default_value, int64_t min,
                          int64_t max) {
  pm_json *found = member(config, pm_literal(key));
  if (found == NULL) return default_value;
  bool is_integer = found->kind == IS_NUMBER && found->is_integer;
  if (is_integer && min <= found->integer && found->integer <= max) return found->integer;
  pm_text what = pm_format("an integer from %d to %d", min, max);
  expected(config, path_of(config, pm_literal(key)), what, found);
  return default_value;
}

pm_config pm_config_section(pm_config *config, const char *key) {
  pm_text name = pm_literal(key);
  pm_json *found = member_of_kind(config, name, IS_OBJECT, "an object");
  pm_config section = *config;
  section.object = found == NULL ? &empty : found;
  section.path = path_of(config, name);
  return section;
}

pm_text_map pm_config_text_map(pm_config *config, const char *key) {
  pm_config section = pm_config_section(config, key);
  pm_text_map map = {NULL, 0};
  for (pm_json *at = section.object->first; at != NULL; at = at->next) map.count++;
  map.pairs = pm_alloc(map.count * sizeof *map.pairs);
  map.count = 0;
  for (pm_json *at = section.object->first; at != NULL; at = at->next) {
    pm_json *value = member_of_kind(&section, at->key, IS_STRING, "a string");
    if (value != NULL) map.pairs[map.count++] = (pm_pair){at->key, value->text};
  }
  return map;
}

bool pm_config_finish(pm_config *config) {
  for (pm_json *at = config->object->first; at != NULL && !*config->failed; at = at->next) {
    if (!at->read) fail(config, path_of(config, at->key), pm_literal("unknown key"));
  }
  return !*config->failed;
}

pm_text pm_text_map_get(const pm_text_map *map, pm_text key) {
  for (size_t at = 0; at < map->count; at++) {
    if (pm_equal(map->pairs[at].key, key)) return map->pairs[at].value;
  }
  return PM_NO_TEXT;
}
