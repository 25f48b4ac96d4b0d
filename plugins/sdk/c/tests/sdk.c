// Native tests of the SDK. The functions of the host are fakes, and the tests call the hooks as the
// bindings do.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "arena.h"
#include "pointsman.h"

static int failures;

#define CHECK(condition)                                              \
  do {                                                                \
    if (!(condition)) {                                               \
      fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
      failures++;                                                     \
    }                                                                 \
  } while (0)

static bool is(pm_text text, const char *expected) {
  bool equal = pm_equal(text, pm_literal(expected));
  if (!equal) {
    fprintf(stderr, "expected `%s`, found `%.*s`\n", expected, (int)text.len,
            (const char *)text.ptr);
  }
  return equal;
}

// -- The host -------------------------------------------------------------------------------------

static int lookups;

void policy_string_set(policy_string_t *text, const char *from) {
  *text = (policy_string_t){(uint8_t *)from, strlen(from)};
}

bool pointsman_policy_fleet_find(policy_string_t *name, pointsman_policy_fleet_lane_id_t *lane) {
  lookups++;
  *lane = 3;
  return is(*name, "alpha");
}

// The request has the texts of these messages, in lower case.
static const char *const messages[] = {"zw\xc3\xb6lf boxer", "a second boxer"};

// Finds patterns in lower case, or case-sensitively, as `request.find-any` does.
void pointsman_policy_request_find_any(policy_list_string_t *patterns, bool ignore_case,
                                       pointsman_policy_request_list_text_match_t *found) {
  found->ptr = pm_alloc(patterns->len * sizeof *found->ptr);
  found->len = 0;
  for (uint32_t pattern = 0; pattern < patterns->len; pattern++) {
    char wanted[32] = {0};
    pm_text text = patterns->ptr[pattern];
    CHECK(text.len < sizeof wanted);
    memcpy(wanted, text.ptr, text.len);
    for (char *at = wanted; ignore_case && *at != 0; at++) {
      if (*at >= 'A' && *at <= 'Z') *at += 'a' - 'A';
    }
    for (uint32_t message = 0; message < 2; message++) {
      const char *at = strstr(messages[message], wanted);
      if (at == NULL) continue;
      uint64_t offset = (uint64_t)(at - messages[message]);
      found->ptr[found->len++] =
          (pm_match){.pattern = pattern, .message = message, .offset = offset};
      break;
    }
  }
}

static bool has_deadline;

bool pointsman_policy_request_deadline_ms(uint32_t *ms) {
  if (has_deadline) *ms = 900;
  return has_deadline;
}

static size_t lanes_left;

void pointsman_policy_fleet_lanes_left(pointsman_policy_fleet_list_lane_id_t *left) {
  left->ptr = pm_alloc(lanes_left * sizeof *left->ptr);
  left->len = lanes_left;
  for (size_t at = 0; at < lanes_left; at++) left->ptr[at] = (pm_lane)(at + 5);
}

static char counted[64];
static uint64_t counter;

void pointsman_policy_metrics_add(policy_string_t *name, uint64_t by) {
  CHECK(name->len < sizeof counted);
  memcpy(counted, name->ptr, name->len);
  counted[name->len] = 0;
  counter += by;
}

// -- A policy -------------------------------------------------------------------------------------

static pm_text_map teams;
static size_t used_in_call;

static bool configure(pm_text json, pm_error *error) {
  pm_config config = pm_config_parse(json, error);
  pm_config_text(&config, "name");
  pm_config_integer(&config, "count", 1, 1, 9);
  pm_config_bool(&config, "on", false);
  teams = pm_config_text_map(&config, "map");
  pm_config inner = pm_config_section(&config, "inner");
  pm_config_bool(&inner, "deep", false);
  return pm_config_finish(&inner) && pm_config_finish(&config);
}

static bool advise(const pm_context *context, pm_advice *advice, pm_error *error) {
  if (context->has_media) return pm_unsupported(error, "no %s", "media");
  used_in_call = pm_arena_used();
  pm_reason(advice, pm_format("%t of %u and %d%%", pm_literal("some"),
                              (uint64_t)18446744073709551615u, (int64_t)INT64_MIN));
  return true;
}

// Counts the time, under the text of the first note and the status of each failed attempt.
static void learn(uint64_t now_ms, const pm_finished *done, size_t count) {
  for (const pm_finished *one = done; one < done + count; one++) {
    for (size_t at = 0; at < one->attempts.len; at++) {
      const pointsman_policy_types_attempt_t *attempt = &one->attempts.ptr[at];
      if (attempt->ended == POINTSMAN_POLICY_TYPES_TRY_RESULT_OK) continue;
      pm_text name = pm_format("%t: %u", one->notes.ptr[0].value.val.text, attempt->status);
      pointsman_policy_metrics_add(&name, now_ms);
    }
  }
}

static const char *const hints[] = {"h", NULL};
const pm_policy pm_self = {.name = "p",
                           .version = "1",
                           .hints = hints,
                           .configure = configure,
                           .advise = advise,
                           .learn = learn};

// -- Tests ----------------------------------------------------------------------------------------

static void random_numbers_are_the_same_in_all_sdks(void) {
  pm_random random = pm_random_from(1234567);
  CHECK(pm_random_next(&random) == 6457827717110365317u);
  CHECK(pm_random_next(&random) == 3203168211198807973u);
  CHECK(pm_random_next(&random) == 9817491932198370423u);
  random = pm_random_from(42);
  CHECK(pm_random_below(&random, 6) == 4);
  CHECK(pm_random_below(&random, 0) == 0);
}

static void configuration_errors_name_the_key(void) {
  static const char *const invalid[][2] = {
      {"{", "invalid JSON"},
      {"{} x", "invalid JSON"},
      {"{\"name\": \"\\ud800\"}", "invalid JSON"},
      {"{\"name\": 01}", "invalid JSON"},
      {"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]",
       "invalid JSON"},
      {"[]", "expected an object, found a list"},
      {"{\"other\": 1}", "other: unknown key"},
      {"{\"name\": 5}", "name: expected a string, found 5"},
      {"{\"name\": null}", "name: expected a string, found null"},
      {"{\"count\": 10}", "count: expected an integer from 1 to 9, found 10"},
      {"{\"count\": 1.5}", "count: expected an integer from 1 to 9, found 1.5"},
      {"{\"count\": 99999999999999999999999}",
       "count: expected an integer from 1 to 9, found 99999999999999999999999"},
      {"{\"on\": \"yes\"}", "on: expected a boolean, found \"yes\""},
      {"{\"map\": {\"a\": 5}}", "map.a: expected a string, found 5"},
      {"{\"inner\": {\"shallow\": true}}", "inner.shallow: unknown key"},
      {"{\"inner\": []}", "inner: expected an object, found a list"},
  };
  for (size_t at = 0; at < sizeof invalid / sizeof *invalid; at++) {
    pm_text json = pm_literal(invalid[at][0]);
    pm_error error;
    CHECK(!exports_pointsman_policy_lifecycle_configure(&json, &error));
    CHECK(error.tag == POINTSMAN_POLICY_TYPES_POLICY_ERROR_INVALID_CONFIG);
    CHECK(is(error.val.invalid_config, invalid[at][1]));
  }
}

static void strings_are_unescaped(void) {
  pm_text json = pm_literal(
      "{\"map\": {\"a\\u00e4\\ud83d\\ude00\\n\\\"\": \"x\", \"b\": \"y\"}, \"count\": 9, "
      "\"inner\": {\"deep\": true}}");
  pm_error error;
  CHECK(exports_pointsman_policy_lifecycle_configure(&json, &error));
  CHECK(is(pm_text_map_get(&teams, pm_literal("a\xc3\xa4\xf0\x9f\x98\x80\n\"")), "x"));
  CHECK(!pm_is_some(pm_text_map_get(&teams, pm_literal("c"))));
}

static void calls_release_memory_and_the_configuration_stays(void) {
  pm_context context = {0};
  pm_advice advice;
  pm_error error;
  size_t first = 0;
  for (int call = 0; call < 1000; call++) {
    // The host allocates like this for arguments that are not plain numbers.
    pm_alloc(1000);
    CHECK(exports_pointsman_policy_on_request_advise(&context, &advice, &error));
    if (call == 0) first = used_in_call;
    CHECK(used_in_call == first);
  }
  CHECK(is(pm_text_map_get(&teams, pm_literal("b")), "y"));
  CHECK(advice.notes.len == 1 && is(advice.notes.ptr[0].key, "why"));
  CHECK(is(advice.notes.ptr[0].value.val.text,
           "some of 18446744073709551615 and -9223372036854775808%"));
  context.has_media = true;
  CHECK(!exports_pointsman_policy_on_request_advise(&context, &advice, &error));
  CHECK(error.tag == POINTSMAN_POLICY_TYPES_POLICY_ERROR_UNSUPPORTED &&
        is(error.val.unsupported, "no media"));
}

static void advice_builds_the_contract_record(void) {
  pm_advice advice = {0};
  const pm_lane lanes[] = {1, 2};
  pm_only(&advice, lanes, 2);
  CHECK(advice.lanes.tag == POINTSMAN_POLICY_TYPES_LANE_ADVICE_ONLY &&
        advice.lanes.val.only.len == 2);
  CHECK(advice.lanes.val.only.ptr != lanes && advice.lanes.val.only.ptr[1] == 2);
  pm_fallback_lanes(&advice, lanes, 2);
  CHECK(advice.fallback.is_some && advice.fallback.val.on == 0x3f &&
        advice.fallback.val.steps.ptr[1].lane == 2);
  CHECK(!advice.fallback.val.first_token_ms.is_some);
  pm_max_wait(&advice, 5, POINTSMAN_POLICY_TYPES_ON_TIMEOUT_REJECT);
  pm_priority(&advice, -3);
  CHECK(advice.queue.val.priority == -3 && advice.queue.val.max_wait_ms.val == 5 &&
        !advice.queue.val.flow.is_some);
  CHECK(advice.queue.val.on_timeout == POINTSMAN_POLICY_TYPES_ON_TIMEOUT_REJECT);
  pm_add_edit(&advice, pm_cap_output_tokens(7));
  pm_add_edit(&advice, pm_set_field("/a", pm_literal("1")));
  CHECK(advice.edits.len == 2 && advice.edits.ptr[0].val.cap_output_tokens == 7);
  CHECK(is(advice.edits.ptr[1].val.set_field.f0, "/a"));
  pm_reject(&advice, 429, "slow", pm_literal("later"));
  CHECK(advice.reject.is_some && advice.reject.val.status == 429 &&
        is(advice.reject.val.code, "slow"));
}

static void lane_ids_are_cached_per_topology(void) {
  static pm_lanes lanes;
  pm_lane lane;
  for (uint64_t topology = 0; topology < 2; topology++) {
    pm_context context = {.topology = topology};
    for (int time = 0; time < 3; time++) {
      CHECK(pm_find(&lanes, &context, pm_literal("alpha"), &lane) && lane == 3);
    }
  }
  CHECK(lookups == 2);
}

static void request_has_a_deadline_and_finds_patterns(void) {
  static const char *const patterns[] = {"none", "SECOND", "boxer"};
  pm_match *matches;
  CHECK(pm_find_any(patterns, 3, false, &matches) == 1);
  CHECK(matches[0].pattern == 2 && matches[0].message == 0 && matches[0].offset == 7);
  CHECK(pm_find_any(patterns, 3, true, &matches) == 2);
  CHECK(matches[0].pattern == 1 && matches[0].message == 1 && matches[0].offset == 2);
  CHECK(matches[1].pattern == 2 && matches[1].message == 0);
  CHECK(pm_find_any(patterns, 0, true, &matches) == 0);
  uint32_t ms = 1;
  CHECK(!pm_deadline_ms(&ms) && ms == 1);
  has_deadline = true;
  CHECK(pm_deadline_ms(&ms) && ms == 900);
}

static void lanes_left_are_those_of_the_host(void) {
  CHECK(pm_lanes_left().len == 0);
  lanes_left = 2;
  pm_lane_list left = pm_lanes_left();
  CHECK(left.len == 2 && pm_lanes_contain(left.ptr, left.len, 6));
  CHECK(!pm_lanes_contain(left.ptr, left.len, 1));
}

static void policy_learns_all_attempts_and_its_own_notes(void) {
  pointsman_policy_types_attempt_t attempts[] = {
      {.lane = 0, .ended = POINTSMAN_POLICY_TYPES_TRY_RESULT_SERVER_ERROR, .status = 500},
      {.lane = 1, .ended = POINTSMAN_POLICY_TYPES_TRY_RESULT_OK, .status = 200},
  };
  pm_advice advice = {0};
  pm_note_text(&advice, "session", pm_literal("s1"));
  pm_finished finished = {.outcome = {.lane = 1, .tries = 2},
                          .attempts = {attempts, 2},
                          .notes = {advice.notes.ptr, advice.notes.len}};
  exports_pointsman_policy_on_outcome_list_finished_t done = {&finished, 1};
  exports_pointsman_policy_on_outcome_learn(7, &done);
  CHECK(counter == 7 && strcmp(counted, "s1: 500") == 0);
}

static void describe_returns_name_version_and_hints(void) {
  exports_pointsman_policy_lifecycle_description_t description;
  exports_pointsman_policy_lifecycle_describe(&description);
  CHECK(is(description.name, "p") && is(description.version, "1"));
  CHECK(description.hints.len == 1 && is(description.hints.ptr[0], "h"));
}

int main(void) {
  random_numbers_are_the_same_in_all_sdks();
  describe_returns_name_version_and_hints();
  configuration_errors_name_the_key();
  strings_are_unescaped();
  calls_release_memory_and_the_configuration_stays();
  advice_builds_the_contract_record();
  lane_ids_are_cached_per_topology();
  request_has_a_deadline_and_finds_patterns();
  lanes_left_are_those_of_the_host();
  policy_learns_all_attempts_and_its_own_notes();
  printf("%d failures\n", failures);
  return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
