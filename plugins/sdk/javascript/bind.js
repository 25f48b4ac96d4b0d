// The exports of a policy component, independent of the source of the host's functions: a component
// passes its imports, and tests pass a fake host.

import { PolicyError } from "./config.js";

/** Returns the exports of the contract's world `full-policy` for a policy on this host. */
export function bind(policy, host) {
  let advisor = null;
  // Reused by all calls, because allocation is expensive in QuickJS; only the context changes.
  const call = { context: null, ...host };
  const configured = () => {
    if (advisor === null) throw toContractError(new Error("called before configure"));
    return advisor;
  };
  const lifecycle = {
    describe: () => ({ name: policy.name, version: policy.version, hints: policy.hints ?? [] }),
    configure: (config) =>
      guarded(() => {
        advisor = policy.configure(config, host);
      }),
  };
  const onRequest = {
    advise: (context) => {
      call.context = context;
      return guarded(() => configured().advise(call));
    },
  };
  const onFailure = {
    recover: (context, failed) => {
      call.context = context;
      return guarded(() => configured().recover?.(call, failed) ?? { tag: "planned" });
    },
  };
  const onComplete = {
    observe: (nowMs, done) => {
      configured().observe?.(nowMs, done, host);
    },
  };
  const onTick = { tick: (nowMs, seed) => configured().tick?.(nowMs, seed, host) ?? [] };
  return { lifecycle, onRequest, onFailure, onComplete, onTick };
}

// Converts exceptions to contract errors. An uncaught exception would be a trap, which costs the
// instance.
function guarded(work) {
  try {
    return work();
  } catch (error) {
    throw toContractError(error);
  }
}

function toContractError(error) {
  if (error instanceof PolicyError) return { tag: error.tag, val: error.message };
  if (typeof error?.tag === "string") return error;
  return { tag: "other", val: String(error) };
}
