import assert from "node:assert/strict";
import test from "node:test";

import { configure, fakeFleet, fakeRequest } from "../sdk/testing.js";
import policy from "../src/policy.js";

const fleet = fakeFleet(["quick", "reader"]);

test("a long prompt goes to the long lane", () => {
  const advisor = configure(policy, { "long-lane": "reader", "long-tokens": 3 });
  const advice = advisor.advise(fakeRequest("a prompt of more than three tokens"), fleet);
  assert.deepEqual((advice as unknown as { lanes: unknown }).lanes, { tag: "only", val: [1] });
});

test("an invalid configuration names the key", () => {
  const expected = { tag: "invalid-config", val: "long-lane: expected a string, found 5" };
  assert.throws(() => configure(policy, { "long-lane": 5 }), expected);
});
