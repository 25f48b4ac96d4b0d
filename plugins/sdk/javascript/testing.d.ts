// Types of the fake requests, fleets and hosts for tests.

import type {
  Advice,
  Allowance,
  Attempt,
  Context,
  Failure,
  Finished,
  Level,
  LaneInfo,
  LaneStat,
  LaneWish,
  Outcome,
  Policy,
  Recovery,
} from "./pointsman.js";

export type FakeLane = {
  name: string;
  models?: string[];
  labels?: Record<string, string>;
  state?: LaneStat["state"];
  stat?: Partial<LaneStat>;
} & Partial<Pick<LaneInfo, "maxContext" | "slots" | "group" | "costMilli">>;
export interface FakeFleet {
  lanes: FakeLane[];
  topology: number;
  lanesLeft: string[] | null;
}
/** A message; parts without a text count as media. */
export interface FakeMessage {
  role: string;
  content: string | { type: string; text?: string; [field: string]: unknown }[] | null;
}
export interface FakeRequest {
  body: { model: string; messages: FakeMessage[]; [field: string]: unknown };
  headers: Record<string, string>;
  tenant: string | null;
  endpointKind: string;
  keyGroup: string | null;
  keyName: string | null;
  allowance: Allowance;
  deadlineMs: number | null;
  context: Partial<Context>;
}

export function fakeFleet(
  lanes: (string | FakeLane)[],
  topology?: number,
  lanesLeft?: string[] | null,
): FakeFleet;
export function fakeFinished(
  outcome?: Partial<Outcome>,
  more?: {
    attempts?: (Pick<Attempt, "lane" | "ended"> & Partial<Attempt>)[];
    notes?: Record<string, boolean | number | string>;
  },
): Finished;
export function fakeRequest(
  content: string | FakeMessage[],
  more?: {
    model?: string;
    headers?: Record<string, string>;
    tenant?: string | null;
    endpointKind?: string;
    keyGroup?: string | null;
    keyName?: string | null;
    allowance?: Partial<Allowance>;
    deadlineMs?: number | null;
    context?: Partial<Context>;
    /** Further fields of the body, such as `stream` and `tools`. */
    body?: Record<string, unknown>;
  },
): FakeRequest;
export function configure(
  policy: Policy,
  config?: unknown,
  /** Entries that the state has; numbers are counters. */
  more?: { state?: Record<string, number | string | Uint8Array> },
): {
  log: { level: Level; message: string }[];
  counters: Map<string, number>;
  state: {
    set(key: string, value: number | string | Uint8Array): void;
    get(key: string): Uint8Array | null;
  };
  advise(request: FakeRequest, fleet: FakeFleet): Advice;
  recover(request: FakeRequest, fleet: FakeFleet, failed: Failure): Recovery;
  observe(nowMs: number, done: Outcome[]): void;
  learn(nowMs: number, done: Finished[]): void;
  tick(nowMs: number, seed: number): LaneWish[];
};
