// Routes teams to their home lanes, code and long prompts to dedicated lanes, and all other
// requests to the lane with the earliest start.

import { Config, Lanes, blend, only } from "../sdk/pointsman.js";

class TeamLanes {
  #lanes = new Lanes();

  constructor(config) {
    this.teams = config.stringMap("teams");
    this.codeLane = config.string("code-lane");
    this.longTokens = config.integer("long-tokens", 8000, { min: 1 });
    this.longLane = config.string("long-lane");
    config.finish();
  }

  advise(call) {
    const { context, request, fleet } = call;
    // Earlier policies may have filters.
    const candidates = fleet.lanesLeft();
    const { choice, unavailable } = this.#choose(call, candidates);
    const reason = choice?.reason ?? "shortest wait and warmest cache";
    const advice =
      choice === null ? blend({ "est-wait": 700, "cached-tokens": 300 }) : only([choice.lane]);
    advice
      .withReason(reason + unavailable.map((lane) => `; ${lane} is unavailable`).join(""))
      .withNote("rule", choice?.rule ?? "blend")
      .withNote("prompt-tokens", context.promptTokens)
      .withFallback(candidates.filter((lane) => lane !== choice?.lane));
    const priority = parseInteger(request.header("x-priority"));
    if (priority !== null) {
      advice.withPriority(Math.max(-10, Math.min(priority, 10)));
      // Requests of low priority should not delay those of other lanes by a switch.
      if (priority < 0) advice.withSwitching("when-idle");
    }
    return advice;
  }

  /** Counts the requests whose lane by rule failed. */
  learn(_nowMs, done, host) {
    const failed = done.filter(
      ({ attempts, notes }) =>
        attempts[0]?.ended !== "ok" &&
        notes.some(({ key, value }) => key === "rule" && value.val !== "blend"),
    );
    if (failed.length > 0) host.metrics.add("rule-failed", failed.length);
  }

  /** Returns the first rule whose lane is available, and the unavailable lanes of earlier rules. */
  #choose(call, candidates) {
    const unavailable = [];
    for (const { name, rule, reason } of this.#rules(call)) {
      const lane = this.#lanes.find(call, name);
      if (lane === null || !candidates.includes(lane)) continue;
      const state = call.fleet.stat(lane)?.state;
      if (state !== "down" && state !== "draining") {
        return { choice: { lane, rule, reason: `${name}: ${reason}` }, unavailable };
      }
      unavailable.push(name);
      call.metrics.add("skipped", 1);
      if (call.log.enabled("debug")) call.log.write("debug", `skipped lane ${name}: ${state}`);
    }
    return { choice: null, unavailable };
  }

  /** Yields the rules that apply, in order. Lazy, so that the prompt is searched only if needed. */
  *#rules({ context, request }) {
    const tenant = request.tenant();
    const home = tenant === null ? undefined : this.teams.get(tenant);
    if (home !== undefined) yield { name: home, rule: "home", reason: `home lane of ${tenant}` };
    if (this.codeLane !== null && request.contains("```", false)) {
      yield { name: this.codeLane, rule: "code", reason: "the prompt contains code" };
    }
    if (this.longLane !== null && context.promptTokens > this.longTokens) {
      yield {
        name: this.longLane,
        rule: "long",
        reason: `the prompt is longer than ${this.longTokens} tokens`,
      };
    }
  }
}

/** Parses an integer of at most nine digits; returns `null` for anything else. */
const parseInteger = (text) =>
  text !== null && /^[+-]?[0-9]{1,9}$/.test(text) ? Number(text) : null;

export default {
  name: "team-lanes",
  version: "0.1.0",
  configure: (json) => new TeamLanes(Config.parse(json)),
};
