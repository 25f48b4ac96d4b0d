// Recent decisions, and the explanation of one.

import { call } from "./api.js";
import { el, notice, replace, table, terms } from "./dom.js";
import { duration, text, time } from "./format.js";

const cell = (value) => el("td", {}, text(value) ?? "–");

function row(decision) {
  const link = el("a", { href: `#decisions/${encodeURIComponent(decision.id)}` }, decision.id);
  return el("tr", {}, el("td", { class: "num" }, time(decision.unix_ms)), cell(decision.model),
    cell(decision.lane), el("td", { class: decision.outcome }, decision.outcome ?? "–"),
    cell(decision.status), el("td", { class: "num" }, duration(decision.duration_ms) ?? "–"),
    cell(decision.reason), cell(decision.decided_by), cell(decision.tenant),
    cell(decision.attempts), el("td", {}, link));
}

const heads = ["Time", "Model", "Lane", "Outcome", "Status", "Duration", "Reason", "Decided by",
  "Tenant", "Attempts", "Id"];

// Fields with points in time, in milliseconds since 1970.
const times = ["since_ms", "at_ms"];

const isFlat = (value) => value !== null && typeof value === "object" && !Array.isArray(value)
  && Object.values(value).every((inner) => inner === null || typeof inner !== "object");

/** Returns objects without inner ones as a table; columns without values are left out. */
function rowsOf(objects) {
  const heads = [...new Set(objects.flatMap((object) => Object.keys(object)))]
    .filter((head) => objects.some((object) => text(object[head]) !== null));
  return table(heads.map((head) => head.replaceAll("_", " ")), objects.map((object) =>
    el("tr", {}, heads.map((head) => cell(object[head])))));
}

/** Returns any JSON value as tables and nested lists. */
export function explain(value) {
  if (Array.isArray(value)) {
    if (value.length === 0) return el("span", { class: "faint" }, "none");
    const isList = value.every((item) => typeof item !== "object");
    if (isList) return el("span", {}, value.join(", "));
    if (value.every(isFlat)) return rowsOf(value);
    return el("ol", {}, value.map((item) => el("li", {}, explain(item))));
  }
  if (value !== null && typeof value === "object") {
    const entries = Object.entries(value);
    if (entries.length === 0) return el("span", { class: "faint" }, "none");
    return terms(entries.map(([name, inner]) => (times.includes(name) && inner !== null
      ? [name.split("_")[0], time(inner)]
      : [name.replaceAll("_", " "), inner === null ? null : explain(inner)])));
  }
  return el("span", {}, text(value) ?? "–");
}

/** Returns an explanation in parts: policies, merge, plan, attempts, outcome. */
export function explanation(decision) {
  const simple = [];
  const parts = [];
  for (const [name, value] of Object.entries(decision)) {
    if (value !== null && typeof value === "object") {
      parts.push(el("h3", {}, name.replaceAll("_", " ")), explain(value));
    } else {
      const isTime = name === "unix_ms";
      const label = isTime ? "time" : name.replaceAll("_", " ");
      simple.push([label, isTime ? time(value) : text(value)]);
    }
  }
  return el("article", { class: "explanation" }, terms(simple), parts);
}

async function details(main, id) {
  main.append(el("p", {}, el("a", { href: "#decisions" }, "All decisions")),
    el("h2", {}, `Decision ${id}`));
  try {
    main.append(explanation(await call("GET", `/decisions/${encodeURIComponent(id)}`)));
  } catch (error) {
    main.append(el("p", { class: "bad" }, error.message));
  }
}

/** The page of decisions. */
export function decisions(main, host, id) {
  if (id) { details(main, id); return {}; }
  const list = el("div");
  const more = el("button", { type: "button" }, "Earlier ones");
  main.append(el("h2", {}, "Decisions"), list, el("p", {}, more));
  const draw = () => replace(list, table(heads, host.decisions.map(row), "No decisions yet."));
  const fetchRows = async (before) => {
    const from = before ? `&before=${encodeURIComponent(before)}` : "";
    const found = (await call("GET", `/decisions?limit=50${from}`)).decisions;
    const known = new Set(host.decisions.map((decision) => decision.id));
    host.decisions.push(...found.filter((decision) => !known.has(decision.id)));
    host.decisions.sort((a, b) => b.unix_ms - a.unix_ms);
    more.hidden = found.length < 50;
    draw();
  };
  const report = (error) => notice(error.message, true);
  more.addEventListener("click", () => fetchRows(host.decisions.at(-1)?.id).catch(report));
  fetchRows().catch(report);
  return { decision: draw };
}
