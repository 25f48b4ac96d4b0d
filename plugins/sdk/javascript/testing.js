// Fake requests, fleets and hosts for tests in Node. They behave as the contract specifies.

import { bind } from "./bind.js";
import { scalar } from "./advice.js";
import { FakeState, facts, findAny, messageInfos, texts } from "./fakes.js";

/**
 * Creates a fleet. Lanes are names, or objects with fields of `lane-info` and `lane-stat`.
 * `lanesLeft` are the names of those that the filters of earlier policies leave; null for all.
 */
export function fakeFleet(lanes, topology = 1, lanesLeft = null) {
  return {
    lanes: lanes.map((lane) => (typeof lane === "string" ? { name: lane } : lane)),
    topology,
    lanesLeft,
  };
}

/** Creates a finished request of one attempt, for `learn`. `outcome` has fields of `outcome`. */
export function fakeFinished(outcome = {}, { attempts = null, notes = {} } = {}) {
  const full = {
    requestId: "test",
    tenant: null,
    model: "auto",
    lane: 0,
    topology: 1,
    ended: "ok",
    tries: attempts?.length ?? 1,
    queueMs: 0,
    ttftMs: 0,
    totalMs: 0,
    promptTokens: 0,
    cachedTokens: 0,
    outputTokens: 0,
    ...outcome,
  };
  const single = { lane: full.lane, ended: full.ended, status: full.ended === "ok" ? 200 : 0 };
  const all = attempts ?? [{ ...single, queueMs: full.queueMs, tookMs: full.totalMs }];
  const fill = (attempt) => ({ status: 0, queueMs: 0, tookMs: 0, ...attempt });
  return {
    outcome: full,
    attempts: all.map(fill),
    notes: Object.entries(notes).map(([key, value]) => ({ key, value: scalar(key, value) })),
  };
}

/** Creates a chat request with these messages, or with one user message. */
export function fakeRequest(
  content,
  {
    model = "auto",
    headers = {},
    tenant = null,
    endpointKind = "chat-completions",
    keyGroup = null,
    keyName = null,
    allowance = {},
    deadlineMs = null,
    context = {},
    body = {},
  } = {},
) {
  const messages = typeof content === "string" ? [{ role: "user", content }] : content;
  return {
    body: { model, messages, ...body },
    headers,
    tenant,
    endpointKind,
    keyGroup,
    keyName,
    allowance: { requests: null, tokens: null, budget: null, ...allowance },
    deadlineMs,
    context,
  };
}

/**
 * Configures a policy on a fake host and returns its hooks. `state` are entries that the state has:
 * numbers are counters. Entries expire by `nowMs` of the calls.
 */
export function configure(policy, config = {}, { state = {} } = {}) {
  const host = new FakeHost(state);
  const exports = bind(policy, host.interfaces());
  exports.lifecycle.configure(JSON.stringify(config));
  return {
    log: host.lines,
    counters: host.counters,
    state: host.state,
    advise: (request, fleet) => exports.onRequest.advise(host.begin(request, fleet)),
    recover: (request, fleet, failed) =>
      exports.onFailure.recover(host.begin(request, fleet), failed),
    observe: (nowMs, done) => exports.onComplete.observe(host.at(nowMs), done),
    learn: (nowMs, done) => exports.onOutcome.learn(host.at(nowMs), done),
    tick: (nowMs, seed) => exports.onTick.tick(host.at(nowMs), seed),
  };
}

// The endpoints that `context.endpoint` names; for all others it is `other`.
const ENUM_ENDPOINTS = new Set(["chat-completions", "completions", "responses", "embeddings"]);

class FakeHost {
  lines = [];
  counters = new Map();
  #request = fakeRequest("");
  #fleet = fakeFleet([]);
  state = new FakeState();

  constructor(entries) {
    for (const [key, value] of Object.entries(entries)) this.state.set(key, value);
  }

  /** Sets the time of the next call. */
  at(nowMs) {
    this.state.nowMs = nowMs;
    return nowMs;
  }

  begin(request, fleet) {
    this.#request = request;
    this.#fleet = fleet;
    const context = {
      nowMs: 0,
      seed: 0,
      topology: fleet.topology,
      ageUs: 0,
      budgetUs: 5000,
      attempt: 0,
      endpoint: ENUM_ENDPOINTS.has(request.endpointKind) ? request.endpointKind : "other",
      ...facts(request.body),
      ...request.context,
    };
    this.at(context.nowMs);
    return context;
  }

  interfaces() {
    return {
      request: this.#requestInterface(),
      fleet: this.#fleetInterface(),
      log: this.#logInterface(),
      metrics: this.#metricsInterface(),
      state: this.state,
    };
  }

  #requestInterface() {
    return {
      id: () => "test",
      model: () => this.#request.body.model,
      tenant: () => this.#request.tenant,
      header: (name) => {
        const found = Object.entries(this.#request.headers).find(([key]) =>
          equalIgnoreCase(key, name),
        );
        return found === undefined ? null : found[1];
      },
      field: (pointer, maxBytes) => {
        const value = resolvePointer(this.#request.body, pointer);
        if (value === undefined) return { tag: "absent" };
        const json = JSON.stringify(value);
        return byteLength(json) > maxBytes
          ? { tag: "too-large", val: byteLength(json) }
          : { tag: "json", val: json };
      },
      messages: () => messageInfos(this.#request.body),
      text: (index, offset, maxBytes) => slice(this.#texts()[index] ?? "", offset, maxBytes),
      body: (offset, maxBytes) =>
        new TextEncoder()
          .encode(JSON.stringify(this.#request.body))
          .slice(offset, offset + maxBytes),
      contains: (needle, ignoreCase) =>
        this.#texts().some((text) =>
          ignoreCase ? lower(text).includes(lower(needle)) : text.includes(needle),
        ),
      prefixHashes: (blockBytes, maxBlocks) =>
        prefixHashes(this.#texts().join(""), blockBytes, maxBlocks),
      endpointKind: () => this.#request.endpointKind,
      keyGroup: () => this.#request.keyGroup,
      keyName: () => this.#request.keyName,
      allowance: () => this.#request.allowance,
      deadlineMs: () => this.#request.deadlineMs,
      findAny: (patterns, ignoreCase) =>
        ignoreCase
          ? findAny(patterns.map(lower), this.#texts().map(lower))
          : findAny(patterns, this.#texts()),
    };
  }

  #fleetInterface() {
    const lanes = () => this.#fleet.lanes;
    const ids = (matches) => lanes().flatMap((lane, id) => (matches(lane) ? [id] : []));
    const candidates = () =>
      ids((lane) => (lane.models ?? [lane.name, "auto"]).includes(this.#request.body.model));
    const isLeft = (id) => this.#fleet.lanesLeft?.includes(lanes()[id].name) ?? true;
    return {
      stats: () => lanes().map(stat),
      stat: (id) => (id < lanes().length ? stat(lanes()[id], id) : null),
      candidates: () => candidates(),
      lanesLeft: () => candidates().filter(isLeft),
      info: (id) => (id < lanes().length ? info(lanes()[id], id) : null),
      find: (name) => ids((lane) => lane.name === name)[0] ?? null,
      withLabel: (key, value) => ids((lane) => lane.labels?.[key] === value),
    };
  }

  #logInterface() {
    return {
      write: (level, message) => {
        this.lines.push({ level, message });
      },
      enabled: () => true,
    };
  }

  #metricsInterface() {
    const add = (name, value) => {
      this.counters.set(name, (this.counters.get(name) ?? 0) + value);
    };
    return { add, recordValue: add };
  }

  #texts() {
    return texts(this.#request.body);
  }
}

const info = (lane, id) => ({
  id,
  name: lane.name,
  engine: "vllm",
  models: lane.models ?? [lane.name, "auto"],
  labels: Object.entries(lane.labels ?? {}),
  maxContext: lane.maxContext ?? 0,
  slots: lane.slots ?? 4,
  group: lane.group ?? 0,
  costMilli: lane.costMilli ?? 0,
});

const stat = (lane, id) => ({
  id,
  state: lane.state ?? "ready",
  running: 0,
  waiting: 0,
  queued: 0,
  slotsFree: lane.slots ?? 4,
  kvUsed: 0,
  errors: 0,
  ttftP50Ms: 0,
  ttftP99Ms: 0,
  decodeTps: 0,
  estWaitMs: 0,
  readyInMs: 0,
  displaces: 0,
  cachedTokens: 0,
  staleMs: 0,
  ...lane.stat,
});

const byteLength = (text) => new TextEncoder().encode(text).length;
const lower = (text) => text.replace(/[A-Z]/g, (letter) => letter.toLowerCase());
const equalIgnoreCase = (one, other) => lower(one) === lower(other);

// Trims inwards to character boundaries, as the contract specifies.
function slice(text, offset, maxBytes) {
  const bytes = new TextEncoder().encode(text);
  const isContinuation = (at) => at < bytes.length && (bytes[at] & 0xc0) === 0x80;
  let begin = Math.min(offset, bytes.length);
  let end = Math.min(offset + maxBytes, bytes.length);
  while (isContinuation(begin)) begin += 1;
  while (isContinuation(end)) end -= 1;
  return end <= begin ? "" : new TextDecoder().decode(bytes.slice(begin, end));
}

function resolvePointer(value, pointer) {
  if (pointer === "") return value;
  const steps = pointer
    .split("/")
    .slice(1)
    .map((step) => step.replaceAll("~1", "/").replaceAll("~0", "~"));
  return steps.reduce(
    (at, step) => (at !== null && typeof at === "object" ? at[step] : undefined),
    value,
  );
}

// 64-bit FNV-1a. Hashes cross the component boundary as numbers, which are exact up to 2^53.
function prefixHashes(text, blockBytes, maxBlocks) {
  const bytes = new TextEncoder().encode(text);
  const hashes = [];
  let hash = 0xcbf29ce484222325n;
  for (let at = 0; at < bytes.length && blockBytes > 0 && hashes.length < maxBlocks; at += 1) {
    hash = BigInt.asUintN(64, (hash ^ BigInt(bytes[at])) * 0x100000001b3n);
    if ((at + 1) % blockBytes === 0) hashes.push(Number(hash));
  }
  return hashes;
}
