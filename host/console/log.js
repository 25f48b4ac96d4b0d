// The live log, with a filter.

import { el } from "./dom.js";
import { text, time } from "./format.js";

const levels = ["ERROR", "WARN", "INFO", "DEBUG", "TRACE"];

function shown(line) {
  const fields = Object.entries(line.fields ?? {}).map(([name, value]) => `${name}=${text(value)}`);
  return `${time(line.unix_ms)} ${line.level.padEnd(5)} ${line.message ?? ""} ${fields.join(" ")}`;
}

/** The page of the log. */
export function log(main, host) {
  const filter = el("input", { id: "filter", type: "search", placeholder: "text" });
  const level = el("select", { id: "level" },
    levels.map((name) => el("option", { value: name }, name)));
  level.value = "INFO";
  const pause = el("input", { id: "pause", type: "checkbox" });
  const lines = el("div", { id: "log-lines", class: "card", tabindex: 0, role: "log" });
  const matches = (line, line_text) =>
    levels.indexOf(line.level) <= levels.indexOf(level.value)
    && line_text.toLowerCase().includes(filter.value.toLowerCase());
  const add = (line) => {
    const line_text = shown(line);
    if (!matches(line, line_text)) return;
    const isAtEnd = lines.scrollHeight - lines.scrollTop - lines.clientHeight < 40;
    const color = line.level === "ERROR" ? "down" : line.level === "WARN" ? "degraded" : "";
    lines.append(el("div", { class: color }, line_text));
    while (lines.childElementCount > 1000) lines.firstChild.remove();
    if (isAtEnd) lines.scrollTop = lines.scrollHeight;
  };
  const draw = () => {
    lines.replaceChildren();
    host.log.forEach(add);
    lines.scrollTop = lines.scrollHeight;
  };
  filter.addEventListener("input", draw);
  level.addEventListener("change", draw);
  pause.addEventListener("change", () => { if (!pause.checked) draw(); });
  main.append(el("h2", {}, "Log"), el("div", { class: "row" },
    el("label", { for: "filter" }, "Filter"), filter, el("label", { for: "level" }, "Level"),
    level, el("label", { for: "pause" }, "Pause"), pause), lines);
  draw();
  return { log(line) { if (!pause.checked) add(line); } };
}
