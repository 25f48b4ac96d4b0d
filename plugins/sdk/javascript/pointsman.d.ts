// Types of the SDK, for TypeScript and editors. The data types are documented in wit/types.wit; here
// their names are in camelCase.

export type LaneId = number;
export type Endpoint = "chat-completions" | "completions" | "responses" | "embeddings" | "other";
export type LaneState = "unloaded" | "starting" | "ready" | "degraded" | "draining" | "down";
export type EngineKind = "vllm" | "llama-cpp" | "external" | "other";
export type Role = "system" | "user" | "assistant" | "tool" | "other";
export type Level = "trace" | "debug" | "info" | "warn" | "error";
export type SwitchingAdvice = "never" | "when-idle" | "allow";
export type OnTimeout = "reject" | "fall-back";
export type TryResult =
  | "ok"
  | "queue-timeout"
  | "connect-error"
  | "overloaded"
  | "server-error"
  | "engine-restart"
  | "first-token-timeout"
  | "client-gone"
  | "other";
export type Metric =
  | "slots-free"
  | "queue"
  | "kv-free"
  | "est-wait"
  | "ready-in"
  | "ttft"
  | "decode-speed"
  | "cached-tokens"
  | "error-rate"
  | "cost";

export interface Context {
  readonly nowMs: number;
  /** Exact, because seeds are below 2^53. */
  readonly seed: number;
  readonly topology: number;
  readonly ageUs: number;
  readonly budgetUs: number;
  readonly attempt: number;
  readonly endpoint: Endpoint;
  readonly streaming: boolean;
  readonly bodyBytes: number;
  readonly promptTokens: number;
  readonly maxOutputTokens: number;
  readonly messages: number;
  readonly hasTools: boolean;
  readonly hasMedia: boolean;
  readonly hasGrammar: boolean;
}

export interface MessageInfo {
  readonly role: Role;
  readonly textBytes: number;
  readonly parts: number;
  readonly mediaParts: number;
}

export type FieldValue =
  | { readonly tag: "absent" }
  | { readonly tag: "json"; readonly val: string }
  | { readonly tag: "too-large"; readonly val: number };

export interface LaneInfo {
  readonly id: LaneId;
  readonly name: string;
  readonly engine: EngineKind;
  readonly models: string[];
  readonly labels: [string, string][];
  readonly maxContext: number;
  readonly slots: number;
  readonly group: number;
  readonly costMilli: number;
}

export interface LaneStat {
  readonly id: LaneId;
  readonly state: LaneState;
  readonly running: number;
  readonly waiting: number;
  readonly queued: number;
  readonly slotsFree: number;
  readonly kvUsed: number;
  readonly errors: number;
  readonly ttftP50Ms: number;
  readonly ttftP99Ms: number;
  readonly decodeTps: number;
  readonly estWaitMs: number;
  readonly readyInMs: number;
  readonly displaces: number;
  readonly cachedTokens: number;
  readonly staleMs: number;
}

/** What the limits of a key leave, of the tightest limit of each kind; `null` without a limit. */
export interface Allowance {
  readonly requests: Remaining | null;
  readonly tokens: Remaining | null;
  readonly budget: Remaining | null;
}

export interface Remaining {
  readonly limit: number;
  readonly left: number;
  readonly resetMs: number;
}

/** The request being decided. Every method calls the host. */
export interface RequestView {
  id(): string;
  model(): string;
  tenant(): string | null;
  header(name: string): string | null;
  field(pointer: string, maxBytes: number): FieldValue;
  messages(): MessageInfo[];
  text(index: number, offset: number, maxBytes: number): string;
  body(offset: number, maxBytes: number): Uint8Array;
  contains(needle: string, ignoreCase: boolean): boolean;
  /** Rounded to the precision of a number. Compare these hashes with each other only. */
  prefixHashes(blockBytes: number, maxBlocks: number): number[];
  /** The name of the endpoint, such as `chat-completions`, `messages` or `rerank`. */
  endpointKind(): string;
  /** The group of the key with which the client authenticated. */
  keyGroup(): string | null;
  /** The name of that key, which is never a part of its secret. */
  keyName(): string | null;
  /** What the limits of the key, its groups and its tenant leave. */
  allowance(): Allowance;
  /** Milliseconds until the host gives up on the request. */
  deadlineMs(): number | null;
  /**
   * Where each pattern that occurs in a message occurs first, in the order of the patterns: at most
   * 256 with 8 KiB together.
   */
  findAny(patterns: string[], ignoreCase: boolean): TextMatch[];
}

/** An occurrence: indices of the pattern and the message, and the byte at which it begins. */
export interface TextMatch {
  readonly pattern: number;
  readonly message: number;
  readonly offset: number;
}

/** All lanes, as one snapshot for the duration of a call. */
export interface FleetView {
  /** Costs about 11 microseconds per lane; prefer `blend`, or `stat` for a single lane. */
  stats(): LaneStat[];
  stat(lane: LaneId): LaneStat | null;
  candidates(): LaneId[];
  info(lane: LaneId): LaneInfo | null;
  find(name: string): LaneId | null;
  withLabel(key: string, value: string): LaneId[];
  /** The candidates that the filters of earlier policies leave. */
  lanesLeft(): LaneId[];
}

export interface Host {
  readonly request: RequestView;
  readonly fleet: FleetView;
  readonly log: { write(level: Level, message: string): void; enabled(level: Level): boolean };
  readonly metrics: {
    add(name: string, value: number): void;
    recordValue(name: string, value: number): void;
  };
  /** `put` and `increment` throw an error with `code`. A time to live of 0 does not expire. */
  readonly state: {
    get(key: string): Uint8Array | null;
    /** Returns an entry that was stored as a text. */
    getText(key: string): string | null;
    /** Returns the value of a counter. */
    getCounter(key: string): number | null;
    put(key: string, value: Uint8Array | string, ttlMs?: number): void;
    delete(key: string): void;
    increment(key: string, by?: number, ttlMs?: number): number;
  };
}

/** The argument of a call about a request. */
export interface Call extends Host {
  readonly context: Context;
}

export interface Failure {
  readonly lane: LaneId;
  readonly what: TryResult;
  readonly status: number;
  readonly sentBytes: number;
  readonly elapsedMs: number;
  readonly triesLeft: number;
}

export interface Outcome {
  readonly requestId: string;
  readonly tenant: string | null;
  readonly model: string;
  readonly lane: LaneId;
  readonly topology: number;
  readonly ended: TryResult;
  readonly tries: number;
  readonly queueMs: number;
  readonly ttftMs: number;
  readonly totalMs: number;
  readonly promptTokens: number;
  readonly cachedTokens: number;
  readonly outputTokens: number;
}

export interface Attempt {
  readonly lane: LaneId;
  readonly ended: TryResult;
  readonly status: number;
  readonly queueMs: number;
  readonly tookMs: number;
}

/** A finished request, with all attempts and the notes of this policy's advice. */
export interface Finished {
  readonly outcome: Outcome;
  readonly attempts: Attempt[];
  readonly notes: Note[];
}

export interface Note {
  readonly key: string;
  readonly value:
    | { readonly tag: "flag"; readonly val: boolean }
    | { readonly tag: "int"; readonly val: number }
    | { readonly tag: "text"; readonly val: string };
}

export type Recovery =
  { tag: "planned" } | { tag: "retry"; val: FallbackStep } | { tag: "give-up"; val: Rejection };

export interface LaneWish {
  lane: LaneId;
  wish: "load" | "release" | "keep";
  forMs: number;
}

/** The configured policy. Optional hooks are called if `policy.toml` lists them. */
export interface Advisor {
  advise(call: Call): Advice;
  recover?(call: Call, failed: Failure): Recovery;
  observe?(nowMs: number, done: Outcome[], host: Host): void;
  learn?(nowMs: number, done: Finished[], host: Host): void;
  tick?(nowMs: number, seed: number, host: Host): LaneWish[];
}

/** A policy: the default export of its module. */
export interface Policy {
  name: string;
  version: string;
  hints?: string[];
  /** `json` is the configuration, `{}` if none is set. Throws `invalidConfig(…)` if it is invalid. */
  configure(json: string, host: Host): Advisor;
}

export type Edit = { tag: string; val: unknown };

export interface FallbackStep {
  lane: LaneId;
  edits: Edit[];
}

export interface Rejection {
  status: number;
  code: string;
  message: string;
  retryAfterS: number | null;
}

export interface Triggers {
  queueTimeout: boolean;
  connectError: boolean;
  overloaded: boolean;
  serverError: boolean;
  engineRestart: boolean;
  firstTokenTimeout: boolean;
}

export class Advice {
  private constructor();
  withReason(reason: string): this;
  withNote(key: string, value: boolean | number | string): this;
  withHint(key: string, value: boolean | number | string): this;
  withPriority(priority: number): this;
  withFlow(flow: string): this;
  withMaxWait(ms: number, onTimeout?: OnTimeout): this;
  withFallback(
    lanes: (LaneId | FallbackStep)[],
    options?: { on?: Partial<Triggers>; firstTokenMs?: number | null },
  ): this;
  withSwitching(switching: SwitchingAdvice): this;
  withEdits(...changes: Edit[]): this;
}

export function any(): Advice;
export function only(lanes: Iterable<LaneId>): Advice;
export function avoid(lanes: Iterable<LaneId>): Advice;
export function ordered(lanes: Iterable<LaneId>): Advice;
export function scores(pairs: Iterable<[LaneId, number]>): Advice;
export function blend(weights: Partial<Record<Metric, number>>): Advice;
export function reject(
  status: number,
  code: string,
  message: string,
  options?: { retryAfterS?: number | null },
): Advice;

export const edits: {
  setModel(model: string): Edit;
  capOutputTokens(tokens: number): Edit;
  setField(pointer: string, value: unknown): Edit;
  removeField(pointer: string): Edit;
  prependSystem(text: string): Edit;
  keepLastMessages(count: number): Edit;
  setHeader(name: string, value: string): Edit;
  removeHeader(name: string): Edit;
};

export class PolicyError extends Error {
  readonly tag: "invalid-config" | "unsupported" | "other";
}
export function invalidConfig(message: string): PolicyError;
export function unsupported(message: string): PolicyError;

export class StateError extends Error {
  readonly code: "full" | "too-long" | "not-a-counter";
}

export class Config {
  static parse(json: string): Config;
  string(key: string): string | null;
  string(key: string, defaultValue: string): string;
  boolean(key: string): boolean | null;
  boolean(key: string, defaultValue: boolean): boolean;
  integer(key: string, defaultValue?: null, bounds?: { min?: number; max?: number }): number | null;
  integer(key: string, defaultValue: number, bounds?: { min?: number; max?: number }): number;
  strings(key: string): string[] | null;
  strings(key: string, defaultValue: string[]): string[];
  stringMap(key: string): Map<string, string>;
  integerMap(key: string, bounds?: { min?: number; max?: number }): Map<string, number>;
  /** Returns all keys. Those that are not read are rejected by `finish`. */
  keys(): string[];
  section(key: string): Config;
  /** Rejects keys that were not read. */
  finish(): void;
}

export class Lanes {
  find(call: Call, name: string): LaneId | null;
}

export class Random {
  constructor(seed: number | bigint);
  next(): bigint;
  below(n: number): number;
}

// The globals that a component has besides those of ECMAScript.
declare global {
  /** Writes to the policy's log: `log` and `info` with the level `info`. */
  interface Console {
    debug(...values: any[]): void;
    error(...values: any[]): void;
    info(...values: any[]): void;
    log(...values: any[]): void;
    trace(...values: any[]): void;
    warn(...values: any[]): void;
  }
  var console: Console;

  interface TextEncoder {
    readonly encoding: string;
    encode(text?: string): Uint8Array;
  }
  var TextEncoder: { prototype: TextEncoder; new (): TextEncoder };

  interface TextDecoder {
    readonly encoding: string;
    decode(bytes?: ArrayBuffer | ArrayBufferView): string;
  }
  var TextDecoder: { prototype: TextDecoder; new (encoding?: string): TextDecoder };
}
