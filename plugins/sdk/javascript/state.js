// The state of a policy, with texts and counters besides the bytes of the contract.

import { Decoder, Encoder } from "./text.js";

/** Why a value was not stored: `full`, `too-long` or `not-a-counter`. */
export class StateError extends Error {
  constructor(code, key) {
    super(`state entry \`${key.slice(0, 40)}\`: ${code}`);
    this.name = "StateError";
    this.code = code;
  }
}

/** Wraps the contract's interface `state`. */
export const state = (host) => ({
  get: (key) => host.get(key),
  /** Stores bytes or a text for `ttlMs` milliseconds; with 0 it does not expire. */
  put: (key, value, ttlMs = 0) => {
    const bytes = typeof value === "string" ? new Encoder().encode(value) : value;
    return stored(key, () => host.put(key, bytes, ttlMs));
  },
  /** Returns an entry that was stored as a text, or null. */
  getText: (key) => {
    const bytes = host.get(key) ?? null;
    return bytes === null ? null : new Decoder().decode(bytes);
  },
  /** Returns the value of a counter, or null. */
  getCounter: (key) => {
    const bytes = host.get(key) ?? null;
    // The host returns a counter as 8 bytes, the lowest first.
    if (bytes?.length !== 8) return null;
    return Number(new DataView(Uint8Array.from(bytes).buffer).getBigInt64(0, true));
  },
  delete: (key) => host.delete(key),
  /** Adds to a counter and returns its new value. */
  increment: (key, by = 1, ttlMs = 0) => stored(key, () => host.increment(key, by, ttlMs)),
});

function stored(key, work) {
  try {
    return work();
  } catch (error) {
    // The bindings throw the case of the contract, which has no stack.
    const code = typeof error === "string" ? error : (error?.payload ?? error?.tag);
    throw typeof code === "string" ? new StateError(code, key) : error;
  }
}
