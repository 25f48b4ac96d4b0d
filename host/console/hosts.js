// Other hosts: those whose lanes this one has, those that read it, and the store that they share.

import { el, replace, table, terms } from "./dom.js";
import { count, duration } from "./format.js";

// The colors of the states of lanes.
const colors = {
  live: "ready", degraded: "degraded", down: "down", up: "ready", connecting: "starting",
};

function state(name) {
  return el("span", { class: `state ${colors[name] ?? "down"}` }, name);
}

/** Returns the time since a point in time, in whole seconds. */
function since(unixMs, host) {
  const seconds = Math.max(0, Math.floor((host.now() - unixMs) / 1000));
  return seconds < 60 ? `${seconds} s` : duration(seconds * 1000);
}

/** Returns the name of the host of a lane, or its URL. */
export function nameOf({ name, url }) {
  return name ?? url;
}

/** Returns how a lane is at its host, as a text; null if that is not known. */
export function laneThere({ there }) {
  if (!there) return null;
  const slots = `${there.running} of ${there.slots} slots`;
  const parts = [there.state, slots, `${there.queued} queued`, there.problem_code];
  return parts.filter(Boolean).join(", ");
}

function lastEvent(other, host) {
  if (other.liveness === "live") return "less than a second ago";
  if (!other.last_event_unix_ms) return "never";
  return `${since(other.last_event_unix_ms, host)} ago`;
}

function lanes(host) {
  const rows = host.state.lanes.filter((lane) => lane.host).map((lane) => {
    const other = lane.host;
    return el("tr", { "data-host": lane.name },
      el("td", {}, el("strong", {}, lane.name)),
      el("td", {}, el("div", {}, nameOf(other), el("div", { class: "faint" }, other.url))),
      el("td", {}, state(other.liveness)),
      el("td", { class: "num" }, lastEvent(other, host)),
      el("td", {}, other.lane), el("td", {}, laneThere(other) ?? "not known"),
      el("td", {}, lane.problem ?? other.error ?? "–"));
  });
  return table(["Lane", "Host", "State", "Last event", "Lane there", "State there", "Problem"],
    rows, "No lane of this host is one of another host.");
}

function readers(host) {
  const rows = host.state.fleet_readers.map((reader) => el("tr", {},
    el("td", {}, reader.name ?? "an operator"),
    el("td", { class: "num" }, since(reader.since_unix_ms, host))));
  return table(["Key", "Connected for"], rows, "No other host reads the lanes of this one.");
}

function store(host) {
  const found = host.state.shared_state;
  if (!found) return el("p", { class: "faint" }, "This host shares no state with others.");
  const seen = found.replicas ?? "not known";
  return terms([
    ["store", state(found.state)],
    ["since", found.since_unix_ms ? since(found.since_unix_ms, host) : null],
    ["hosts", `${seen}, of ${found.expected_replicas} in the configuration`],
    ["changes that wait", count(found.pending)],
    ["changes that were dropped", count(found.dropped)],
    ["identity copied", found.identity_copied?.other ?? null],
  ]);
}

/** The page of other hosts. */
export function hosts(main, host) {
  const [others, reading, shared] = ["others", "readers", "store"].map((id) => el("div", { id }));
  main.append(el("h2", {}, "Lanes of other hosts"), others,
    el("h2", {}, "Hosts that read this one"), reading, el("h2", {}, "Shared state"), shared);
  const draw = () => {
    if (!host.state) return;
    replace(others, lanes(host));
    replace(reading, readers(host));
    replace(shared, store(host));
  };
  return { state: draw, tick: draw };
}
