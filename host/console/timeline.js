// The states of lanes over the last minutes: which lanes took turns.

import { el, svg } from "./dom.js";
import { duration, time } from "./format.js";

const [MIN_SPAN, MAX_SPAN] = [60 * 1000, 15 * 60 * 1000];
const WIDTH = 900;
const LABEL = 120;
const ROW = 22;

/** Returns the time line of all lanes. */
export function timeline(host) {
  const lanes = host.state?.lanes.map((lane) => lane.name) ?? [];
  const end = Math.ceil(host.now() / 5000) * 5000;
  const known = end - (host.history[0]?.unix_ms ?? end);
  const span = Math.min(MAX_SPAN, Math.max(MIN_SPAN, known));
  const begin = end - span;
  const at = (ms) => LABEL + (Math.max(ms, begin) - begin) / span * (WIDTH - LABEL);
  const height = lanes.length * ROW + 20;
  const picture = svg("svg", { class: "timeline", viewBox: `0 0 ${WIDTH} ${height}`, role: "img",
    "aria-label": "States of the lanes in the last minutes" });
  lanes.forEach((lane, index) => {
    const y = index * ROW;
    picture.append(svg("text", { x: 0, y: y + 14 }, lane.slice(0, 18)));
    const changes = host.history.filter((change) => change.lane === lane);
    changes.forEach((change, position) => {
      const until = changes[position + 1]?.unix_ms ?? end;
      if (until < begin) return;
      const [from, to] = [at(change.unix_ms), at(until)];
      const title = svg("title", {}, `${lane}: ${change.state} since ${time(change.unix_ms)}`);
      picture.append(svg("rect", { class: change.state, x: from.toFixed(1), y: y + 3,
        width: Math.max(to - from, 1).toFixed(1), height: ROW - 8 }, title));
    });
  });
  for (let part = 3; part >= 0; part -= 1) {
    const ago = span * part / 3;
    const anchor = part === 0 ? "end" : part === 3 ? "start" : "middle";
    picture.append(svg("text", { x: at(end - ago), y: height - 4, "text-anchor": anchor },
      part === 0 ? "now" : `-${ago < 60000 ? `${Math.round(ago / 1000)} s` : duration(ago)}`));
  }
  const states = ["ready", "degraded", "starting", "draining", "down", "unloaded"];
  const legend = states.map((state) => el("span", { class: `state ${state}` }, state));
  return el("div", {}, picture, el("p", { class: "row" }, legend));
}
