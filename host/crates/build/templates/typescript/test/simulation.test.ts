// The built component in the program `pointsman`: golden cases and scenarios.

import assert from "node:assert/strict";
import { existsSync } from "node:fs";
import test from "node:test";

import { failures, hasPointsman, testPolicy } from "../sdk/simulation.js";

const isBuilt = existsSync("policy.wasm") && hasPointsman();

test("golden cases and scenarios pass", { skip: isBuilt ? false : "not built" }, () => {
  assert.deepEqual(failures(testPolicy(".")), []);
});
