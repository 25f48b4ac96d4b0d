// Functions that build advice.
#include <string.h>

#include "pointsman.h"

static void *copy(const void *from, size_t count, size_t size) {
  void *place = pm_alloc(count * size);
  if (count > 0) memcpy(place, from, count * size);
  return place;
}

#define LIST(items, count) {copy(items, count, sizeof *(items)), count}
#define LANES(kind, member, items)                                                     \
  advice->lanes = (pointsman_policy_types_lane_advice_t) {                             \
    .tag = POINTSMAN_POLICY_TYPES_LANE_ADVICE_##kind, .val.member = LIST(items, count) \
  }

void pm_any(pm_advice *advice) { advice->lanes.tag = POINTSMAN_POLICY_TYPES_LANE_ADVICE_ANY; }

void pm_only(pm_advice *advice, const pm_lane *lanes, size_t count) { LANES(ONLY, only, lanes); }

void pm_avoid(pm_advice *advice, const pm_lane *lanes, size_t count) { LANES(AVOID, avoid, lanes); }

void pm_ordered(pm_advice *advice, const pm_lane *lanes, size_t count) {
  LANES(ORDERED, ordered, lanes);
}

void pm_scores(pm_advice *advice, const pm_score *scores, size_t count) {
  LANES(SCORES, scores, scores);
}

void pm_blend(pm_advice *advice, const pm_weight *weights, size_t count) {
  LANES(BLEND, blend, weights);
}

void pm_reject(pm_advice *advice, uint16_t status, const char *code, pm_text message) {
  advice->reject.is_some = true;
  advice->reject.val = (pointsman_policy_types_rejection_t){
      .status = status, .code = pm_literal(code), .message = message};
}

typedef pointsman_policy_types_list_note_t notes;
typedef pointsman_policy_types_scalar_t scalar;

// Appends by copying the list: nothing is freed, and lists are short.
static void append(notes *list, const char *key, scalar value) {
  pointsman_policy_types_note_t *longer = pm_alloc((list->len + 1) * sizeof *longer);
  if (list->len > 0) memcpy(longer, list->ptr, list->len * sizeof *longer);
  longer[list->len] = (pointsman_policy_types_note_t){.key = pm_literal(key), .value = value};
  *list = (notes){longer, list->len + 1};
}

static scalar text(pm_text value) {
  return (scalar){.tag = POINTSMAN_POLICY_TYPES_SCALAR_TEXT, .val.text = value};
}

static scalar integer(int64_t value) {
  return (scalar){.tag = POINTSMAN_POLICY_TYPES_SCALAR_INT, .val.int_ = value};
}

void pm_reason(pm_advice *advice, pm_text reason) { pm_note_text(advice, "why", reason); }

void pm_note_text(pm_advice *advice, const char *key, pm_text value) {
  append(&advice->notes, key, text(value));
}

void pm_note_int(pm_advice *advice, const char *key, int64_t value) {
  append(&advice->notes, key, integer(value));
}

void pm_note_flag(pm_advice *advice, const char *key, bool value) {
  append(&advice->notes, key,
         (scalar){.tag = POINTSMAN_POLICY_TYPES_SCALAR_FLAG, .val.flag = value});
}

void pm_hint_int(pm_advice *advice, const char *key, int64_t value) {
  append(&advice->hints, key, integer(value));
}

void pm_hint_text(pm_advice *advice, const char *key, pm_text value) {
  append(&advice->hints, key, text(value));
}

static pointsman_policy_types_queue_advice_t *queue(pm_advice *advice) {
  if (!advice->queue.is_some) {
    advice->queue.is_some = true;
    advice->queue.val = (pointsman_policy_types_queue_advice_t){
        .on_timeout = POINTSMAN_POLICY_TYPES_ON_TIMEOUT_FALL_BACK};
  }
  return &advice->queue.val;
}

void pm_priority(pm_advice *advice, int32_t priority) { queue(advice)->priority = priority; }

void pm_flow(pm_advice *advice, pm_text flow) {
  queue(advice)->flow = (policy_option_string_t){true, flow};
}

void pm_max_wait(pm_advice *advice, uint32_t ms, pointsman_policy_types_on_timeout_t on_timeout) {
  queue(advice)->max_wait_ms = (policy_option_u32_t){true, ms};
  queue(advice)->on_timeout = on_timeout;
}

void pm_switching(pm_advice *advice, pointsman_policy_types_switching_t switching) {
  advice->switching.is_some = true;
  advice->switching.val = switching;
}

void pm_fallback_lanes(pm_advice *advice, const pm_lane *lanes, size_t count) {
  pm_step *steps = pm_alloc(count * sizeof *steps);
  for (size_t at = 0; at < count; at++) steps[at].lane = lanes[at];
  pm_fallback(advice, PM_ALL_TRIGGERS, steps, count, 0);
}

void pm_fallback(pm_advice *advice, pm_triggers on, const pm_step *steps, size_t count,
                 uint32_t first_token_ms) {
  advice->fallback.is_some = true;
  advice->fallback.val = (pointsman_policy_types_fallback_advice_t){
      .on = on,
      .steps = LIST(steps, count),
      .first_token_ms = {first_token_ms != 0, first_token_ms}};
}

void pm_add_edit(pm_advice *advice, pm_edit edit) {
  size_t count = advice->edits.len;
  pm_edit *longer = pm_alloc((count + 1) * sizeof *longer);
  if (count > 0) memcpy(longer, advice->edits.ptr, count * sizeof *longer);
  longer[count] = edit;
  advice->edits.ptr = longer;
  advice->edits.len = count + 1;
}

#define EDIT(kind, member, ...) \
  return (pm_edit) { .tag = POINTSMAN_POLICY_TYPES_EDIT_##kind, .val.member = __VA_ARGS__ }

pm_edit pm_set_model(pm_text model) { EDIT(SET_MODEL, set_model, model); }

pm_edit pm_cap_output_tokens(uint32_t tokens) {
  EDIT(CAP_OUTPUT_TOKENS, cap_output_tokens, tokens);
}

pm_edit pm_set_field(const char *pointer, pm_text json) {
  EDIT(SET_FIELD, set_field, {pm_literal(pointer), json});
}

pm_edit pm_remove_field(const char *pointer) {
  EDIT(REMOVE_FIELD, remove_field, pm_literal(pointer));
}

pm_edit pm_prepend_system(pm_text system) { EDIT(PREPEND_SYSTEM, prepend_system, system); }

pm_edit pm_keep_last_messages(uint32_t count) {
  EDIT(KEEP_LAST_MESSAGES, keep_last_messages, count);
}

pm_edit pm_set_header(const char *name, pm_text value) {
  EDIT(SET_HEADER, set_header, {pm_literal(name), value});
}

pm_edit pm_remove_header(const char *name) { EDIT(REMOVE_HEADER, remove_header, pm_literal(name)); }
