// Sends long prompts to a dedicated lane, and all others to the lane with the earliest start.

import { Config, Lanes, blend, only } from "../sdk/pointsman.js";
import type { Advice, Advisor, Call, Policy } from "../sdk/pointsman.js";

class LongPrompts implements Advisor {
  readonly #lanes = new Lanes();
  readonly #longLane: string | null;
  readonly #longTokens: number;

  constructor(config: Config) {
    this.#longLane = config.string("long-lane");
    this.#longTokens = config.integer("long-tokens", 8000, { min: 1 });
    config.finish();
  }

  /** Called for every request. */
  advise(call: Call): Advice {
    const candidates = call.fleet.candidates();
    if (this.#longLane !== null && call.context.promptTokens > this.#longTokens) {
      const lane = this.#lanes.find(call, this.#longLane);
      if (lane !== null && candidates.includes(lane)) {
        return only([lane])
          .withReason(`a prompt of more than ${this.#longTokens} tokens`)
          .withFallback(candidates.filter((other) => other !== lane));
      }
    }
    return blend({ "est-wait": 700, "cached-tokens": 300 }).withReason("the shortest wait");
  }
}

const policy: Policy = {
  name: "POLICY_NAME",
  version: "0.1.0",
  configure: (json) => new LongPrompts(Config.parse(json)),
};

export default policy;
