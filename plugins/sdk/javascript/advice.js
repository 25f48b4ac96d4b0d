// Short ways to say common things. An `Advice` has exactly the fields of the contract's record, so it crosses the border as
// it is; its methods live on the prototype.

/** What a policy advises for one request. Begin with `any`, `only`, `avoid`, `ordered`, `scores`, `blend` or `reject`. */
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

  /** With the reason that people are shown. */
  because(why) {
    return this.note("why", why);
  }

  /** With an explanation for the decision log: a boolean, a whole number or a text. */
  note(key, value) {
    this.notes.push({ key, value: scalar(key, value) });
    return this;
  }

  /** With a hint, which `describe` has to name. */
  hint(key, value) {
    this.hints.push({ key, value: scalar(key, value) });
    return this;
  }

  /** With this place in the host's queue: higher goes first, 0 is normal. */
  withPriority(priority) {
    this.#queue().priority = priority;
    return this;
  }

  /** Sharing capacity fairly with other flows of the same priority. */
  inFlow(flow) {
    this.#queue().flow = flow;
    return this;
  }

  /** Waiting at most so long, and then falling back or being refused. */
  waitingAtMost(ms, onTimeout = "fall-back") {
    const queue = this.#queue();
    queue.maxWaitMs = ms;
    queue.onTimeout = onTimeout;
    return this;
  }

  /** With these fallbacks, in order: lane ids, or `{ lane, edits }`. */
  fallingBackTo(lanes, { on = EVERY_TRIGGER, firstTokenMs = null } = {}) {
    const steps = lanes.map((step) => (typeof step === "number" ? { lane: step, edits: [] } : step));
    this.fallback = { on: { ...NO_TRIGGER, ...on }, steps, firstTokenMs };
    return this;
  }

  /** Lanes may be exchanged for this request `"never"`, `"when-idle"` or as the host sees fit (`"allow"`). */
  withSwitching(switching) {
    this.switching = switching;
    return this;
  }

  /** With these changes to the request; see `edits`. */
  editing(...changes) {
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
const EVERY_TRIGGER = Object.freeze(triggers(true));
const NO_TRIGGER = Object.freeze(triggers(false));

/** No opinion about lanes. */
export const any = () => new Advice({ tag: "any" });
/** Only these lanes will do. */
export const only = (lanes) => new Advice({ tag: "only", val: [...lanes] });
/** All but these lanes will do. */
export const avoid = (lanes) => new Advice({ tag: "avoid", val: [...lanes] });
/** These lanes, best first. */
export const ordered = (lanes) => new Advice({ tag: "ordered", val: [...lanes] });
/** Scores from 0 to 1000, as pairs of lane id and score: `scores([[0, 900], [2, 100]])`, or a `Map`. */
export const scores = (pairs) =>
  new Advice({ tag: "scores", val: Array.from(pairs, ([lane, score]) => ({ lane, score })) });
/** The host scores the candidates by weighted figures: `blend({ "est-wait": 700, "cached-tokens": 300 })`. */
export const blend = (weights) =>
  new Advice({ tag: "blend", val: Object.entries(weights).map(([metric, weight]) => ({ metric, weight })) });

/** Refuse the request: 400 to 499, or 503. */
export function reject(status, code, message, { retryAfterS = null } = {}) {
  const advice = any();
  advice.reject = { status, code, message, retryAfterS };
  return advice;
}

/** Changes to the request, for `editing` and for fallback steps. */
export const edits = {
  setModel: (model) => ({ tag: "set-model", val: model }),
  capOutputTokens: (tokens) => ({ tag: "cap-output-tokens", val: tokens }),
  /** Sets a field of the body by JSON Pointer, to any value that JSON has. */
  setField: (pointer, value) => ({ tag: "set-field", val: [pointer, JSON.stringify(value)] }),
  removeField: (pointer) => ({ tag: "remove-field", val: pointer }),
  prependSystem: (text) => ({ tag: "prepend-system", val: text }),
  keepLastMessages: (count) => ({ tag: "keep-last-messages", val: count }),
  setHeader: (name, value) => ({ tag: "set-header", val: [name, value] }),
  removeHeader: (name) => ({ tag: "remove-header", val: name }),
};

function scalar(key, value) {
  if (typeof value === "boolean") return { tag: "flag", val: value };
  if (typeof value === "string") return { tag: "text", val: value };
  if (Number.isSafeInteger(value)) return { tag: "int", val: value };
  throw new TypeError(`the note or hint \`${key}\` is no boolean, whole number or text`);
}
