// Write Pointsman policies in C. See README.md.
//
// A policy defines `pm_self`. What its functions allocate lives until the next call, except for what `configure` allocates:
// that lives as long as the instance. Nothing is ever freed by hand.
#ifndef POINTSMAN_H
#define POINTSMAN_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// The contract's types; made by the build from wit/.
#include "policy.h"

typedef policy_string_t pm_text;
typedef pointsman_policy_types_lane_id_t pm_lane;
typedef pointsman_policy_types_list_lane_id_t pm_lane_list;
typedef pointsman_policy_types_context_t pm_context;
typedef pointsman_policy_types_lane_stat_t pm_stat;
typedef pointsman_policy_types_lane_info_t pm_info;
typedef pointsman_policy_types_metric_weight_t pm_weight;
typedef pointsman_policy_types_lane_score_t pm_score;
typedef pointsman_policy_types_edit_t pm_edit;
typedef pointsman_policy_types_fallback_step_t pm_step;
typedef pointsman_policy_types_triggers_t pm_triggers;
typedef pointsman_policy_types_advice_t pm_advice;
typedef pointsman_policy_types_policy_error_t pm_error;
typedef pointsman_policy_types_failure_t pm_failure;
typedef pointsman_policy_types_recovery_t pm_recovery;
typedef pointsman_policy_types_outcome_t pm_outcome;
typedef pointsman_policy_types_lane_wish_t pm_wish;

/// A policy: its name and version as in the manifest, and its hooks. `recover`, `observe` and `tick` may be null; they are asked
/// in the world `full-policy` only. A function that returns false has said why in `error`.
typedef struct {
  const char *name;
  const char *version;
  /// Names of hints that it may set, ending with a null; or null.
  const char *const *hints;
  bool (*configure)(pm_text json, pm_error *error);
  bool (*advise)(const pm_context *context, pm_advice *advice, pm_error *error);
  bool (*recover)(const pm_context *context, const pm_failure *failed, pm_recovery *recovery, pm_error *error);
  void (*observe)(uint64_t now_ms, const pm_outcome *done, size_t count);
  /// Writes wishes and returns how many; `*wishes` is allocated with `pm_alloc`.
  size_t (*tick)(uint64_t now_ms, uint64_t seed, pm_wish **wishes);
} pm_policy;

extern const pm_policy pm_self;

// -- Memory and text ---------------------------------------------------------------------------------------------------------

/// `size` bytes of zeros. Never null: without memory the call ends with a trap.
void *pm_alloc(size_t size);

/// A text of a C string, which is not copied.
static inline pm_text pm_literal(const char *text) {
  pm_text result;
  policy_string_set(&result, text);
  return result;
}

/// There is no text: an option that is not set.
#define PM_NO_TEXT ((pm_text){NULL, 0})

static inline bool pm_is_some(pm_text text) { return text.ptr != NULL; }

bool pm_equal(pm_text one, pm_text other);

/// Text in which `%s` is a C string, `%t` a `pm_text`, `%u` a `uint64_t` and `%d` an `int64_t`.
pm_text pm_format(const char *format, ...);
pm_text pm_format_list(const char *format, va_list arguments);

// -- Errors ------------------------------------------------------------------------------------------------------------------

/// Says why there is no advice, and returns false.
bool pm_fail(pm_error *error, const char *format, ...);
/// Says that the request is of a kind that this policy does not know, and returns false.
bool pm_unsupported(pm_error *error, const char *format, ...);
/// Says which key of the configuration is wrong and why, and returns false.
bool pm_invalid_config(pm_error *error, const char *format, ...);

// -- Advice ------------------------------------------------------------------------------------------------------------------
// `advice` is one without an opinion when `advise` is called. All of these copy what they are given.

void pm_any(pm_advice *advice);
void pm_only(pm_advice *advice, const pm_lane *lanes, size_t count);
void pm_avoid(pm_advice *advice, const pm_lane *lanes, size_t count);
/// These lanes, best first.
void pm_ordered(pm_advice *advice, const pm_lane *lanes, size_t count);
void pm_scores(pm_advice *advice, const pm_score *scores, size_t count);
/// The host scores the candidates by weighted figures.
void pm_blend(pm_advice *advice, const pm_weight *weights, size_t count);
/// Refuse the request: 400 to 499, or 503.
void pm_reject(pm_advice *advice, uint16_t status, const char *code, pm_text message);

/// The reason that people are shown.
void pm_because(pm_advice *advice, pm_text why);
void pm_note_text(pm_advice *advice, const char *key, pm_text value);
void pm_note_int(pm_advice *advice, const char *key, int64_t value);
void pm_note_flag(pm_advice *advice, const char *key, bool value);
void pm_hint_int(pm_advice *advice, const char *key, int64_t value);
void pm_hint_text(pm_advice *advice, const char *key, pm_text value);

/// Place in the host's queue: higher goes first, 0 is normal.
void pm_priority(pm_advice *advice, int32_t priority);
void pm_flow(pm_advice *advice, pm_text flow);
void pm_wait_at_most(pm_advice *advice, uint32_t ms, pointsman_policy_types_on_timeout_t on_timeout);
void pm_switching(pm_advice *advice, pointsman_policy_types_switching_t switching);

#define PM_ALL_TRIGGERS ((pm_triggers)0x3f)
/// Fallbacks in order, after any failure.
void pm_fall_back_to(pm_advice *advice, const pm_lane *lanes, size_t count);
/// Fallbacks in order, each with its edits, after these events; `first_token_ms` 0 for the lane's own limit.
void pm_fall_back(pm_advice *advice, pm_triggers on, const pm_step *steps, size_t count, uint32_t first_token_ms);

void pm_edit_add(pm_advice *advice, pm_edit edit);
pm_edit pm_set_model(pm_text model);
pm_edit pm_cap_output_tokens(uint32_t tokens);
/// `json` is JSON text.
pm_edit pm_set_field(const char *pointer, pm_text json);
pm_edit pm_remove_field(const char *pointer);
pm_edit pm_prepend_system(pm_text text);
pm_edit pm_keep_last_messages(uint32_t count);
pm_edit pm_set_header(const char *name, pm_text value);
pm_edit pm_remove_header(const char *name);

// -- The host ----------------------------------------------------------------------------------------------------------------

static inline pm_text pm_model(void) {
  pm_text model;
  pointsman_policy_request_model(&model);
  return model;
}

/// The tenant; `PM_NO_TEXT` where there is none.
static inline pm_text pm_tenant(void) {
  pm_text tenant;
  return pointsman_policy_request_tenant(&tenant) ? tenant : PM_NO_TEXT;
}

/// A header of the request; `PM_NO_TEXT` where there is none.
static inline pm_text pm_header(const char *name) {
  pm_text key = pm_literal(name), value;
  return pointsman_policy_request_header(&key, &value) ? value : PM_NO_TEXT;
}

static inline bool pm_contains(const char *needle, bool ignore_case) {
  pm_text text = pm_literal(needle);
  return pointsman_policy_request_contains(&text, ignore_case);
}

static inline pm_lane_list pm_candidates(void) {
  pointsman_policy_fleet_list_lane_id_t list;
  pointsman_policy_fleet_candidates(&list);
  return (pm_lane_list){list.ptr, list.len};
}

static inline bool pm_stat_of(pm_lane lane, pm_stat *stat) { return pointsman_policy_fleet_stat(lane, stat); }

static inline bool pm_info_of(pm_lane lane, pm_info *info) { return pointsman_policy_fleet_info(lane, info); }

static inline bool pm_log_enabled(pointsman_policy_types_level_t level) { return pointsman_policy_log_enabled(level); }

static inline void pm_log(pointsman_policy_types_level_t level, pm_text message) {
  pointsman_policy_log_write(level, &message);
}

/// Adds to a counter, which the manifest has to declare.
static inline void pm_count(const char *name, uint64_t by) {
  pm_text text = pm_literal(name);
  pointsman_policy_metrics_add(&text, by);
}

bool pm_lanes_have(const pm_lane *lanes, size_t count, pm_lane lane);

// -- Lanes by name -----------------------------------------------------------------------------------------------------------

#define PM_KNOWN_LANES 64

/// The lanes that a policy knows by name, asked for once per topology. Names have to live as long as the policy.
typedef struct {
  bool filled;
  uint64_t topology;
  size_t count;
  struct {
    pm_text name;
    bool there;
    pm_lane lane;
  } known[PM_KNOWN_LANES];
} pm_lanes;

/// Is there a lane of that name, and which is it?
bool pm_find(pm_lanes *lanes, const pm_context *context, pm_text name, pm_lane *lane);

// -- Configuration -----------------------------------------------------------------------------------------------------------

typedef struct pm_json pm_json;

/// An object of the configuration. Read all keys, then call `pm_config_end`. The first mistake is kept, and what is read after it
/// is of no value; so only the end has to be checked.
typedef struct {
  pm_json *object;
  pm_text path;
  pm_error *error;
  bool *failed;
} pm_config;

typedef struct {
  pm_text key;
  pm_text value;
} pm_pair;

typedef struct {
  pm_pair *pairs;
  size_t count;
} pm_text_map;

pm_config pm_config_parse(pm_text json, pm_error *error);
/// A text; `PM_NO_TEXT` where there is none.
pm_text pm_config_text(pm_config *config, const char *key);
bool pm_config_flag(pm_config *config, const char *key, bool otherwise);
/// A whole number within bounds.
int64_t pm_config_integer(pm_config *config, const char *key, int64_t otherwise, int64_t least, int64_t most);
/// An object whose values are texts; empty where there is none.
pm_text_map pm_config_text_map(pm_config *config, const char *key);
/// An object within this one; empty where there is none.
pm_config pm_config_section(pm_config *config, const char *key);
/// Was all of it right, and has everything been read?
bool pm_config_end(pm_config *config);

/// The value of a key; `PM_NO_TEXT` where there is none.
pm_text pm_text_map_get(const pm_text_map *map, pm_text key);

// -- Randomness --------------------------------------------------------------------------------------------------------------

/// Numbers that follow from a seed: the same seed, the same numbers, in every language. splitmix64.
typedef struct {
  uint64_t state;
} pm_random;

static inline pm_random pm_random_from(uint64_t seed) { return (pm_random){seed}; }

static inline uint64_t pm_random_next(pm_random *random) {
  uint64_t bits = random->state += 0x9e3779b97f4a7c15u;
  bits = (bits ^ (bits >> 30)) * 0xbf58476d1ce4e5b9u;
  bits = (bits ^ (bits >> 27)) * 0x94d049bb133111ebu;
  return bits ^ (bits >> 31);
}

/// A whole number from 0 to `n` - 1; 0 where `n` is 0.
static inline uint32_t pm_random_below(pm_random *random, uint32_t n) {
  return (uint32_t)(((pm_random_next(random) >> 32) * n) >> 32);
}

#endif
