// `assert` reports the expression and its location to the host.
#ifndef POINTSMAN_ASSERT_H
#define POINTSMAN_ASSERT_H

#include "../pointsman.h"

#define assert(condition) ((condition) ? (void)0 : pm_panic("assertion failed: " #condition))

#endif
