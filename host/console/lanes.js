// Lanes: what they do, their memory, and what operators do with them.

import { ask } from "./actions.js";
import { send } from "./api.js";
import { el, notice, replace, table, terms } from "./dom.js";
import { bytes, duration, text } from "./format.js";
import { laneThere, nameOf } from "./hosts.js";
import { timeline } from "./timeline.js";

const buttons = [
  ["lane-load", "Load", "Load lane"],
  ["lane-unload", "Unload", "Unload lane"],
  ["lane-hold", "Hold", "Unload, and keep unloaded, lane"],
  ["lane-drain", "Drain", "Send no more requests to lane"],
  ["lane-resume", "Resume", "End the drain of lane"],
  ["lane-restart", "Restart", "Restart the engine of lane"],
];

/** Returns true if an action would change something. */
function allows(action, lane) {
  const drains = lane.manual?.mode === "draining";
  switch (action) {
    case "lane-load": return !["ready", "degraded", "starting"].includes(lane.state);
    case "lane-unload": return lane.state !== "unloaded";
    case "lane-drain": return !drains;
    case "lane-resume": return drains;
    case "lane-restart": return lane.pid !== null;
    default: return true;
  }
}

function card(lane) {
  const slots = lane.slots ?? 0;
  const allowed = buttons.filter(([action]) => allows(action, lane))
    .map(([action, label, question]) => el("button", {
      type: "button", "data-focus": `${lane.name}/${action}`, "data-action": action,
      onclick: () => ask(action, lane.name, `${question} ${lane.name}?`, label,
        () => `${label}: ${lane.name}`),
    }, label));
  const log = el("a", { href: `#lanes/${encodeURI(lane.name)}` }, "Engine's log");
  return el("section", { class: "card", "data-lane": lane.name },
    el("h3", {}, lane.name, el("span", { class: `state ${lane.state}` }, lane.state)),
    lane.progress ? el("p", { class: "progress" }, lane.progress) : null,
    lane.state === "starting" ? el("progress", { "aria-label": "loading" }) : null,
    slots > 0 ? el("progress", { max: slots, value: lane.running ?? 0,
      "aria-label": `${lane.running ?? 0} of ${slots} slots in use` }) : null,
    terms([
      ["slots", `${lane.running ?? 0} of ${slots} in use`],
      ["queued", text(lane.queued)],
      ["models", (lane.models ?? []).join(", ")],
      ["memory", bytes(lane.memory?.need_bytes)],
      ["ready in", lane.state === "starting" ? duration(lane.ready_in_ms) : null],
      ["key-value cache", lane.kv_used_permille ? `${lane.kv_used_permille / 10} %` : null],
      ["by hand", lane.manual ? `${lane.manual.mode} by ${lane.manual.by}` : null],
      ["host", lane.host ? `${nameOf(lane.host)}, ${lane.host.liveness}` : null],
      ["lane there", lane.host ? laneThere(lane.host) : null],
      ["problem", lane.problem],
    ]),
    el("div", { class: "row" }, allowed, log));
}

function groups(state) {
  const rows = state.groups.map((group) => el("tr", { "data-group": group.name },
    el("td", {}, group.name),
    el("td", {}, el("progress", { max: group.budget_bytes || 1, value: group.reserved_bytes,
      "aria-label": "memory that is reserved" })),
    el("td", { class: "num" },
      `${bytes(group.reserved_bytes)} of ${bytes(group.budget_bytes) ?? "any"}`),
    el("td", { class: "num" }, bytes(group.measured_bytes)),
    el("td", {}, group.lanes.join(", "))));
  return table(["Group", "Memory", "Reserved", "Measured", "Lanes"], rows,
    "No groups: the lanes share no memory.");
}

/** The page of all lanes, or the log of one engine. */
export function lanes(main, host, name) {
  if (name) return engineLog(main, name);
  const cards = el("div", { class: "cards" });
  const memory = el("div");
  const line = el("div");
  main.append(el("h2", {}, "Lanes"), cards, el("h2", {}, "Memory"), memory,
    el("h2", {}, "Time line"), line);
  const draw = () => replace(line, timeline(host));
  return {
    state() {
      if (!host.state) return;
      replace(cards, host.state.lanes.map(card));
      replace(memory, groups(host.state));
      draw();
    },
    tick: draw,
  };
}

function engineLog(main, name) {
  const lines = el("pre", { tabindex: 0 });
  main.append(el("h2", {}, `Log of ${name}`),
    el("p", {}, el("a", { href: "#lanes" }, "All lanes")), lines);
  const follow = async () => {
    const response = await send("GET", `/lanes/${encodeURIComponent(name)}/logs?follow=true`);
    if (!response.ok) { lines.textContent = `unknown lane ${name}`; return; }
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      if (!lines.isConnected) { await reader.cancel(); return; }
      lines.textContent = (lines.textContent + value).slice(-200000);
      lines.scrollTop = lines.scrollHeight;
    }
  };
  follow().catch((error) => notice(error.message, true));
  return {};
}
