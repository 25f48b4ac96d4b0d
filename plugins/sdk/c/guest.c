// The component boundary: implements the exports of the contract's world with `pm_self`.
#include "arena.h"
#include "pointsman.h"

static bool configured;

static bool is_configured(pm_error *error) {
  return configured || pm_fail(error, "called before configure");
}

void exports_pointsman_policy_lifecycle_describe(
    exports_pointsman_policy_lifecycle_description_t *description) {
  pm_arena_begin();
  description->name = pm_literal(pm_self.name);
  description->version = pm_literal(pm_self.version);
  size_t count = 0;
  while (pm_self.hints != NULL && pm_self.hints[count] != NULL) count++;
  description->hints.len = count;
  description->hints.ptr = pm_alloc(count * sizeof(pm_text));
  for (size_t at = 0; at < count; at++) description->hints.ptr[at] = pm_literal(pm_self.hints[at]);
  pm_arena_end();
}

bool exports_pointsman_policy_lifecycle_configure(pm_text *config, pm_error *error) {
  pm_arena_begin();
  configured = pm_self.configure(*config, error);
  if (configured) pm_arena_keep();
  pm_arena_end();
  return configured;
}

bool exports_pointsman_policy_on_request_advise(pm_context *context, pm_advice *advice,
                                                pm_error *error) {
  pm_arena_begin();
  *advice = (pm_advice){0};
  bool ok = is_configured(error) && pm_self.advise(context, advice, error);
  pm_arena_end();
  return ok;
}

#ifdef PM_ON_FAILURE
bool exports_pointsman_policy_on_failure_recover(pm_context *context, pm_failure *failed,
                                                 pm_recovery *recovery, pm_error *error) {
  pm_arena_begin();
  *recovery = (pm_recovery){.tag = POINTSMAN_POLICY_TYPES_RECOVERY_PLANNED};
  bool ok = is_configured(error);
  if (ok && pm_self.recover != NULL) ok = pm_self.recover(context, failed, recovery, error);
  pm_arena_end();
  return ok;
}
#endif

#ifdef PM_ON_COMPLETE
void exports_pointsman_policy_on_complete_observe(
    uint64_t now_ms, exports_pointsman_policy_on_complete_list_outcome_t *done) {
  pm_arena_begin();
  if (configured && pm_self.observe != NULL) pm_self.observe(now_ms, done->ptr, done->len);
  pm_arena_end();
}
#endif

#ifdef PM_ON_OUTCOME
void exports_pointsman_policy_on_outcome_learn(
    uint64_t now_ms, exports_pointsman_policy_on_outcome_list_finished_t *done) {
  pm_arena_begin();
  if (configured && pm_self.learn != NULL) pm_self.learn(now_ms, done->ptr, done->len);
  pm_arena_end();
}
#endif

#ifdef PM_ON_TICK
void exports_pointsman_policy_on_tick_tick(
    uint64_t now_ms, uint64_t seed, exports_pointsman_policy_on_tick_list_lane_wish_t *hints) {
  pm_arena_begin();
  hints->ptr = NULL;
  hints->len = configured && pm_self.tick != NULL ? pm_self.tick(now_ms, seed, &hints->ptr) : 0;
  pm_arena_end();
}
#endif

// The bindings reference an object file with the types of the world. The build embeds the types
// itself, so a stub is enough.
void __component_type_object_force_link_policy(void) {}
