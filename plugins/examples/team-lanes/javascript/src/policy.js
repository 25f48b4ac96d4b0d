// Teams have home lanes; code and long prompts have lanes of their own; all else goes where it starts soonest.

import { Config, Lanes, blend, only } from "../sdk/pointsman.js";

class TeamLanes {
  #lanes = new Lanes();

  constructor(config) {
    this.teams = config.textMap("teams");
    this.codeLane = config.text("code-lane");
    this.longTokens = config.integer("long-tokens", 8000, { from: 1 });
    this.longLane = config.text("long-lane");
    config.end();
  }

  advise(call) {
    const { context, request, fleet } = call;
    const candidates = fleet.candidates();
    const { choice, passedOver } = this.#choose(call, candidates);
    const because = choice?.why ?? "the shortest wait and the warmest cache";
    const advice = choice === null ? blend({ "est-wait": 700, "cached-tokens": 300 }) : only([choice.lane]);
    advice
      .because(because + passedOver.map((lane) => `, and ${lane} cannot serve`).join(""))
      .note("rule", choice?.rule ?? "blend")
      .note("prompt-tokens", context.promptTokens)
      .fallingBackTo(candidates.filter((lane) => lane !== choice?.lane));
    const priority = integer(request.header("x-priority"));
    if (priority !== null) {
      advice.withPriority(Math.max(-10, Math.min(priority, 10)));
      // What can wait holds up nobody else's work.
      if (priority < 0) advice.withSwitching("when-idle");
    }
    return advice;
  }

  /** The first rule whose lane can serve, and the lanes of rules that cannot. */
  #choose(call, candidates) {
    const passedOver = [];
    for (const { name, rule, why } of this.#rules(call)) {
      const lane = this.#lanes.find(call, name);
      if (lane === null || !candidates.includes(lane)) continue;
      const state = call.fleet.stat(lane)?.state;
      if (state !== "down" && state !== "draining") return { choice: { lane, rule, why: `${name}: ${why}` }, passedOver };
      passedOver.push(name);
      call.metrics.add("passed-over", 1);
      if (call.log.enabled("debug")) call.log.write("debug", `passed over ${name}, which is ${state}`);
    }
    return { choice: null, passedOver };
  }

  /** The rules that apply, first things first. */
  *#rules({ context, request }) {
    const tenant = request.tenant();
    const home = tenant === null ? undefined : this.teams.get(tenant);
    if (home !== undefined) yield { name: home, rule: "home", why: `the home of ${tenant}` };
    if (this.codeLane !== null && request.contains("```", false)) {
      yield { name: this.codeLane, rule: "code", why: "the prompt has code in it" };
    }
    if (this.longLane !== null && context.promptTokens > this.longTokens) {
      yield { name: this.longLane, rule: "long", why: `the prompt is longer than ${this.longTokens} tokens` };
    }
  }
}

/** A whole number of at most nine digits; `null` for anything else. */
const integer = (text) => (text !== null && /^[+-]?[0-9]{1,9}$/.test(text) ? Number(text) : null);

export default {
  name: "team-lanes",
  version: "0.1.0",
  configure: (json) => new TeamLanes(Config.parse(json)),
};
