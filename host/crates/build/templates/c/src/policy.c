// Sends long prompts to a dedicated lane, and all others to the lane with the earliest start.

#include "pointsman.h"

static pm_text long_lane;
static uint32_t long_tokens;
static pm_lanes lanes;

static bool configure(pm_text json, pm_error *error) {
  pm_config config = pm_config_parse(json, error);
  long_lane = pm_config_text(&config, "long-lane");
  long_tokens = (uint32_t)pm_config_integer(&config, "long-tokens", 8000, 1, UINT32_MAX);
  return pm_config_finish(&config);
}

/// Called for every request.
static bool advise(const pm_context *context, pm_advice *advice, pm_error *error) {
  (void)error;
  pm_lane_list candidates = pm_candidates();
  pm_lane lane;
  bool is_long = context->prompt_tokens > long_tokens;
  if (is_long && pm_is_some(long_lane) && pm_find(&lanes, context, long_lane, &lane) &&
      pm_lanes_contain(candidates.ptr, candidates.len, lane)) {
    pm_lane *others = pm_alloc(candidates.len * sizeof *others);
    size_t count = 0;
    for (size_t at = 0; at < candidates.len; at++) {
      if (candidates.ptr[at] != lane) others[count++] = candidates.ptr[at];
    }
    pm_only(advice, &lane, 1);
    pm_reason(advice, pm_format("a prompt of more than %u tokens", (uint64_t)long_tokens));
    pm_fallback_lanes(advice, others, count);
    return true;
  }
  const pm_weight weights[] = {{POINTSMAN_POLICY_TYPES_METRIC_EST_WAIT, 700},
                               {POINTSMAN_POLICY_TYPES_METRIC_CACHED_TOKENS, 300}};
  pm_blend(advice, weights, sizeof weights / sizeof *weights);
  pm_reason(advice, pm_literal("the shortest wait"));
  return true;
}

const pm_policy pm_self = {
    .name = "POLICY_NAME",
    .version = "0.1.0",
    .configure = configure,
    .advise = advise,
};
