// What a policy has instead of the clock, the random numbers and the console of other programs. Time
// and seed are those of the running call, so that a call has the same result when it is repeated or
// replayed.

import { Random } from "./random.js";

/** The methods of the console, with the levels of the log. */
const LEVELS = {
  debug: "debug",
  trace: "debug",
  log: "info",
  info: "info",
  warn: "warn",
  error: "error",
};

/** The log of the host; null while the component is built, when there is no host. */
let log = null;
/** The time of the call in milliseconds; null if it has none. */
let now = null;
let seed = 0;
let random = null;

/** Begins a call. `nowMs` is null in `configure`, which has no time. */
export function begin(host, nowMs, callSeed) {
  log = host.log;
  now = nowMs;
  seed = callSeed;
  random = null;
}

/** A console that writes to the policy's log. It is silent while a component is built. */
export const hostConsole = Object.fromEntries(
  Object.entries(LEVELS).map(([method, level]) => [
    method,
    (...values) => {
      if (log?.enabled(level)) log.write(level, values.map((value) => shown(value)).join(" "));
    },
  ]),
);

/**
 * Replaces the clock and the random numbers of these globals. While the component is built, they do
 * what they did.
 */
export function replaceClock(globals) {
  const Real = globals.Date;
  const [realNow, realRandom] = [Real.now, globals.Math.random];
  const nowMs = () => {
    if (log === null) return realNow.call(Real);
    if (now !== null) return now;
    throw new Error("`configure` has no clock; use the time of a call");
  };
  const construct = (target, values, newTarget) =>
    Reflect.construct(target, values.length === 0 ? [nowMs()] : values, newTarget);
  globals.Date = new Proxy(Real, { construct, apply: () => new Real(nowMs()).toString() });
  Real.now = nowMs;
  Real.prototype.constructor = globals.Date;
  globals.Math.random = () => {
    if (log === null) return realRandom();
    // Other numbers than those of `Random` with the seed of the call.
    random ??= new Random(seed + 1);
    return Number(random.next() >> 11n) / 2 ** 53;
  };
  globals.performance = {
    now: () => {
      throw new Error("time stands still during a call, so that it cannot be measured");
    },
  };
}

function shown(value) {
  if (typeof value === "string") return value;
  if (typeof value !== "object" || value === null || value instanceof Error) return String(value);
  try {
    return JSON.stringify(value);
  } catch {
    return String(value);
  }
}
