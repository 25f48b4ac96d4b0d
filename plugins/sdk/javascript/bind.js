// What every hook has in common, apart from where the host's functions come from: the tests have a host of their own.

import { PolicyError } from "./config.js";

/** All exports of the contract's world `full-policy`, made of a policy and the host's interfaces. */
export function bind(policy, host) {
  let configured = null;
  // One object for all calls: only its context changes.
  const call = { context: null, ...host };
  const asked = () => {
    if (configured === null) throw failure(new Error("asked before it was configured"));
    return configured;
  };
  const lifecycle = {
    describe: () => ({ name: policy.name, version: policy.version, hints: policy.hints ?? [] }),
    configure: (config) => guarded(() => { configured = policy.configure(config, host); }),
  };
  const onRequest = {
    advise: (context) => {
      call.context = context;
      return guarded(() => asked().advise(call));
    },
  };
  const onFailure = {
    recover: (context, failed) => {
      call.context = context;
      return guarded(() => asked().recover?.(call, failed) ?? { tag: "planned" });
    },
  };
  const onComplete = { observe: (nowMs, done) => { asked().observe?.(nowMs, done, host); } };
  const onTick = { tick: (nowMs, seed) => asked().tick?.(nowMs, seed, host) ?? [] };
  return { lifecycle, onRequest, onFailure, onComplete, onTick };
}

// A thrown value becomes the error of the contract; anything else that is thrown would be a trap, and cost the instance.
function guarded(work) {
  try {
    return work();
  } catch (error) {
    throw failure(error);
  }
}

function failure(error) {
  if (error instanceof PolicyError) return { tag: error.tag, val: error.message };
  if (typeof error?.tag === "string") return error;
  return { tag: "other", val: String(error) };
}
