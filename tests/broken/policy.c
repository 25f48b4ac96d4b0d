// Fails in `advise`, at the line with a marker: the checks of the compiler find it.
#include "pointsman.h"

static int waits[4];

static bool configure(pm_text json, pm_error *error) {
  (void)json, (void)error;
  return true;
}

static bool advise(const pm_context *context, pm_advice *advice, pm_error *error) {
  (void)error;
  pm_note_int(advice, "wait", waits[context->messages + 3]);  // advise fails here
  return true;
}

const pm_policy pm_self = {
    .name = "broken-c", .version = "0.1.0", .configure = configure, .advise = advise};
