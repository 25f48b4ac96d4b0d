// The exports of a policy component, independent of the source of the host's functions: a component
// passes its imports, and tests pass a fake host.

import { begin } from "./ambient.js";
import { PolicyError } from "./config.js";
import { MethodError, messageOf, reportFault } from "./fault.js";
import { state } from "./state.js";

/** The cases of the contract's `policy-error`. */
const CONTRACT_ERRORS = new Set(["invalid-config", "unsupported", "out-of-budget", "other"]);

/** Returns the exports of a policy on this host, with all optional hooks. */
export function bind(policy, imports) {
  let advisor = null;
  const host = { ...imports, state: state(imports.state) };
  // Reused by all calls, because allocation is expensive in QuickJS; only the context changes.
  const call = { context: null, ...host };
  const configured = () => {
    if (advisor === null) throw new Error("called before configure");
    return advisor;
  };
  const beginCall = (context) => {
    call.context = context;
    begin(host, context.nowMs, context.seed);
  };
  // Converts exceptions to contract errors. An uncaught exception would be a trap, which costs the
  // instance.
  const guarded = (work) => {
    try {
      return work();
    } catch (error) {
      throw toContractError(host.log, error);
    }
  };
  // Reports an exception of a hook that cannot return an error, and which therefore traps.
  const reported = (work) => {
    try {
      return work();
    } catch (error) {
      reportFault(host.log, error);
      throw error;
    }
  };
  const lifecycle = {
    describe: () => ({ name: policy.name, version: policy.version, hints: policy.hints ?? [] }),
    configure: (config) =>
      guarded(() => {
        begin(host, null, 0);
        advisor = checkAdvisor(method(policy, "policy", "configure")(config, host), policy);
      }),
  };
  const onRequest = {
    advise: (context) => {
      beginCall(context);
      return guarded(() => checkAdvice(configured().advise(call), advisor.advise));
    },
  };
  const onFailure = {
    recover: (context, failed) => {
      beginCall(context);
      return guarded(() => checkRecovery(configured().recover?.(call, failed), advisor.recover));
    },
  };
  const onComplete = {
    observe: (nowMs, done) => {
      reported(() => {
        begin(host, nowMs, nowMs);
        const result = configured().observe?.(nowMs, done, host);
        checkSynchronous(result, "observe", advisor.observe);
      });
    },
  };
  const onOutcome = {
    learn: (nowMs, done) => {
      reported(() => {
        const result = configured().learn?.(nowMs, done, host);
        checkSynchronous(result, "learn", advisor.learn);
      });
    },
  };
  const onTick = {
    tick: (nowMs, seed) =>
      reported(() => {
        begin(host, nowMs, seed);
        return checkHints(configured().tick?.(nowMs, seed, host), advisor.tick);
      }),
  };
  return { lifecycle, onRequest, onFailure, onComplete, onOutcome, onTick };
}

function method(object, owner, name) {
  if (typeof object[name] === "function") return object[name].bind(object);
  throw new MethodError(`the ${owner} has no method \`${name}\``);
}

function checkAdvisor(advisor, policy) {
  checkSynchronous(advisor, "configure", policy.configure);
  if (typeof advisor?.advise === "function") return advisor;
  throw new MethodError(
    `configure returned ${describe(advisor)}, not an object with the method \`advise\``,
    policy.configure,
  );
}

function checkAdvice(advice, advise) {
  checkSynchronous(advice, "advise", advise);
  if (typeof advice?.lanes?.tag === "string") return advice;
  throw new MethodError(`advise returned ${describe(advice)}, not Advice`, advise);
}

function checkRecovery(recovery, recover) {
  checkSynchronous(recovery, "recover", recover);
  if (recovery === undefined || recovery === null) return { tag: "planned" };
  if (typeof recovery.tag === "string") return recovery;
  throw new MethodError(`recover returned ${describe(recovery)}, not a recovery`, recover);
}

function checkHints(hints, tick) {
  checkSynchronous(hints, "tick", tick);
  if (hints === undefined || hints === null) return [];
  if (Array.isArray(hints)) return hints;
  throw new MethodError(`tick returned ${describe(hints)}, not a list of hints`, tick);
}

function checkSynchronous(result, name, hook) {
  if (typeof result?.then !== "function") return;
  throw new MethodError(
    `${name} returned a promise; hooks are called synchronously, so they must not be async`,
    hook,
  );
}

function describe(value) {
  if (value === null || value === undefined) return String(value);
  if (typeof value === "object") return `an object of type ${value.constructor?.name ?? "Object"}`;
  return `a ${typeof value}`;
}

function toContractError(log, error) {
  if (error instanceof PolicyError) return { tag: error.tag, val: error.message };
  if (CONTRACT_ERRORS.has(error?.tag)) return error;
  reportFault(log, error);
  return { tag: "other", val: messageOf(error) };
}
