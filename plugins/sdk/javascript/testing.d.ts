// Types of the fake requests, fleets and hosts for tests.

import type {
  Advice,
  Allowance,
  Context,
  Failure,
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
}
export interface FakeRequest {
  body: { model: string; messages: { role: string; content: string }[] };
  headers: Record<string, string>;
  tenant: string | null;
  endpointKind: string;
  keyGroup: string | null;
  keyName: string | null;
  allowance: Allowance;
  context: Partial<Context>;
}

export function fakeFleet(lanes: (string | FakeLane)[], topology?: number): FakeFleet;
export function fakeRequest(
  content: string | { role: string; content: string }[],
  more?: {
    model?: string;
    headers?: Record<string, string>;
    tenant?: string | null;
    endpointKind?: string;
    keyGroup?: string | null;
    keyName?: string | null;
    allowance?: Partial<Allowance>;
    context?: Partial<Context>;
  },
): FakeRequest;
export function configure(
  policy: Policy,
  config?: unknown,
): {
  log: { level: Level; message: string }[];
  counters: Map<string, number>;
  advise(request: FakeRequest, fleet: FakeFleet): Advice;
  recover(request: FakeRequest, fleet: FakeFleet, failed: Failure): Recovery;
  observe(nowMs: number, done: Outcome[]): void;
  tick(nowMs: number, seed: number): LaneWish[];
};
