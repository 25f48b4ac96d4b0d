// Sends long prompts to a lane of their own, and all others where they start soonest.

import { Config, Lanes, blend, only } from "../sdk/pointsman.js";

class Advisor {
  #lanes = new Lanes();

  constructor(config) {
    this.longLane = config.text("long-lane");
    this.longTokens = config.integer("long-tokens", 8000, { from: 1 });
    config.end();
  }

  /** Asked about every request: `call` has `context`, `request`, `fleet`, `log`, `metrics` and `state`. */
  advise(call) {
    const candidates = call.fleet.candidates();
    if (this.longLane !== null && call.context.promptTokens > this.longTokens) {
      const lane = this.#lanes.find(call, this.longLane);
      if (lane !== null && candidates.includes(lane)) {
        return only([lane])
          .because(`a prompt of more than ${this.longTokens} tokens`)
          .fallingBackTo(candidates.filter((other) => other !== lane));
      }
    }
    return blend({ "est-wait": 700, "cached-tokens": 300 }).because("the shortest wait");
  }
}

/** @type {import("../sdk/pointsman.js").Policy} */
export default {
  name: "POLICY_NAME",
  version: "0.1.0",
  configure: (json) => new Advisor(Config.parse(json)),
};
