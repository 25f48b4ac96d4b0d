// Constructors and builder methods for advice. An `Advice` has exactly the fields of the contract's
// record, so that it crosses the component boundary as it is; its methods are on the prototype.

/** Advice for one request, created by `any`, `only`, `avoid` and the other functions below. */
export class Advice {
  constructor(lanes) {
    this.reject = null;
    this.lanes = lanes;
    this.switching = null;
    this.queue = null;
    this.fallback = null;
    this.edits = [];
    this.notes = [];
    this.hints = [];
  }

  /** Adds the reason shown to operators and clients, as the note `why`. */
  withReason(reason) {
    return this.withNote("why", reason);
  }

  /** Adds a note for the decision log: a boolean, an integer or a string. */
  withNote(key, value) {
    this.notes.push({ key, value: scalar(key, value) });
    return this;
  }

  /** Adds a hint. The policy has to list the key in its `hints`. */
  withHint(key, value) {
    this.hints.push({ key, value: scalar(key, value) });
    return this;
  }

  /** Sets the queue priority: higher goes first, 0 is normal. */
  withPriority(priority) {
    this.#queue().priority = priority;
    return this;
  }

  /** Sets the flow. Flows of the same priority share capacity fairly. */
  withFlow(flow) {
    this.#queue().flow = flow;
    return this;
  }

  /** Sets the maximum wait in the queue, after which the request falls back or is rejected. */
  withMaxWait(ms, onTimeout = "fall-back") {
    const queue = this.#queue();
    queue.maxWaitMs = ms;
    queue.onTimeout = onTimeout;
    return this;
  }

  /** Sets the fallbacks, in order: lane ids, or `{ lane, edits }`. */
  withFallback(lanes, { on = null, firstTokenMs = null } = {}) {
    const steps = lanes.map((step) =>
      typeof step === "number" ? { lane: step, edits: [] } : step,
    );
    const events = on === null ? triggers(true) : { ...triggers(false), ...on };
    this.fallback = { on: events, steps, firstTokenMs };
    return this;
  }

  /** Sets whether lanes may be switched for this request: `"never"`, `"when-idle"` or `"allow"`. */
  withSwitching(switching) {
    this.switching = switching;
    return this;
  }

  /** Adds edits of the request; see `edits`. */
  withEdits(...changes) {
    this.edits.push(...changes);
    return this;
  }

  #queue() {
    this.queue ??= { priority: 0, flow: null, maxWaitMs: null, onTimeout: "fall-back" };
    return this.queue;
  }
}

const triggers = (value) => ({
  queueTimeout: value,
  connectError: value,
  overloaded: value,
  serverError: value,
  engineRestart: value,
  firstTokenTimeout: value,
});

/** Returns advice without an opinion about lanes. */
export const any = () => new Advice({ tag: "any" });
/** Returns advice that allows only these lanes. */
export const only = (lanes) => new Advice({ tag: "only", val: [...lanes] });
/** Returns advice that excludes these lanes. */
export const avoid = (lanes) => new Advice({ tag: "avoid", val: [...lanes] });
/** Returns advice that allows only these lanes and ranks them, best first. */
export const ordered = (lanes) => new Advice({ tag: "ordered", val: [...lanes] });
/** Returns scores from 0 to 1000, given as pairs of lane id and score or as a `Map`. */
export const scores = (pairs) =>
  new Advice({ tag: "scores", val: Array.from(pairs, ([lane, score]) => ({ lane, score })) });
/** Lets the host score the lanes by weighted metrics, for example `{ "est-wait": 700 }`. */
export const blend = (weights) =>
  new Advice({
    tag: "blend",
    val: Object.keys(weights).map((metric) => ({ metric, weight: weights[metric] })),
  });

/** Rejects the request with an HTTP status (400 to 499, or 503), a stable code and a message. */
export function reject(status, code, message, { retryAfterS = null } = {}) {
  const advice = any();
  advice.reject = { status, code, message, retryAfterS };
  return advice;
}

/** Edits of the request, for `withEdits` and for fallback steps. */
export const edits = {
  setModel: (model) => ({ tag: "set-model", val: model }),
  capOutputTokens: (tokens) => ({ tag: "cap-output-tokens", val: tokens }),
  /** Sets a field of the body, by JSON Pointer, to a JSON value. */
  setField: (pointer, value) => ({ tag: "set-field", val: [pointer, JSON.stringify(value)] }),
  removeField: (pointer) => ({ tag: "remove-field", val: pointer }),
  prependSystem: (text) => ({ tag: "prepend-system", val: text }),
  keepLastMessages: (count) => ({ tag: "keep-last-messages", val: count }),
  setHeader: (name, value) => ({ tag: "set-header", val: [name, value] }),
  removeHeader: (name) => ({ tag: "remove-header", val: name }),
};

/** Converts the value of a note or hint. */
export function scalar(key, value) {
  if (typeof value === "boolean") return { tag: "flag", val: value };
  if (typeof value === "string") return { tag: "text", val: value };
  if (Number.isSafeInteger(value)) return { tag: "int", val: value };
  throw new TypeError(`note or hint \`${key}\`: expected a boolean, an integer or a string`);
}
