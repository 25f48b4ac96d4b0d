// The clock, the random numbers and the console of a component.

import assert from "node:assert/strict";
import test from "node:test";
import { runInNewContext } from "node:vm";

import { begin, hostConsole, replaceClock } from "../ambient.js";
import { any } from "../pointsman.js";
import { configure, fakeFleet, fakeRequest } from "../testing.js";

const NOW_MS = 1_700_000_000_123;
const fleet = fakeFleet(["alpha"]);

/** Returns globals of their own, as a component has them. */
function globals() {
  const replaced = runInNewContext("globalThis");
  replaceClock(replaced);
  return replaced;
}

/** Calls a policy's `advise` at `NOW_MS`, and returns the lines that it logged. */
function linesOf(advise) {
  const policy = { name: "p", version: "1", configure: () => ({ advise }) };
  const tested = configure(policy);
  tested.advise(fakeRequest("hi", { context: { nowMs: NOW_MS, seed: 7 } }), fleet);
  return tested.log;
}

test("a component has the clock of the call", () => {
  const { Date } = globals();
  linesOf(() => {
    assert.equal(Date.now(), NOW_MS);
    assert.equal(new Date().getTime(), NOW_MS);
    assert.equal(new Date(5).getTime(), 5);
    assert.match(Date(), /2023/);
    assert.ok(new Date() instanceof Date && new Date(5).constructor === Date);
    return any();
  });
});

test("configure has no clock, and no call can measure time", () => {
  const { Date, performance } = globals();
  begin({ log: { enabled: () => true } }, null, 0);
  assert.throws(() => Date.now(), /time of a call/);
  assert.throws(() => new Date(), /time of a call/);
  assert.throws(() => performance.now(), /measured/);
});

test("random numbers follow from the seed of the call", () => {
  const { Math } = globals();
  const draw = () => {
    const drawn = [];
    linesOf(() => {
      for (let at = 0; at < 100; at += 1) drawn.push(Math.random());
      return any();
    });
    return drawn;
  };
  const first = draw();
  assert.deepEqual(draw(), first);
  assert.equal(new Set(first).size, 100);
  assert.ok(first.every((number) => number >= 0 && number < 1));
});

test("the console writes to the log", () => {
  const lines = linesOf(() => {
    hostConsole.log("text", 5, { a: [1] }, null, undefined, 3n);
    hostConsole.debug("d");
    hostConsole.warn("w");
    const cyclic = {};
    cyclic.self = cyclic;
    hostConsole.error(new TypeError("bad"), cyclic);
    return any();
  });
  assert.deepEqual(lines, [
    { level: "info", message: 'text 5 {"a":[1]} null undefined 3' },
    { level: "debug", message: "d" },
    { level: "warn", message: "w" },
    { level: "error", message: "TypeError: bad [object Object]" },
  ]);
});
