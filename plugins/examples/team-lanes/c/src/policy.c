// Routes teams to their home lanes, code and long prompts to dedicated lanes, and all other
// requests to the lane with the earliest start.

#include "pointsman.h"

static pm_text_map teams;
static pm_text code_lane, long_lane;
static uint32_t long_tokens;
static pm_lanes lanes;

static bool configure(pm_text json, pm_error *error) {
  pm_config config = pm_config_parse(json, error);
  teams = pm_config_text_map(&config, "teams");
  code_lane = pm_config_text(&config, "code-lane");
  long_tokens = (uint32_t)pm_config_integer(&config, "long-tokens", 8000, 1, UINT32_MAX);
  long_lane = pm_config_text(&config, "long-lane");
  return pm_config_finish(&config);
}

/// A rule that applies to a request, with the lane that it selects.
typedef struct {
  const char *name;
  pm_text lane;
  pm_text reason;
} rule;

enum { HOME, CODE, LONG, RULES };

/// Returns true if the rule with this number applies.
static bool applies(int number, const pm_context *context, rule *found) {
  switch (number) {
    case HOME: {
      pm_text tenant = pm_tenant();
      pm_text home = pm_is_some(tenant) ? pm_text_map_get(&teams, tenant) : PM_NO_TEXT;
      *found = (rule){"home", home, pm_format("home lane of %t", tenant)};
      return pm_is_some(home);
    }
    case CODE:
      *found = (rule){"code", code_lane, pm_literal("the prompt contains code")};
      return pm_is_some(code_lane) && pm_contains("```", false);
    default:
      *found = (rule){"long", long_lane,
                      pm_format("the prompt is longer than %u tokens", (uint64_t)long_tokens)};
      return pm_is_some(long_lane) && context->prompt_tokens > long_tokens;
  }
}

/// Finds the first rule whose lane is available. Adds unavailable lanes of earlier rules to
/// `skipped`.
static bool choose(const pm_context *context, pm_lane_list candidates, rule *chosen, pm_lane *lane,
                   pm_text *skipped) {
  for (int number = 0; number < RULES; number++) {
    if (!applies(number, context, chosen) || !pm_find(&lanes, context, chosen->lane, lane))
      continue;
    if (!pm_lanes_contain(candidates.ptr, candidates.len, *lane)) continue;
    pm_stat stat;
    if (!pm_get_stat(*lane, &stat)) continue;
    bool is_down = stat.state == POINTSMAN_POLICY_TYPES_LANE_STATE_DOWN;
    if (!is_down && stat.state != POINTSMAN_POLICY_TYPES_LANE_STATE_DRAINING) return true;
    *skipped = pm_format("%t; %t is unavailable", *skipped, chosen->lane);
    pm_metric_add("skipped", 1);
    if (pm_log_enabled(POINTSMAN_POLICY_TYPES_LEVEL_DEBUG)) {
      const char *state = is_down ? "down" : "draining";
      pm_log(POINTSMAN_POLICY_TYPES_LEVEL_DEBUG,
             pm_format("skipped lane %t: %s", chosen->lane, state));
    }
  }
  return false;
}

/// Parses an integer of at most nine digits.
static bool parse_integer(pm_text text, int32_t *number) {
  bool has_sign = text.len > 0 && (text.ptr[0] == '-' || text.ptr[0] == '+');
  size_t begin = has_sign ? 1 : 0;
  if (!pm_is_some(text) || text.len - begin < 1 || text.len - begin > 9) return false;
  *number = 0;
  for (size_t at = begin; at < text.len; at++) {
    if (text.ptr[at] < '0' || text.ptr[at] > '9') return false;
    *number = *number * 10 + (text.ptr[at] - '0');
  }
  if (text.ptr[0] == '-') *number = -*number;
  return true;
}

static void set_priority(pm_advice *advice) {
  int32_t priority;
  if (!parse_integer(pm_header("x-priority"), &priority)) return;
  pm_priority(advice, priority < -10 ? -10 : priority > 10 ? 10 : priority);
  // Requests of low priority should not delay those of other lanes by a switch.
  if (priority < 0) pm_switching(advice, POINTSMAN_POLICY_TYPES_SWITCHING_WHEN_IDLE);
}

static bool advise(const pm_context *context, pm_advice *advice, pm_error *error) {
  (void)error;
  // Earlier policies may have filters.
  pm_lane_list candidates = pm_lanes_left();
  pm_text skipped = pm_literal(""), reason = pm_literal("shortest wait and warmest cache");
  rule chosen;
  pm_lane lane;
  bool found = choose(context, candidates, &chosen, &lane, &skipped);
  if (found) {
    pm_only(advice, &lane, 1);
    reason = pm_format("%t: %t", chosen.lane, chosen.reason);
  } else {
    const pm_weight weights[] = {{POINTSMAN_POLICY_TYPES_METRIC_EST_WAIT, 700},
                                 {POINTSMAN_POLICY_TYPES_METRIC_CACHED_TOKENS, 300}};
    pm_blend(advice, weights, sizeof weights / sizeof *weights);
  }
  pm_reason(advice, pm_format("%t%t", reason, skipped));
  pm_note_text(advice, "rule", pm_literal(found ? chosen.name : "blend"));
  pm_note_int(advice, "prompt-tokens", context->prompt_tokens);

  pm_lane *others = pm_alloc(candidates.len * sizeof *others);
  size_t count = 0;
  for (size_t at = 0; at < candidates.len; at++) {
    if (!found || candidates.ptr[at] != lane) others[count++] = candidates.ptr[at];
  }
  pm_fallback_lanes(advice, others, count);
  set_priority(advice);
  return true;
}

// Whether the note `rule` names one of the rules.
static bool is_by_rule(const pm_finished *one) {
  for (size_t at = 0; at < one->notes.len; at++) {
    const pointsman_policy_types_note_t *note = &one->notes.ptr[at];
    if (pm_equal(note->key, pm_literal("rule"))) {
      return !pm_equal(note->value.val.text, pm_literal("blend"));
    }
  }
  return false;
}

// Counts the requests whose lane by rule failed.
static void learn(uint64_t now_ms, const pm_finished *done, size_t count) {
  (void)now_ms;
  for (const pm_finished *one = done; one < done + count; one++) {
    bool failed = one->attempts.len > 0 &&
                  one->attempts.ptr[0].ended != POINTSMAN_POLICY_TYPES_TRY_RESULT_OK;
    if (failed && is_by_rule(one)) pm_metric_add("rule-failed", 1);
  }
}

const pm_policy pm_self = {
    .name = "team-lanes",
    .version = "0.1.0",
    .configure = configure,
    .advise = advise,
    .learn = learn,
};
