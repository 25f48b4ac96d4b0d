// Tests of the SDK, run natively: the host's functions are fakes, and the hooks are called as the bindings would.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "arena.h"
#include "pointsman.h"

static int failures;

#define CHECK(condition)                                                 \
  do {                                                                   \
    if (!(condition)) {                                                  \
      fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);    \
      failures++;                                                        \
    }                                                                    \
  } while (0)

static bool is(pm_text text, const char *wanted) {
  bool same = pm_equal(text, pm_literal(wanted));
  if (!same) fprintf(stderr, "got `%.*s`, wanted `%s`\n", (int)text.len, (const char *)text.ptr, wanted);
  return same;
}

// -- The host ----------------------------------------------------------------------------------------------------------------

static int finds;

void policy_string_set(policy_string_t *text, const char *from) { *text = (policy_string_t){(uint8_t *)from, strlen(from)}; }

bool pointsman_policy_fleet_find(policy_string_t *name, pointsman_policy_fleet_lane_id_t *lane) {
  finds++;
  *lane = 3;
  return is(*name, "alpha");
}

// -- A policy ----------------------------------------------------------------------------------------------------------------

static pm_text_map teams;
static size_t seen;

static bool configure(pm_text json, pm_error *error) {
  pm_config config = pm_config_parse(json, error);
  pm_config_text(&config, "name");
  pm_config_integer(&config, "count", 1, 1, 9);
  pm_config_flag(&config, "on", false);
  teams = pm_config_text_map(&config, "map");
  pm_config inner = pm_config_section(&config, "inner");
  pm_config_flag(&inner, "deep", false);
  return pm_config_end(&inner) && pm_config_end(&config);
}

static bool advise(const pm_context *context, pm_advice *advice, pm_error *error) {
  if (context->has_media) return pm_unsupported(error, "no %s", "media");
  seen = pm_arena_used();
  pm_because(advice, pm_format("%t of %u and %d%%", pm_literal("some"), (uint64_t)18446744073709551615u, (int64_t)INT64_MIN));
  return true;
}

static const char *const hints[] = {"h", NULL};
const pm_policy pm_self = {.name = "p", .version = "1", .hints = hints, .configure = configure, .advise = advise};

// -- Tests -------------------------------------------------------------------------------------------------------------------

static void the_same_numbers_follow_from_a_seed_as_in_all_sdks(void) {
  pm_random random = pm_random_from(1234567);
  CHECK(pm_random_next(&random) == 6457827717110365317u);
  CHECK(pm_random_next(&random) == 3203168211198807973u);
  CHECK(pm_random_next(&random) == 9817491932198370423u);
  random = pm_random_from(42);
  CHECK(pm_random_below(&random, 6) == 4);
  CHECK(pm_random_below(&random, 0) == 0);
}

static void mistakes_in_the_configuration_are_named(void) {
  static const char *const wrong[][2] = {
      {"{", "the configuration is no JSON"},
      {"{} x", "the configuration is no JSON"},
      {"{\"name\": \"\\ud800\"}", "the configuration is no JSON"},
      {"{\"name\": 01}", "the configuration is no JSON"},
      {"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]", "the configuration is no JSON"},
      {"[]", "the configuration must be an object"},
      {"{\"other\": 1}", "there is no key `other`"},
      {"{\"name\": 5}", "`name` must be a text"},
      {"{\"name\": null}", "`name` must be a text"},
      {"{\"count\": 10}", "`count` must be a whole number from 1 to 9"},
      {"{\"count\": 1.5}", "`count` must be a whole number from 1 to 9"},
      {"{\"count\": 99999999999999999999999}", "`count` must be a whole number from 1 to 9"},
      {"{\"on\": \"yes\"}", "`on` must be true or false"},
      {"{\"map\": {\"a\": 5}}", "`map.a` must be a text"},
      {"{\"inner\": {\"shallow\": true}}", "there is no key `inner.shallow`"},
      {"{\"inner\": []}", "`inner` must be an object"},
  };
  for (size_t at = 0; at < sizeof wrong / sizeof *wrong; at++) {
    pm_text json = pm_literal(wrong[at][0]);
    pm_error error;
    CHECK(!exports_pointsman_policy_lifecycle_configure(&json, &error));
    CHECK(error.tag == POINTSMAN_POLICY_TYPES_POLICY_ERROR_INVALID_CONFIG);
    CHECK(is(error.val.invalid_config, wrong[at][1]));
  }
}

static void texts_are_read_with_their_escapes(void) {
  pm_text json = pm_literal("{\"map\": {\"a\\u00e4\\ud83d\\ude00\\n\\\"\": \"x\", \"b\": \"y\"}, \"count\": 9, \"inner\": {\"deep\": true}}");
  pm_error error;
  CHECK(exports_pointsman_policy_lifecycle_configure(&json, &error));
  CHECK(is(pm_text_map_get(&teams, pm_literal("a\xc3\xa4\xf0\x9f\x98\x80\n\"")), "x"));
  CHECK(!pm_is_some(pm_text_map_get(&teams, pm_literal("c"))));
}

static void calls_leave_nothing_behind_and_the_configuration_stays(void) {
  pm_context context = {0};
  pm_advice advice;
  pm_error error;
  size_t first = 0;
  for (int call = 0; call < 1000; call++) {
    // As the host does with arguments that are not plain numbers.
    pm_alloc(1000);
    CHECK(exports_pointsman_policy_on_request_advise(&context, &advice, &error));
    if (call == 0) first = seen;
    CHECK(seen == first);
  }
  CHECK(is(pm_text_map_get(&teams, pm_literal("b")), "y"));
  CHECK(advice.notes.len == 1 && is(advice.notes.ptr[0].key, "why"));
  CHECK(is(advice.notes.ptr[0].value.val.text, "some of 18446744073709551615 and -9223372036854775808%"));
  context.has_media = true;
  CHECK(!exports_pointsman_policy_on_request_advise(&context, &advice, &error));
  CHECK(error.tag == POINTSMAN_POLICY_TYPES_POLICY_ERROR_UNSUPPORTED && is(error.val.unsupported, "no media"));
}

static void advice_is_the_contract_s_record(void) {
  pm_advice advice = {0};
  const pm_lane lanes[] = {1, 2};
  pm_only(&advice, lanes, 2);
  CHECK(advice.lanes.tag == POINTSMAN_POLICY_TYPES_LANE_ADVICE_ONLY && advice.lanes.val.only.len == 2);
  CHECK(advice.lanes.val.only.ptr != lanes && advice.lanes.val.only.ptr[1] == 2);
  pm_fall_back_to(&advice, lanes, 2);
  CHECK(advice.fallback.is_some && advice.fallback.val.on == 0x3f && advice.fallback.val.steps.ptr[1].lane == 2);
  CHECK(!advice.fallback.val.first_token_ms.is_some);
  pm_wait_at_most(&advice, 5, POINTSMAN_POLICY_TYPES_ON_TIMEOUT_REJECT);
  pm_priority(&advice, -3);
  CHECK(advice.queue.val.priority == -3 && advice.queue.val.max_wait_ms.val == 5 && !advice.queue.val.flow.is_some);
  CHECK(advice.queue.val.on_timeout == POINTSMAN_POLICY_TYPES_ON_TIMEOUT_REJECT);
  pm_edit_add(&advice, pm_cap_output_tokens(7));
  pm_edit_add(&advice, pm_set_field("/a", pm_literal("1")));
  CHECK(advice.edits.len == 2 && advice.edits.ptr[0].val.cap_output_tokens == 7);
  CHECK(is(advice.edits.ptr[1].val.set_field.f0, "/a"));
  pm_reject(&advice, 429, "slow", pm_literal("later"));
  CHECK(advice.reject.is_some && advice.reject.val.status == 429 && is(advice.reject.val.code, "slow"));
}

static void lanes_are_asked_for_once_per_topology(void) {
  static pm_lanes lanes;
  pm_lane lane;
  for (uint64_t topology = 0; topology < 2; topology++) {
    pm_context context = {.topology = topology};
    for (int time = 0; time < 3; time++) {
      CHECK(pm_find(&lanes, &context, pm_literal("alpha"), &lane) && lane == 3);
    }
  }
  CHECK(finds == 2);
}

static void it_describes_itself(void) {
  exports_pointsman_policy_lifecycle_description_t description;
  exports_pointsman_policy_lifecycle_describe(&description);
  CHECK(is(description.name, "p") && is(description.version, "1"));
  CHECK(description.hints.len == 1 && is(description.hints.ptr[0], "h"));
}

int main(void) {
  the_same_numbers_follow_from_a_seed_as_in_all_sdks();
  it_describes_itself();
  mistakes_in_the_configuration_are_named();
  texts_are_read_with_their_escapes();
  calls_leave_nothing_behind_and_the_configuration_stays();
  advice_is_the_contract_s_record();
  lanes_are_asked_for_once_per_topology();
  printf("%d failures\n", failures);
  return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
