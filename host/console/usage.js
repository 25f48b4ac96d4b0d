// What was used, by tenant, key and model; and what operators have done.

import { call } from "./api.js";
import { el, notice, replace, table } from "./dom.js";
import { text, time } from "./format.js";

const groupings = ["tenant,model", "tenant,key", "model,lane", "tenant"];

function rows(report) {
  const found = Array.isArray(report) ? report : report.rows ?? report.usage ?? [];
  const heads = [...new Set(found.flatMap((row) => Object.keys(row)))];
  const lines = found.map((row) =>
    el("tr", {}, heads.map((head) => el("td", { class: "num" }, text(row[head]) || "–"))));
  return table(heads.map((head) => head.replaceAll("_", " ")), lines, "Nothing was used.");
}

/** The page of usage and actions. */
export function usage(main) {
  const by = el("select", { id: "by" },
    groupings.map((grouping) => el("option", { value: grouping }, grouping.replace(",", " and "))));
  const list = el("div", { id: "usage" });
  const done = el("div", { id: "actions" });
  const draw = async () => {
    replace(list, rows(await call("GET", `/usage?by=${encodeURIComponent(by.value)}`)));
    const { actions } = await call("GET", "/actions");
    replace(done, table(["Time", "By", "Via", "Action", "Result"], actions.reverse().map((action) =>
      el("tr", {}, el("td", { class: "num" }, time(action.unix_ms)), el("td", {}, action.by),
        el("td", {}, action.via), el("td", {}, action.action),
        el("td", { class: action.result }, `${action.result} ${action.status ?? ""}`))),
    "No actions."));
  };
  const report = (error) => notice(error.message, true);
  by.addEventListener("change", () => draw().catch(report));
  main.append(el("h2", {}, "Usage"), el("label", { for: "by" }, "By"), by, list,
    el("h2", {}, "Actions of operators"), done);
  draw().catch(report);
  return {};
}
