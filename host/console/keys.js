// Keys: their limits, and what is used of them. Those that are nearest to a limit come first.

import { el, replace, table } from "./dom.js";
import { count, duration, time } from "./format.js";

const NEAR = 800; // Thousandths.

const names = {
  "requests-per-minute": "requests per minute", "tokens-per-minute": "tokens per minute",
  concurrent: "concurrent requests", queued: "queued requests", "token-budget": "tokens",
  "request-budget": "requests", "engine-budget": "engine seconds",
};

/** Returns the name of a limit, such as "tokens per day of group staff". */
function nameOf({ limit, period, account, account_name: owner }) {
  const name = `${names[limit] ?? limit}${period ? ` per ${period}` : ""}`;
  return owner ? `${name} of ${account} ${owner}` : name;
}

function permille({ max, used }) {
  return max > 0 ? Math.min(1000, Math.floor(1000 * used / max)) : 1000;
}

/** Returns the time until a point in time, rounded up to seconds or minutes. */
function until(unixMs, host) {
  const seconds = Math.max(0, Math.ceil((unixMs - host.now()) / 1000));
  return seconds < 100 ? `${seconds} s` : duration(Math.ceil(seconds / 60) * 60000);
}

function color(used) {
  if (used >= 1000) return "down";
  return used >= NEAR ? "degraded" : "";
}

function bar(limit, host) {
  const used = permille(limit);
  const end = limit.resets_unix_ms;
  const reset = end ? `, resets in ${until(end, host)}` : "";
  const name = nameOf(limit);
  return el("div", { class: `limit ${color(used)}` },
    el("span", {}, name),
    el("progress", { max: 1000, value: used, "aria-label": `${name}: ${used / 10} % used` }),
    el("span", { class: "faint" },
      `${count(limit.used)} of ${count(limit.max)}, ${count(limit.left)} left${reset}`));
}

function expiry({ kind, expires_unix_ms: expires }, host) {
  if (expires === null) return kind === "token" ? el("div", { class: "faint" }, "token") : null;
  if (expires <= host.now()) return el("div", { class: "down" }, "expired");
  const what = kind === "token" ? "token, expires" : "expires";
  return el("div", { class: "faint" }, `${what} in ${until(expires, host)}`);
}

function refusals({ refused, last_refusal: last }) {
  if (!refused) return "0";
  return [el("div", { class: "down" }, count(refused)),
    last ? el("div", { class: "faint" }, `${time(last.unix_ms)}: ${nameOf(last)}`) : null];
}

function row(key, host) {
  const nearest = key.nearest_permille;
  const limits = [...key.limits].sort((one, other) => permille(other) - permille(one));
  return el("tr", { "data-key": key.name },
    el("td", {}, el("div", {}, el("strong", {}, key.name), expiry(key, host))),
    el("td", {}, key.tenant ?? "–"), el("td", {}, key.group ?? "–"),
    el("td", { class: `num ${color(nearest ?? 0)}` },
      nearest === null ? "–" : `${nearest / 10} %`),
    el("td", { class: "wide" }, limits.length
      ? limits.map((limit) => bar(limit, host)) : el("span", { class: "faint" }, "no limits")),
    el("td", { class: "num" }, count(key.requests)),
    el("td", {}, el("div", {}, refusals(key))),
    el("td", { class: "num" }, time(key.last_used_unix_ms) ?? "never"));
}

const heads = ["Key", "Tenant", "Group", "Used", "Limits", "Requests", "Refused", "Last use"];

/** The page of keys. */
export function keys(main, host) {
  const filter = el("input", { id: "key-filter", type: "search",
    placeholder: "key, tenant or group" });
  const list = el("div", { id: "keys" });
  const more = el("p", { class: "faint" });
  main.append(el("h2", {}, "Keys"), el("div", { class: "row" },
    el("label", { for: "key-filter" }, "Filter"), filter), list, more);
  const draw = () => {
    if (!host.keys) return;
    const { keys: all, total } = host.keys;
    const part = filter.value.toLowerCase();
    const matches = (text) => (text ?? "").toLowerCase().includes(part);
    const found = all.filter(({ name, tenant, group }) => [name, tenant, group].some(matches));
    const empty = total === 0 ? "No keys: every request is accepted, and there are no limits."
      : "No key matches the filter.";
    replace(list, table(heads, found.map((key) => row(key, host)), empty));
    const counted = "Requests, refusals and last use are counted since the start of the host.";
    more.textContent = total > all.length
      ? `The ${all.length} of ${total} keys that are nearest to a limit. ${counted}`
      : total > 0 ? counted : "";
  };
  filter.addEventListener("input", draw);
  return { keys: draw, state: draw, tick: draw };
}
